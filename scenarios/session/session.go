// Package session is one run: bring each lab up, carry its scenarios out, judge, take it down, and write one report.
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
	Dir     string  // the run's own folder; made by Run
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

// Run carries a whole run out. The report is written whatever happens, and returned, unless the error is a *FolderError. Else it
// is a *SetupError, or says that the report could not be written or a lab not be taken down; verdicts are in the report alone.
func Run(ctx context.Context, o Options) (verdict.Report, error) {
	if err := makeFolder(o.Dir); err != nil {
		return verdict.Report{}, &FolderError{Err: err}
	}
	if o.Env.Progress == nil {
		o.Env.Progress = func(clusters.Event) {}
	}
	r := verdict.Report{
		Schema: render.SchemaV1, Version: o.Env.Version, Run: filepath.Base(o.Dir), Seed: o.Seed, Command: o.Command, Control: o.Control,
		Host: hostFacts(), Started: time.Now().UTC(),
	}
	describe(&r, o.Groups)
	var errs, wrong []error
	for _, g := range o.Groups {
		if ctx.Err() != nil {
			r.Scenarios = append(r.Scenarios, notRun(g, g.Scenarios, "the run ended before")...)
			continue
		}
		setup, err := runGroup(ctx, o, g, &r)
		if setup != nil {
			wrong = append(wrong, setup)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(wrong...); err != nil {
		r.Error = err.Error()
		errs = append([]error{&SetupError{Err: err}}, errs...)
	}
	r.Finished = time.Now().UTC()
	verdict.JudgeRun(&r)
	compare(&r, o.Dir)
	return r, errors.Join(append(errs, render.WriteDir(o.Dir, r))...)
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

// runGroup brings a lab up, carries its scenarios out and takes it down, and adds to the report. setup is why the lab could not be
// set up; err is what went wrong beside the verdicts.
func runGroup(ctx context.Context, o Options, g Group, r *verdict.Report) (setup, err error) {
	phases := newPhases(g.Lab.Name, o.Env.Progress)
	o.Env.Lab, o.Env.Progress = g.Lab, phases.hear
	e, up := env.Up(ctx, o.Env)
	defer func() { // also when ctx has ended: the run is over then, the lab is not
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownBudget)
		defer cancel()
		if up != nil && e != nil && ctx.Err() == nil {
			err = errors.Join(err, collect(after, o, e, g.Lab.Name))
		}
		if !o.Keep {
			err = errors.Join(err, takeDown(after, e, phases.hear))
		}
		r.Setup = append(r.Setup, phases.list()...)
	}()
	if up != nil {
		setup = up
		if len(o.Groups) > 1 {
			setup = fmt.Errorf("lab %s: %w", g.Lab.Name, up)
		}
		r.Scenarios = append(r.Scenarios, notRun(g, g.Scenarios, "its lab could not be set up")...)
		return setup, nil
	}
	e.Control = o.Control
	o.Env.Progress = phases.next // what a scenario brings is its own time, not the lab's
	for i, s := range g.Scenarios {
		last := i == len(g.Scenarios)-1
		var out verdict.Scenario
		out, err = carryOut(ctx, o, e, s, !last || e.Found && !o.Keep)
		r.Scenarios = append(r.Scenarios, out)
		if err != nil || ctx.Err() != nil {
			why := "the run ended before"
			if errors.Is(err, errBroken) {
				why = "its lab broke before"
			}
			r.Scenarios = append(r.Scenarios, notRun(g, g.Scenarios[i+1:], why)...)
			break
		}
	}
	return nil, err
}

// notRun are scenarios that never began.
func notRun(g Group, list []catalog.Scenario, why string) []verdict.Scenario {
	var out []verdict.Scenario
	for _, s := range list {
		now := time.Now().UTC()
		v := verdict.Scenario{ID: s.ID, Title: s.Title, Lab: g.Lab.Name, Key: s.Key, Started: now, Finished: now, Error: "not run: " + why}
		verdict.Judge(&v, "")
		out = append(out, v)
	}
	return out
}

func collect(ctx context.Context, o Options, e *env.Env, name string) error {
	if err := e.Collect(ctx, filepath.Join(o.Dir, "diagnostics", name)); err != nil {
		return fmt.Errorf("collect diagnostics: %w", err)
	}
	return nil
}

func takeDown(ctx context.Context, e *env.Env, progress clusters.Progress) error {
	if e == nil || e.Found {
		return nil
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
		begun := time.Now()
		striking, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownBudget)
		defer cancel()
		if err := staged.Strike(striking); err != nil {
			failed = errors.Join(failed, fmt.Errorf("scenario %s: %w", s.ID, err))
		}
		out.Timings["removal"] = time.Since(begun).Seconds()
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
	out.Claims, out.Events, out.Topology = claims, rec.Events(), topology(e, rec)
	sums, sumErr := streams(rec, filepath.Join(o.Dir, dir))
	out.Streams = sums
	return errors.Join(err, sumErr)
}
