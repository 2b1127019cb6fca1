// Package session is one run, step by step: bring each lab up, carry its scenarios out, judge, take it down, and write one report.
package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/render"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
)

// Options of a run. Env, Groups and Dir are required; Env.Lab is not read, each Group has one.
type Options struct {
	Env     env.Options
	Groups  []Group // one lab is up at a time, unless Keep
	Dir     string  // the run's own folder; made by Begin
	Seed    uint64
	Command string // how to run it again
	Keep    bool   // leave the labs up, and in the last scenario's state
	Control bool   // leave out what the scenarios are there to prove: each must fail
	// Watch is called when a scenario begins, and what it returns when its load is over. May be nil.
	Watch func(s catalog.Scenario, rec *record.Recorder) (done func())
}

// teardownBudget bounds what is done for a lab whose run was interrupted.
const teardownBudget = time.Minute

// SetupError says that a lab could not be set up; nothing in it was judged.
type SetupError struct{ Err error }

func (e *SetupError) Error() string { return "the lab could not be set up: " + e.Err.Error() }

// Unwrap returns why.
func (e *SetupError) Unwrap() error { return e.Err }

// FolderError says that Options.Dir cannot take a run; nothing was created.
type FolderError struct{ Err error }

func (e *FolderError) Error() string { return "report folder: " + e.Err.Error() }

// Unwrap returns why.
func (e *FolderError) Unwrap() error { return e.Err }

// Session is a run that is carried out in steps: Begin; of each Part Up, CarryOut for each of its scenarios, and Down; at last Finish,
// which does whatever of it is left. Steps do not overlap, whoever calls them: each waits for the one before it to return.
type Session struct {
	o     Options
	parts []*Part

	step   sync.Mutex // held by the step that is carried out
	begun  bool
	folder error // why Dir cannot take the run
	over   bool
	report verdict.Report
	err    error
}

// New makes a Session of which nothing is done yet.
func New(o Options) *Session {
	if o.Env.Progress == nil {
		o.Env.Progress = func(clusters.Event) {}
	}
	s := &Session{o: o}
	for _, g := range o.Groups {
		s.parts = append(s.parts, &Part{Group: g, session: s, why: runEnded, results: map[string]verdict.Scenario{}})
	}
	return s
}

// Parts returns the labs of the run, in the order of Options.Groups.
func (s *Session) Parts() []*Part { return s.parts }

// Begin makes the run's folder. The error is a *FolderError; nothing else of the run is done then. To begin again does nothing.
func (s *Session) Begin() error {
	s.step.Lock()
	defer s.step.Unlock()
	return s.begin()
}

func (s *Session) begin() error {
	if s.begun {
		return s.folder
	}
	s.begun = true
	if err := makeFolder(s.o.Dir); err != nil {
		s.folder = &FolderError{Err: err}
		return s.folder
	}
	s.report = verdict.Report{
		Schema: render.SchemaV1, Version: s.o.Env.Version, Run: filepath.Base(s.o.Dir), Seed: s.o.Seed, Command: s.o.Command, Control: s.o.Control,
		Host: hostFacts(), Started: time.Now().UTC(),
	}
	describe(&s.report, s.o.Groups)
	return nil
}

// Begun says whether the run's folder was asked for: whether there is anything to finish.
func (s *Session) Begun() bool {
	s.step.Lock()
	defer s.step.Unlock()
	return s.begun
}

// Finish takes down what is still up, judges, and writes the report: whatever happened before, and also when ctx has ended. Scenarios
// that did not run are in it as such. The report is returned, unless the error is a *FolderError. Else the error is a *SetupError,
// or says that the report could not be written or a lab not be taken down; verdicts are in the report alone. To finish again returns
// the same.
func (s *Session) Finish(ctx context.Context) (verdict.Report, error) {
	s.step.Lock()
	defer s.step.Unlock()
	if s.over {
		return s.report, s.err
	}
	s.over = true
	if s.err = s.begin(); s.err != nil {
		return s.report, s.err
	}
	r := &s.report
	var errs, wrong []error
	for _, p := range s.parts {
		_ = p.takeDown(ctx) // which notes the error
		if p.setup != nil {
			wrong = append(wrong, p.explained())
		}
		errs = append(errs, p.errs...)
		r.Setup = append(r.Setup, p.timings...)
		first := len(r.Scenarios)
		for _, sc := range p.Scenarios {
			r.Scenarios = append(r.Scenarios, p.result(sc))
		}
		if p.phases != nil {
			r.Costs = append(r.Costs, cost(p.Lab.Name, p.took, p.rest, r.Scenarios[first:]))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		r.Error = err.Error()
		errs = append([]error{&SetupError{Err: err}}, errs...)
	}
	r.Finished = time.Now().UTC()
	verdict.JudgeRun(r)
	compare(r, s.o.Dir)
	s.err = errors.Join(append(errs, render.WriteDir(s.o.Dir, *r))...)
	return s.report, s.err
}

// makeFolder makes the folder of a run, and in it the one for evidence. A folder that an earlier run wrote to is refused: its
// evidence would mix with this run's.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(dir, render.JSONFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Mkdir(filepath.Join(dir, evidence.Dir), 0o755)
	} else if err == nil {
		err = fs.ErrExist
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s holds an earlier run: choose another, or remove it", dir)
	}
	return err
}

