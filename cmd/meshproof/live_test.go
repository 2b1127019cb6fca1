package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(beInterrupted) != "" {
		waitForSignals()
		return
	}
	goleak.VerifyTestMain(m)
}

// Bounds of each wait of a script, and of a run that is interrupted.
const (
	liveBudget = 30 * time.Second
	runBudget  = 5 * time.Minute
)

// Each testdata/*.txtar is a session with the built bin/meshproof and labs that are up.
func TestLive(t *testing.T) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if reason := noLabs(t.Context(), filepath.Join(bin, "meshproof")); reason != "" {
		if os.Getenv("MESHPROOF_E2E") != "" {
			t.Fatal("MESHPROOF_E2E=required: " + reason)
		}
		t.Skip(reason)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			state, err := os.MkdirTemp("", "mp") // short, since sockets lie in it
			if err != nil {
				return err
			}
			e.Setenv("XDG_STATE_HOME", state)
			e.Setenv("XDG_CACHE_HOME", cache) // node binaries take minutes to build
			e.Setenv("HOME", os.Getenv("HOME"))
			e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Defer(func() { // also when the script gives up
				down := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(bin, "meshproof"), "down", "--all")
				down.Env = append(os.Environ(), "XDG_STATE_HOME="+state)
				if out, err := down.CombinedOutput(); err != nil {
					t.Errorf("down: %v\n%s", err, out)
				}
				if err := os.RemoveAll(state); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "interrupted": interrupted, "serve": serve, "get": get},
	})
}

// noLabs says why no lab can be made here, or nothing.
func noLabs(ctx context.Context, meshproof string) string {
	if testing.Short() {
		return "a lab takes seconds; run without -short"
	}
	if _, err := os.Stat(meshproof); err != nil {
		return "bin/meshproof is not built; run: make build"
	}
	if out, err := exec.CommandContext(ctx, meshproof, "doctor").CombinedOutput(); err != nil {
		return fmt.Sprintf("this host lacks something: %v\n%s", err, out)
	}
	return ""
}

// exits CODE command args... runs a command and wants just that exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE command [args]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// interrupted CODE REGEXP command args... starts a command, interrupts it once a line of its standard error matches, and wants just
// that exit code. What it wrote to standard output is kept as of exec.
func interrupted(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: interrupted CODE REGEXP command [args]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	line, err := regexp.Compile(args[1])
	ts.Check(err)
	path, err := filepath.Abs(filepath.Join("../../bin", args[2]))
	ts.Check(err)
	ctx, giveUp := context.WithTimeout(context.Background(), runBudget)
	defer giveUp()
	cmd := exec.CommandContext(ctx, path, args[3:]...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+ts.Getenv("XDG_STATE_HOME"))
	cmd.Stdout = ts.Stdout()
	out, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	seen := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		ts.Logf("%s", lines.Text())
		if !seen && line.MatchString(lines.Text()) {
			seen = true
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
	_ = cmd.Wait() // the exit code is all that it says
	if got := cmd.ProcessState.ExitCode(); got != want || !seen {
		ts.Fatalf("exit code %d, want %d; a line matched: %v", got, want, seen)
	}
}

// serve NAME REGEXP command args... starts a command, waits for a line of its output that matches and puts the first group of it
// into the variable NAME. The command is interrupted when the script ends.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: serve NAME REGEXP command [args]")
	}
	line, err := regexp.Compile(args[1])
	ts.Check(err)
	path, err := exec.LookPath(filepath.Join("../../bin", args[2]))
	ts.Check(err)
	path, err = filepath.Abs(path)
	ts.Check(err)
	ctx, interrupt := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args[3:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = liveBudget
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+ts.Getenv("XDG_STATE_HOME"))
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	found, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := line.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case found <- m[1]:
				default:
				}
			}
		}
	}()
	ts.Defer(func() {
		interrupt()
		<-ended
		_ = cmd.Wait() // says that it was interrupted
	})
	select {
	case value := <-found:
		ts.Setenv(args[0], value)
	case <-ended:
		ts.Fatalf("%s ended without a line that matches %s", args[2:], args[1])
	case <-time.After(liveBudget):
		ts.Fatalf("no line that matches %s within %s", args[1], liveBudget)
	}
}

// get URL TEXT waits until a GET of the URL is answered with 200 and a text that contains TEXT.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: get URL TEXT [STATUS]")
	}
	status := "200"
	if len(args) == 3 {
		status = args[2]
	}
	ctx, cancel := context.WithTimeout(context.Background(), liveBudget)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		seen := ask(ctx, client, args[0])
		if strings.HasPrefix(seen, status+" ") && strings.Contains(seen, args[1]) {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("GET %s: %s; want %s and %q within %s", args[0], seen, status, args[1], liveBudget)
		case <-tick.C:
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return resp.Status + "\n" + string(body)
}
