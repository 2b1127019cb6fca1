package session

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

func TestCost(t *testing.T) {
	read := func(before, after uint64) verdict.Scenario {
		return verdict.Scenario{Memory: &verdict.LoadMemory{Before: before, After: after}}
	}
	for name, c := range map[string]struct {
		rest      uint64
		scenarios []verdict.Scenario
		want      *verdict.LabMemory
	}{
		"nothing can be read":      {0, []verdict.Scenario{{}}, nil},
		"no scenario began":        {5, nil, &verdict.LabMemory{Rest: 5, Highest: 5}},
		"highest after a load":     {5, []verdict.Scenario{read(6, 9), {}, read(7, 8)}, &verdict.LabMemory{Rest: 5, Highest: 9}},
		"highest before a load":    {5, []verdict.Scenario{read(9, 6)}, &verdict.LabMemory{Rest: 5, Highest: 9}},
		"at rest it was not read":  {0, []verdict.Scenario{read(6, 0)}, &verdict.LabMemory{Highest: 6}},
		"after it, it was smaller": {5, []verdict.Scenario{read(4, 3)}, &verdict.LabMemory{Rest: 5, Highest: 5}},
	} {
		want := verdict.LabCost{Lab: "one", Seconds: 2, Memory: c.want}
		if d := cmp.Diff(want, cost("one", 2*time.Second, c.rest, c.scenarios)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestMemoryOfAScenario(t *testing.T) {
	e := &env.Env{Spec: lab.Default(), Lab: &brittle{}}
	for _, after := range []uint64{0, 70} {
		s := catalog.Scenario{
			ID: map[uint64]string{0: "unread", 70: "read"}[after], Budget: map[lab.Profile]time.Duration{e.Spec.Profile: time.Minute},
			Run: func(_ context.Context, _ *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
				rec.MemoryAfter(after)
				return nil, nil
			},
		}
		got, err := carryOut(t.Context(), Options{Dir: t.TempDir()}, e, s, true)
		if err != nil {
			t.Fatal(err)
		}
		want := &verdict.LoadMemory{After: 70}
		if after == 0 {
			want = nil
		}
		if d := cmp.Diff(want, got.Memory); d != "" {
			t.Error(d)
		}
	}
}
