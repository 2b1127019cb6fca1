package diff_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/reports/diff"
	"github.com/meshproof/meshproof/reports/verdict"
)

func run(outcome verdict.Outcome, share string, p99 float64) verdict.Report {
	return verdict.Report{Mesh: "bundled", Profile: "quick", Scenarios: []verdict.Scenario{{
		ID: "canary", Outcome: outcome, Key: "share",
		Claims: []verdict.Claim{
			{ID: "share", Statement: "share of v2", Observed: share, Outcome: verdict.Pass}, {ID: "lost", Statement: "nothing lost", Observed: "0", Outcome: outcome},
		},
		Streams: []verdict.Stream{{Name: "mesh", Latency: verdict.Quantiles{P99: p99}}},
	}}}
}

func TestRuns(t *testing.T) {
	for name, c := range map[string]struct {
		before, after verdict.Report
		want          []verdict.Change
	}{
		"the same":        {run("pass", "90%", .01), run("pass", "90%", .01), nil},
		"a little slower": {run("pass", "90%", .01), run("pass", "90%", .014), nil},
		"another number":  {run("pass", "90%", .01), run("pass", "91%", .01), []verdict.Change{{Scenario: "canary", What: "share of v2", Before: "90%", After: "91%"}}},
		"much slower":     {run("pass", "90%", .01), run("pass", "90%", .03), []verdict.Change{{Scenario: "canary", What: "p99 of mesh", Before: "10.0 ms", After: "30.0 ms (x 3)"}}},
		"much faster":     {run("pass", "90%", .03), run("pass", "90%", .01), []verdict.Change{{Scenario: "canary", What: "p99 of mesh", Before: "30.0 ms", After: "10.0 ms (x 0.33)"}}},
		"broken": {run("pass", "90%", .01), run("fail", "90%", .01), []verdict.Change{
			{Scenario: "canary", What: "outcome", Before: "pass", After: "fail"}, {Scenario: "canary", What: "nothing lost", Before: "pass", After: "fail"},
		}},
		"nothing before": {verdict.Report{}, run("pass", "90%", .01), nil},
	} {
		if d := cmp.Diff(c.want, diff.Runs(c.before, c.after)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestComparable(t *testing.T) {
	a, b := run("pass", "", 0), run("fail", "", 0)
	if !diff.Comparable(a, b) {
		t.Error("the same question is not comparable")
	}
	b.Control = true
	if diff.Comparable(a, b) {
		t.Error("a control is compared with a run")
	}
}
