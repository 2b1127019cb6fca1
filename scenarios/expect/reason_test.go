package expect_test

import (
	"slices"
	"testing"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// Every claim that is named must fail, say why in its own words, or hold.
func TestReason(t *testing.T) {
	const busy = "\nnot counted as a failure: the host stalled"
	reason := expect.Reason{
		Fails: map[string]string{"sticky/": "went from", "form/by-cookie": "no cookie"}, Some: map[string]string{"share/": "no mesh"},
		Holds: []string{"lost", "live/"},
	}
	good := []verdict.Claim{
		0: {ID: "sticky/a", Outcome: verdict.Fail, Reason: "1 went from x to y"}, 1: {ID: "sticky/b", Outcome: verdict.Fail, Reason: "2 went from x to y"},
		2: {ID: "form/by-cookie", Outcome: verdict.Fail, Reason: "no cookie"}, 3: {ID: "form/by-cookie-2", Outcome: verdict.Pass},
		4: {ID: "share/a", Outcome: verdict.Fail, Reason: "no mesh"}, 5: {ID: "share/b", Outcome: verdict.Pass},
		6: {ID: "lost", Outcome: verdict.Pass}, 7: {ID: "live/a", Outcome: verdict.Pass}, 8: {ID: "lost/late", Outcome: verdict.Fail, Reason: "a timeout"},
	}
	without := func(ids ...string) func([]verdict.Claim) []verdict.Claim {
		return func(cs []verdict.Claim) []verdict.Claim {
			return slices.DeleteFunc(cs, func(c verdict.Claim) bool { return slices.Contains(ids, c.ID) })
		}
	}
	is := func(n int, outcome verdict.Outcome, reason string) func([]verdict.Claim) []verdict.Claim {
		return func(cs []verdict.Claim) []verdict.Claim {
			cs[n].Outcome, cs[n].Reason = outcome, reason
			return cs
		}
	}
	for name, c := range map[string]struct {
		change          func([]verdict.Claim) []verdict.Claim
		wrong, unjudged int
	}{
		"as it should be":             {is(6, verdict.Pass, ""), 0, 0},
		"one of several passes":       {is(1, verdict.Pass, "though 1 went from x to y"), 1, 0},
		"one could not be judged":     {is(2, verdict.Inconclusive, "too few"), 1, 0},
		"one on a busy host":          {is(1, verdict.Inconclusive, "2 went from x to y"+busy), 0, 0},
		"one for another reason":      {is(0, verdict.Fail, "likely no mesh"), 1, 0},
		"one is not there":            {without("form/by-cookie"), 1, 0},
		"none of several is there":    {without("sticky/a", "sticky/b"), 1, 0},
		"some: all fail":              {is(5, verdict.Fail, "no mesh"), 0, 0},
		"some: none fails":            {is(4, verdict.Pass, ""), 1, 0},
		"some: for another reason":    {is(5, verdict.Fail, "timeout"), 1, 0},
		"some: on a busy host":        {is(4, verdict.Inconclusive, "no mesh"+busy), 0, 0},
		"some: none is there":         {without("share/a", "share/b"), 1, 0},
		"what must hold fails":        {is(6, verdict.Fail, "reset"), 1, 0},
		"one of what must hold fails": {is(7, verdict.Fail, "late"), 1, 0},
		"what must hold is skipped":   {is(6, verdict.Skip, "no mesh"), 1, 0},
		"what must hold is too short": {is(6, verdict.Inconclusive, "too few"), 1, 0},
		"what must hold is renamed":   {without("lost"), 1, 0},
		"what must hold, busy host":   {is(6, verdict.Inconclusive, "reset"+busy), 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			wrong, unjudged := reason.Check(c.change(slices.Clone(good)))
			if len(wrong) != c.wrong || len(unjudged) != c.unjudged {
				t.Errorf("wrong %q, not judged %q", wrong, unjudged)
			}
		})
	}
	for name, r := range map[string]expect.Reason{"fails": {Fails: reason.Fails}, "some": {Some: reason.Some}, "holds": {Holds: reason.Holds}} {
		if r.None() != (name == "holds") {
			t.Errorf("%s alone: none is %t", name, r.None())
		}
	}
}
