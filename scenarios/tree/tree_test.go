package tree_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/onsi/ginkgo/v2"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/session"
	"github.com/meshproof/meshproof/scenarios/tree"
)

// told is a provider of labs that have nothing in them, which prints what is asked of it.
type told struct{ clusters.Provider }

func (told) Up(_ context.Context, spec clusters.Spec, _ clusters.Progress) (clusters.Lab, bool, error) {
	fmt.Println("up", spec.Lab)
	if spec.Lab == "broken" {
		return nil, false, errors.New("no such luck")
	}
	return hollow{name: spec.Lab}, true, nil
}

func (told) Down(_ context.Context, name string) error {
	fmt.Println("down", name)
	return nil
}

type hollow struct {
	clusters.Lab
	clusters.Cluster
	name string
}

func (h hollow) Name() string                                { return h.name }
func (h hollow) Clusters() []clusters.Cluster                { return []clusters.Cluster{h} }
func (h hollow) LoadImages(context.Context, ...string) error { return nil }
func (h hollow) RESTConfig() (*rest.Config, error) {
	return &rest.Config{Host: "http://127.0.0.1:1"}, nil
}

// body is what a scenario does; it returns the outcome of its one claim.
type body func(ctx context.Context) (verdict.Outcome, error)

func ends(o verdict.Outcome) body {
	return func(context.Context) (verdict.Outcome, error) { return o, nil }
}

type named struct {
	id string
	do body
}

func group(name string, list ...named) session.Group {
	g := session.Group{Lab: &lab.Lab{
		Name: name, Profile: lab.Quick, Clusters: []lab.Cluster{{Name: "a", Nodes: 1}}, Mesh: lab.Mesh{Driver: "bundled", Deferred: true},
	}}
	for _, n := range list {
		g.Scenarios = append(g.Scenarios, catalog.Scenario{
			ID: n.id, Area: "letters", Lab: name, Budget: map[lab.Profile]time.Duration{lab.Quick: time.Minute},
			Run: func(ctx context.Context, _ *env.Env, _ *record.Recorder) ([]verdict.Claim, error) {
				fmt.Println(" ", n.id)
				o, err := n.do(ctx)
				return []verdict.Claim{{ID: "claim", Outcome: o, Reason: "why not", Firm: true}}, err
			},
		})
	}
	return g
}

// options are for a run in the working directory.
func options(dir string, groups ...session.Group) session.Options {
	for _, name := range env.Images("bundled") {
		if err := os.WriteFile(name, []byte(name), 0o700); err != nil {
			panic(err)
		}
	}
	return session.Options{Groups: groups, Dir: dir, Env: env.Options{Provider: told{}, Bin: ".", Cache: "cache", Version: "test"}}
}

// run carries a run out and prints what came of it.
func run(ctx context.Context, o session.Options) {
	r, err := tree.Run(ctx, session.New(o))
	for _, s := range r.Scenarios {
		fmt.Println(s.ID, s.Outcome, s.Error)
	}
	text, more, _ := strings.Cut(fmt.Sprint(err), "\n")
	fmt.Println("error:", text)
	if more != "" {
		fmt.Println("stack:", strings.Contains(more, "tree_test.go:"))
	}
	_, err = os.Stat(filepath.Join(o.Dir, "report.json"))
	fmt.Println("report:", err == nil)
}

// interrupted is a context as a main makes it.
func interrupted() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	return ctx
}

// interrupt sends the process as many signals and waits until each arrived.
func interrupt(times int) {
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, os.Interrupt)
	for range times {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			panic(err)
		}
		<-heard
	}
}

func interruptedBody(times int) body {
	return func(ctx context.Context) (verdict.Outcome, error) {
		interrupt(times)
		<-ctx.Done()
		return verdict.Pass, ctx.Err()
	}
}

// red is a test that prints that it failed.
type red struct{}

func (red) Fail() { fmt.Println("FAIL") }