// describe says what the run is on.
func describe(r *verdict.Report, groups []Group) {
	var labs, meshes, providers []string
	for _, g := range groups {
		labs = append(labs, g.Lab.Name)
		meshes = append(meshes, g.Lab.Mesh.Driver)
		providers = append(providers, g.Lab.Provider)
		r.Profile = string(g.Lab.Profile)
	}
	r.Lab, r.Mesh, r.Cluster = strings.Join(labs, ", "), joined(meshes), joined(providers)
}

// joined is the one word that all agree on, or all of them.
func joined(words []string) string {
	for _, w := range words {
		if w != words[0] {
			return strings.Join(words, ", ")
		}
	}
	return strings.Join(words[:min(1, len(words))], "")
}

func collect(ctx context.Context, o Options, e *env.Env, name string) error {
	if err := e.Collect(ctx, filepath.Join(o.Dir, "diagnostics", name)); err != nil {
		return fmt.Errorf("collect diagnostics: %w", err)
	}
	return nil
}

func takeDown(ctx context.Context, e *env.Env, progress clusters.Progress) error {
	if e == nil {
		return nil
	}
	if e.Found {
		if e.Broken() != nil {
			return nil
		}
		return e.Struck(ctx)
	}
	progress(clusters.Event{Phase: "down", Detail: "removing the lab"})
	if err := e.Down(ctx); err != nil {
		return fmt.Errorf("take the lab down: %w", err)
	}
	progress(clusters.Event{Phase: "down", Detail: "nothing is left of lab " + e.Spec.Name, Done: true})
	return nil
}

var errBroken = errors.New("the lab broke")

// carryOut runs one scenario in namespaces of its own, which are removed after it if strike says so. The error is why the lab may
// be in no state for a further scenario.
func carryOut(ctx context.Context, o Options, e *env.Env, s catalog.Scenario, strike bool) (verdict.Scenario, error) {
	out := verdict.Scenario{ID: s.ID, Title: s.Title, Lab: e.Spec.Name, Key: s.Key, Started: time.Now().UTC(), Timings: map[string]float64{}}
	staged, err := e.Stage(ctx, s.ID, s.Apps, o.Env.Progress)
	out.Timings["apps"] = time.Since(out.Started).Seconds()
	if err == nil {
		begun := time.Now()
		err = observe(ctx, &out, o, staged, s)
		out.Timings["scenario"] = time.Since(begun).Seconds()
	}
	if err != nil {
		out.Error = err.Error()
	}
	broke := e.Broken()
	if broke != nil {
		verdict.Void(&out, broke.Error())
	}
	verdict.Judge(&out, expect.GuardID)
	var failed error
	if (out.Outcome == verdict.Fail || out.Outcome == verdict.Inconclusive) && ctx.Err() == nil {
		collecting, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownBudget)
		failed = collect(collecting, o, staged, s.ID)
		cancel()
	}
	if broke != nil { // there is nobody to remove namespaces; the verdict has the details
		failed = errors.Join(failed, fmt.Errorf("scenario %s: %w", s.ID, errBroken))
	} else if strike {
		striking, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownBudget)
		defer cancel()
		if err := staged.Strike(striking); err != nil {
			failed = errors.Join(failed, fmt.Errorf("scenario %s: %w", s.ID, err))
		}
	}
	out.Finished = time.Now().UTC()
	return out, failed
}

// observe runs the body, keeps what it recorded and adds that up.
func observe(ctx context.Context, out *verdict.Scenario, o Options, e *env.Env, s catalog.Scenario) (err error) {
	dir := evidence.ScenarioDir(s.ID)
	store, err := evidence.Open(filepath.Join(o.Dir, dir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	rec := record.New(store)
	if o.Watch != nil {
		defer o.Watch(s, rec)()
	}
	budget := s.Budget[e.Spec.Profile]
	bounded, cancel := context.WithTimeoutCause(ctx, budget, fmt.Errorf("scenario %s took longer than its budget of %s", s.ID, budget))
	defer cancel()
	claims, err := s.Run(bounded, e, rec)
	if err != nil && bounded.Err() != nil {
		err = context.Cause(bounded)
	}
	for i := range claims { // which name the files of their streams, and may share a list
		var files []string
		for _, file := range claims[i].Evidence {
			files = append(files, path.Join(dir, file))
		}
		claims[i].Evidence = files
	}
	out.Claims, out.Events, out.Topology, out.Memory = claims, rec.Events(), topology(e, rec), memory(rec)
	sums, sumErr := streams(rec, filepath.Join(o.Dir, dir))
	out.Streams = sums
	return errors.Join(err, sumErr)
}
