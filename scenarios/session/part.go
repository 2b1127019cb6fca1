package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
)

// Why a scenario did not run.
const (
	runEnded   = "the run ended before"
	noLab      = "its lab could not be set up"
	labBroke   = "its lab broke before"
	othersFell = "a scenario before it panicked"
)

// Part is one Group of a Session while it is carried out.
type Part struct {
	Group
	session *Session

	e       *env.Env
	phases  *phases // nil until Up was tried
	setup   error   // why the lab could not be set up
	why     string  // no scenario can run; "" while one can
	results map[string]verdict.Scenario
	down    bool
	timings []verdict.Phase
	begun   time.Time     // Up
	took    time.Duration // from then until it was down, or nothing was left to do for it
	rest    uint64        // its memory right after Up, in bytes; 0 where it was not read
	errs    []error       // what went wrong beside the verdicts
}

// Up brings the lab up. The error is a *FolderError or a *SetupError, or says that the run ended; no scenario runs then.
func (p *Part) Up(ctx context.Context) error {
	p.session.step.Lock()
	defer p.session.step.Unlock()
	if err := p.session.begin(); err != nil {
		return err
	}
	if ctx.Err() != nil || p.session.over {
		return errors.New(runEnded)
	}
	p.begun = time.Now()
	p.phases = newPhases(p.Lab.Name, p.session.o.Env.Progress)
	o := p.session.o.Env
	o.Lab, o.Progress = p.Lab, p.phases.hear
	p.e, p.setup = env.Up(ctx, o)
	if p.setup != nil {
		p.why = noLab
		return &SetupError{Err: p.setup}
	}
	p.e.Control = p.session.o.Control
	p.rest, _ = p.e.Memory(ctx) // a figure beside the verdicts: without it the report has none
	p.why = ""
	return nil
}

// CarryOut runs one of the Part's scenarios and judges it. It does not begin one when the lab is not up or broke, or when ctx has
// ended; the Error of what it returns says so.
func (p *Part) CarryOut(ctx context.Context, s catalog.Scenario) verdict.Scenario {
	p.session.step.Lock()
	defer p.session.step.Unlock()
	if p.why == "" && ctx.Err() != nil {
		p.why = runEnded
	}
	if p.why != "" {
		return p.result(s)
	}
	p.results[s.ID], p.why = p.empty(s, "it panicked"), othersFell // until it returns
	last := s.ID == p.Scenarios[len(p.Scenarios)-1].ID
	out, err := carryOut(ctx, p.session.o, p.e, s, !last || p.e.Found && !p.session.o.Keep)
	p.results[s.ID], p.why = out, ""
	switch {
	case errors.Is(err, errBroken):
		p.why = labBroke
	case err != nil || ctx.Err() != nil:
		p.why = runEnded
	}
	if err != nil {
		p.errs = append(p.errs, err)
	}
	return out
}

// Down collects diagnostics of a lab that could not be set up and takes the lab down, unless it is to stay or somebody else made it;
// also when ctx has ended: the run is over then, the lab is not. To take it down again does nothing.
func (p *Part) Down(ctx context.Context) error {
	p.session.step.Lock()
	defer p.session.step.Unlock()
	return p.takeDown(ctx)
}

func (p *Part) takeDown(ctx context.Context) (err error) {
	if p.phases == nil || p.down {
		return nil
	}
	p.down = true
	if p.why == "" {
		p.why = runEnded
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownBudget)
	defer cancel()
	if p.setup != nil && p.e != nil && ctx.Err() == nil {
		err = collect(after, p.session.o, p.e, p.Lab.Name)
	}
	if !p.session.o.Keep {
		err = errors.Join(err, takeDown(after, p.e, p.phases.hear))
	}
	p.timings, p.took = p.phases.list(), time.Since(p.begun)
	for _, s := range p.Scenarios {
		p.result(s) // those that did not run did not run by this time
	}
	if err != nil {
		p.errs = append(p.errs, err)
	}
	return err
}

// explained is why the lab could not be set up, with its name where there are several.
func (p *Part) explained() error {
	if len(p.session.parts) > 1 {
		return fmt.Errorf("lab %s: %w", p.Lab.Name, p.setup)
	}
	return p.setup
}

// result is what came of a scenario, if only that it did not run.
func (p *Part) result(s catalog.Scenario) verdict.Scenario {
	out, known := p.results[s.ID]
	if !known {
		out = p.empty(s, "not run: "+p.why)
		p.results[s.ID] = out
	}
	return out
}

// empty is a scenario of which there is nothing to judge.
func (p *Part) empty(s catalog.Scenario, why string) verdict.Scenario {
	now := time.Now().UTC()
	v := verdict.Scenario{ID: s.ID, Title: s.Title, Lab: p.Lab.Name, Key: s.Key, Started: now, Finished: now, Error: why}
	verdict.Judge(&v, "")
	return v
}
