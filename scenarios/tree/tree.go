// Package tree is the ginkgo tree of sessions, the one that the runner and `go test` both run: a container for each lab, in which
// the lab goes up first and down last, and in it a spec for each scenario, with the scenario's labels.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/formatter"
	"github.com/onsi/ginkgo/v2/types"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/session"
)

// Branch is one session in the tree.
type Branch struct {
	Name    string
	Session *session.Session
	// Expect is called in the spec of each scenario that came to a verdict, or could not, and ends it with ginkgo.Fail or ginkgo.Skip if
	// it is not as it should be.
	Expect func(s verdict.Scenario)
}

// ErrRan says that this process ran its tree already. Ginkgo has one tree a process, and ends the process when it is to run twice.
var ErrRan = errors.New("scenarios were carried out in this process already, and ginkgo runs one tree in a process")

var ran atomic.Bool

// Run carries a session out as the runner does, and returns what its Finish returns. Ginkgo is not heard: what came of the scenarios is
// in the report. ctx ends the run; so do SIGINT and SIGTERM, to which ginkgo listens, but only between steps. The error is, besides,
// ErrRan, of which there is no report, or says that a scenario panicked.
func Run(ctx context.Context, s *session.Session) (verdict.Report, error) {
	if ran.Swap(true) {
		return verdict.Report{}, ErrRan
	}
	var panicked error
	if s.Begin() == nil && ctx.Err() == nil {
		formatter.ColorableStdOut = io.Discard // the one way to have no reporter; and only ginkgo writes to it
		ginkgo.ReportAfterEach(func(r ginkgo.SpecReport) { panicked = errors.Join(panicked, panicOf(r)) })
		config := types.NewDefaultSuiteConfig()
		config.Timeout = 0 // a soak takes longer than any default
		g := &grown{ctx: ctx, interrupted: func(error) {}}
		g.run(heard{}, "meshproof run", []Branch{{Name: "run", Session: s, Expect: asJudged}}, config, types.ReporterConfig{NoColor: true, Succinct: true})
	}
	r, err := s.Finish(ctx)
	return r, errors.Join(panicked, err)
}

// Test carries sessions out as `go test` does, one after the other: ginkgo takes its flags, prints, and fails t. What its flags leave
// out of a session is in the report as not run. The error is ErrRan.
func Test(ctx context.Context, t ginkgo.GinkgoTestingT, suite string, branches ...Branch) error {
	if ran.Swap(true) {
		return ErrRan
	}
	bounded, end := context.WithCancelCause(ctx)
	defer end(nil)
	g := &grown{ctx: bounded, interrupted: end}
	g.run(t, suite, branches)
	for _, b := range branches {
		if !b.Session.Begun() {
			continue // no spec of it was chosen
		}
		if _, err := b.Session.Finish(ctx); err != nil {
			t.Fail() // where its report is a spec that ran, that says so
		}
	}
	return nil
}

// heard is what ginkgo tells that a spec failed; the report has it.
type heard struct{}

func (heard) Fail() {}

// asJudged makes the spec of a scenario what its verdict is.
func asJudged(s verdict.Scenario) {
	switch s.Outcome {
	case verdict.Fail:
		ginkgo.Fail(Describe(s))
	case verdict.Inconclusive, verdict.Skip:
		ginkgo.Skip(Describe(s))
	}
}

// Describe says why a scenario did not come out as it should.
func Describe(s verdict.Scenario) string {
	text := fmt.Sprintf("%s is %s %s\n", s.ID, s.Outcome, s.Error)
	for _, c := range s.Claims {
		if c.Outcome != verdict.Pass {
			text += fmt.Sprintf("  %s %s: %s: %s\n", c.Outcome, c.ID, c.Observed, c.Reason)
		}
	}
	return text
}

// patience is how long ginkgo waits for a step that was interrupted. Steps have bounds of their own, and a lab is to be taken down.
const patience = ginkgo.GracePeriod(24 * time.Hour)

// grown is a tree while it runs.
type grown struct {
	ctx         context.Context   // of every step
	interrupted func(cause error) // called when ginkgo interrupts one
	containers  int
}

func (g *grown) run(t ginkgo.GinkgoTestingT, suite string, branches []Branch, config ...any) {
	for _, b := range branches {
		g.branch(b)
	}
	ginkgo.RunSpecs(t, suite, config...)
}

// branch adds a container for each lab, and one with the spec that writes the report.
func (g *grown) branch(b Branch) {
	for _, p := range b.Session.Parts() {
		ginkgo.Describe(b.Name, g.next(), func() {
			ginkgo.Describe("lab "+p.Lab.Name, ginkgo.Ordered, ginkgo.ContinueOnFailure, func() { g.lab(p, b.Expect) })
		})
	}
	ginkgo.Describe(b.Name, g.next(), func() {
		ginkgo.It("report", patience, g.step(func(ctx context.Context) error {
			_, err := b.Session.Finish(ctx)
			return err
		}))
	})
}

// next is what makes a container run after the one before it: ginkgo shuffles containers, but for their priority.
func (g *grown) next() ginkgo.SpecPriority {
	g.containers++
	return ginkgo.SpecPriority(-g.containers)
}

func (g *grown) lab(p *session.Part, expect func(verdict.Scenario)) {
	ginkgo.BeforeAll(patience, g.step(func(ctx context.Context) error {
		ginkgo.DeferCleanup(patience, g.step(p.Down))
		return p.Up(ctx)
	}))
	for _, s := range p.Scenarios {
		ginkgo.It(s.ID, patience, ginkgo.Label(s.Labels()...), g.step(func(ctx context.Context) error {
			expect(p.CarryOut(ctx, s))
			return nil
		}))
	}
}

// step makes a ginkgo node of f, whose error fails it.
func (g *grown) step(f func(ctx context.Context) error) func(ginkgo.SpecContext) {
	return func(spec ginkgo.SpecContext) {
		defer context.AfterFunc(spec, func() { g.interrupted(context.Cause(spec)) })()
		if err := f(g.ctx); err != nil {
			ginkgo.Fail(err.Error())
		}
	}
}

// panicOf says what a step of the spec panicked with, and where; nil if none did.
func panicOf(r ginkgo.SpecReport) error {
	var errs []error
	said := func(state types.SpecState, f types.Failure) {
		if state.Is(types.SpecStatePanicked) {
			errs = append(errs, fmt.Errorf("%s panicked: %s\n%s", r.LeafNodeText, f.ForwardedPanic, f.Location.FullStackTrace))
		}
	}
	said(r.State, r.Failure)
	for _, more := range r.AdditionalFailures {
		said(more.State, more.Failure)
	}
	return errors.Join(errs...)
}
