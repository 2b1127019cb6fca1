// Package session is one run: bring the lab up, carry scenarios out, judge, write the report, take the lab down.
package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/render"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/suites/traffic"
)

// Options of a run. Env, Scenarios and Dir are required.
type Options struct {
	Env       env.Options
	Scenarios []catalog.Scenario
	Dir       string // the run's own folder; made by Run
	Seed      uint64
	Command   string // how to run it again
	Keep      bool   // leave the lab up
	// Watch is called when a scenario begins, and what it returns when its load is over. May be nil.
	Watch func(s catalog.Scenario, rec *record.Recorder) (done func())
}

// teardownBudget bounds what is done for a lab whose run was interrupted.
const teardownBudget = time.Minute

// SetupError says that the lab could not be set up; nothing was judged.
type SetupError struct{ Err error }

func (e *SetupError) Error() string { return "the lab could not be set up: " + e.Err.Error() }

// Unwrap returns why.
func (e *SetupError) Unwrap() error { return e.Err }

// Run carries a whole run out. The report is written whatever happens, and returned. The error is a *SetupError, or says
// that the report could not be written or the lab not be taken down; verdicts are in the report alone.
func Run(ctx context.Context, o Options) (verdict.Report, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return verdict.Report{}, fmt.Errorf("report folder: %w", err)
	}
	phases := &phases{next: o.Env.Progress}
	o.Env.Progress = phases.hear
	l := o.Env.Lab
	r := verdict.Report{
		Schema: render.SchemaV1, Version: o.Env.Version, Run: filepath.Base(o.Dir), Lab: l.Name, Profile: string(l.Profile),
		Seed: o.Seed, Mesh: l.Mesh.Driver, Cluster: l.Provider, Command: o.Command, Host: hostFacts(), Started: time.Now().UTC(),
	}

	e, err := env.Up(ctx, o.Env)
	var setup error
	if err != nil {
		setup = &SetupError{Err: err}
		r.Error = err.Error()
	} else {
		for _, s := range o.Scenarios {
			r.Scenarios = append(r.Scenarios, carryOut(ctx, o, e, s))
		}
	}
	r.Setup = phases.list()
	r.Finished = time.Now().UTC()
	verdict.JudgeRun(&r)

	// From here on the run is over, also when ctx has ended.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownBudget)
	defer cancel()
	errs := []error{setup}
	if e != nil && (setup != nil || r.Outcome == verdict.Fail || r.Outcome == verdict.Inconclusive) && ctx.Err() == nil {
		if err := e.Collect(after, filepath.Join(o.Dir, "diagnostics")); err != nil {
			errs = append(errs, fmt.Errorf("collect diagnostics: %w", err))
		}
	}
	errs = append(errs, render.WriteDir(o.Dir, r))
	if !o.Keep {
		errs = append(errs, takeDown(after, e, phases.hear))
	}
	return r, errors.Join(errs...)
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

func carryOut(ctx context.Context, o Options, e *env.Env, s catalog.Scenario) verdict.Scenario {
	out := verdict.Scenario{ID: s.ID, Title: s.Title, Started: time.Now().UTC()}
	if err := observe(ctx, &out, o, e, s); err != nil {
		out.Error = err.Error()
	}
	out.Finished = time.Now().UTC()
	verdict.Judge(&out, traffic.GuardID)
	return out
}

// observe runs the body, keeps what it recorded and adds that up.
func observe(ctx context.Context, out *verdict.Scenario, o Options, e *env.Env, s catalog.Scenario) (err error) {
	store, err := evidence.Open(o.Dir)
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
	out.Claims, out.Events, out.Topology = claims, rec.Events(), topology(e, rec)
	sums, sumErr := streams(rec)
	out.Streams = sums
	return errors.Join(err, sumErr)
}

// phases notes how long each phase of the bring-up took.
type phases struct {
	next clusters.Progress

	mu    sync.Mutex
	order []string
	begun map[string]time.Time
	done  map[string]verdict.Phase
}

func (p *phases) hear(e clusters.Event) {
	p.mu.Lock()
	if p.begun == nil {
		p.begun, p.done = map[string]time.Time{}, map[string]verdict.Phase{}
	}
	if _, known := p.begun[e.Phase]; !known {
		p.begun[e.Phase] = time.Now()
		p.order = append(p.order, e.Phase)
	}
	if _, over := p.done[e.Phase]; !over || e.Done {
		ph := verdict.Phase{Name: e.Phase, Detail: e.Detail, Seconds: time.Since(p.begun[e.Phase]).Seconds()}
		if e.Done {
			p.done[e.Phase] = ph
		}
	}
	p.mu.Unlock()
	if p.next != nil {
		p.next(e)
	}
}

func (p *phases) list() []verdict.Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []verdict.Phase
	for _, name := range p.order {
		if ph, ok := p.done[name]; ok {
			out = append(out, ph)
			continue
		}
		out = append(out, verdict.Phase{Name: name, Detail: "not finished", Seconds: time.Since(p.begun[name]).Seconds()})
	}
	return out
}
