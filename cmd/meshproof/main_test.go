package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// beInterrupted is the environment variable that makes the test's binary a process that waits for signals.
const beInterrupted = "MESHPROOF_BE_INTERRUPTED"

// waitForSignals says when it is ready, and after the first signal; it never ends by itself.
func waitForSignals() {
	ctx, stop := interruptible()
	defer stop()
	others := make(chan os.Signal, 1) // as ginkgo listens
	signal.Notify(others, os.Interrupt, syscall.SIGTERM)
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println("first")
	for {
		<-others
	}
}

func TestSecondSignalEndsTheProgram(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), beInterrupted+"=yes")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	for _, want := range []string{"ready", "first"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	again := time.NewTicker(10 * time.Millisecond) // the default comes back soon after the context ended
	defer again.Stop()
	late := time.After(liveBudget)
	for {
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != os.Interrupt {
				t.Errorf("ended with %v, want by the signal", err)
			}
			return
		case <-again.C:
			_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		case <-late:
			_ = cmd.Process.Kill()
			<-ended
			t.Fatal("further signals did not end it")
		}
	}
}