var processes = map[string]func(){
	"verdicts": func() {
		o := options("out", group("one", named{"a", ends(verdict.Pass)}, named{"b", ends(verdict.Fail)}, named{"c", ends(verdict.Inconclusive)}),
			group("broken", named{"d", ends(verdict.Pass)}, named{"e", ends(verdict.Pass)}), group("two", named{"f", ends(verdict.Pass)}))
		run(context.Background(), o)
		_, err := tree.Run(context.Background(), session.New(options("again")))
		fmt.Println("again:", errors.Is(err, tree.ErrRan))
	},
	"panic": func() {
		run(context.Background(), options("out", group("one", named{"a", func(context.Context) (verdict.Outcome, error) { panic("at the disco") }},
			named{"b", ends(verdict.Pass)}), group("two", named{"c", ends(verdict.Pass)})))
	},
	"interrupted": func() {
		run(interrupted(), options("out", group("one", named{"a", interruptedBody(1)}, named{"b", ends(verdict.Pass)}), group("two", named{"c", ends(verdict.Pass)})))
	},
	"interrupted by others": func() { // without a main that listens
		run(context.Background(), options("out", group("one", named{"a", func(context.Context) (verdict.Outcome, error) {
			noticed := make(chan struct{})
			once := sync.OnceFunc(func() { close(noticed) })
			defer ginkgo.AttachProgressReporter(func() string { once(); return "" })() // ginkgo asks for progress when it is interrupted
			interrupt(1)
			<-noticed
			return verdict.Pass, nil
		}}, named{"b", ends(verdict.Pass)}), group("two", named{"c", ends(verdict.Pass)})))
	},
	"interrupted often": func() {
		run(interrupted(), options("out", group("one", named{"a", interruptedBody(5)}, named{"b", ends(verdict.Pass)})))
	},
	"ended before": func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		run(ctx, options("out", group("one", named{"a", ends(verdict.Pass)})))
	},
	"taken": func() {
		if err := os.MkdirAll("out/evidence", 0o700); err != nil {
			panic(err)
		}
		run(context.Background(), options("out", group("one", named{"a", ends(verdict.Pass)})))
	},
	"test interrupted": func() {
		s := session.New(options("out", group("one", named{"a", interruptedBody(1)}, named{"b", ends(verdict.Pass)}), group("two", named{"c", ends(verdict.Pass)})))
		fmt.Println("error:", tree.Test(context.Background(), red{}, "suite", tree.Branch{Name: "first", Session: s, Expect: func(verdict.Scenario) {}}))
		r, err := s.Finish(context.Background())
		fmt.Println(r.Scenarios[0].Error, "|", r.Scenarios[1].Error, "|", r.Scenarios[2].Error, "|", err)
	},
	"test": func() {
		var sessions []*session.Session
		branch := func(name string) tree.Branch {
			s := session.New(options(name, group(name+"-one", named{"a", ends(verdict.Pass)}), group(name+"-two", named{"b", ends(verdict.Fail)})))
			sessions = append(sessions, s)
			return tree.Branch{Name: name, Session: s, Expect: func(s verdict.Scenario) {
				if s.Outcome != verdict.Pass {
					ginkgo.Fail("not as expected: " + tree.Describe(s))
				}
			}}
		}
		err := tree.Test(context.Background(), red{}, "suite", branch("first"), branch("second"))
		fmt.Println("error:", err, "again:", tree.Test(context.Background(), red{}, "suite"))
		for _, s := range sessions {
			r, err := s.Finish(context.Background())
			fmt.Println(r.Run, r.Outcome, err)
		}
	},
}

func TestRun(t *testing.T) {
	for name, want := range map[string]string{
		"verdicts": `up one
  a
  b
  c
down one
up broken
up two
  f
down two
a pass 
b fail 
c inconclusive 
d inconclusive not run: its lab could not be set up
e inconclusive not run: its lab could not be set up
f pass 
error: the lab could not be set up: lab broken: no such luck
report: true
again: true
`,
		"panic": `up one
  a
down one
up two
  c
down two
a inconclusive it panicked
b inconclusive not run: a scenario before it panicked
c pass 
error: a panicked: at the disco
stack: true
report: true
`,
		"interrupted": `up one
  a
down one
a inconclusive interrupt signal received
b inconclusive not run: the run ended before
c inconclusive not run: the run ended before
error: <nil>
report: true
`,
		"interrupted by others": `up one
  a
down one
a pass 
b inconclusive not run: the run ended before
c inconclusive not run: the run ended before
error: <nil>
report: true
`,
		"interrupted often": `up one
  a
down one
a inconclusive interrupt signal received
b inconclusive not run: the run ended before
error: <nil>
report: true
`,
		"ended before": `a inconclusive not run: the run ended before
error: <nil>
report: true
`,
		"taken": `error: report folder: out holds an earlier run: choose another, or remove it
report: false
`,
	} {
		t.Run(name, func(t *testing.T) {
			got, stderr := process(t, name)
			if d := cmp.Diff(want, got); d != "" || stderr != "" {
				t.Errorf("-want +got:\n%s\nstderr: %s", d, stderr)
			}
		})
	}
}

func TestTest(t *testing.T) {
	got, stderr := process(t, "test")
	for _, want := range []string{
		"Running Suite: suite", "not as expected: b is fail", "FAIL\n", "error: <nil> again: " + tree.ErrRan.Error(), "first fail <nil>\nsecond fail <nil>\n",
		"Ran 6 of 6 Specs", "4 Passed", "2 Failed",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if !regexp.MustCompile(`(?s)up first-one.*  a.*down first-one.*up first-two.*  b.*down first-two`).MatchString(got) {
		t.Error("labs were not one after the other")
	}
	if t.Failed() {
		t.Logf("stdout: %s\nstderr: %s", got, stderr)
	}
}

// Of a test that is interrupted the lab is taken down and the report written, too.
func TestTestInterrupted(t *testing.T) {
	got, _ := process(t, "test interrupted")
	want := "Interrupted by User | not run: the run ended before | not run: the run ended before | <nil>\n"
	if !strings.HasSuffix(got, want) || !strings.Contains(got, "down one\n") || strings.Contains(got, "up two") || !strings.Contains(got, "FAIL\n") {
		t.Errorf("got %s", got)
	}
}

// What is left out by ginkgo's own flags makes no lab, and no report where that is all of a session.
func TestFocus(t *testing.T) {
	got, _ := process(t, "test", "-ginkgo.focus=first lab first-two")
	if strings.Contains(got, "up first-one") || !strings.Contains(got, "up first-two") || strings.Contains(got, "up second") {
		t.Errorf("labs are not those chosen: %s", got)
	}
	got, _ = process(t, "test", "-ginkgo.label-filter=lab:second-one")
	if strings.Contains(got, "up first") || !strings.Contains(got, "up second-one") || strings.Contains(got, "up second-two") {
		t.Errorf("labs are not those labelled: %s", got)
	}
}

// process runs one of the processes in a folder of its own.
func process(t *testing.T, name string, args ...string) (stdout, stderr string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), child+"="+name)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func TestSelect(t *testing.T) {
	list := []catalog.Scenario{
		{ID: "a", Area: "x", Lab: "one", Features: []catalog.Feature{catalog.Revisions, catalog.IngressGateway}},
		{ID: "b", Area: "x", Lab: "two", Features: []catalog.Feature{catalog.IngressGateway}},
		{ID: "c", Area: "y", Lab: "one", Features: []catalog.Feature{catalog.MutualTLS}},
	}
	for filter, want := range map[string]string{
		"":                                 "abc",
		"ingress-gateway":                  "ab",
		"ingress-gateway && !revisions":    "b",
		"lab:one && (area:y || revisions)": "ac",
		"/^mutual/ , lab: containsAny two": "bc",
		"nothing":                          `error: "nothing" matches no scenario; the labels are area:x, area:y, ingress-gateway, lab:one, lab:two, mutual-tls, revisions`,
		"lab:one (":                        `error: "lab:one (": Invalid token '('.`,
		"(lab:one":                         `error: "(lab:one": Mismatched '(' - could not find matching ')'.`,
		"lab:one ||":                       `error: "lab:one ||": Unexpected EOF.`,
	} {
		got, err := tree.Select(list, filter)
		ids := ""
		for _, s := range got {
			ids += s.ID
		}
		if err != nil {
			ids = "error: " + err.Error()
		}
		if ids != want {
			t.Errorf("%q: got %s, want %s", filter, ids, want)
		}
	}
}
