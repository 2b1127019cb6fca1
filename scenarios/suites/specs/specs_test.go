package specs

import (
	"slices"
	"testing"

	"github.com/onsi/gomega"

	"github.com/meshproof/meshproof/reports/verdict"
)

// A negative control holds when the claim fails for its reason and what must hold is there and passes.
func TestCheckReason(t *testing.T) {
	want := Reason{Claim: "share/", Says: "no mesh", Holds: []string{"lost"}}
	fails := verdict.Claim{ID: "share/v1", Outcome: verdict.Fail, Reason: "no mesh in this lab"}
	for name, c := range map[string]struct {
		claims []verdict.Claim
		good   bool
	}{
		"as it should be":            {[]verdict.Claim{fails, {ID: "lost", Outcome: verdict.Pass}}, true},
		"for another reason":         {[]verdict.Claim{{ID: "share/v1", Outcome: verdict.Fail, Reason: "timeout"}, {ID: "lost", Outcome: verdict.Pass}}, false},
		"nothing of it failed":       {[]verdict.Claim{{ID: "share/v1", Outcome: verdict.Pass}, {ID: "lost", Outcome: verdict.Pass}}, false},
		"what must hold failed":      {[]verdict.Claim{fails, {ID: "lost", Outcome: verdict.Fail}}, false},
		"what must hold was renamed": {[]verdict.Claim{fails, {ID: "losses", Outcome: verdict.Pass}}, false},
		"what must hold was skipped": {[]verdict.Claim{fails, {ID: "lost", Outcome: verdict.Skip}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			wrong := 0
			gomega.RegisterFailHandler(func(string, ...int) { wrong++ })
			checkReason(verdict.Scenario{ID: "canary", Outcome: verdict.Fail, Claims: c.claims}, want)
			if (wrong == 0) != c.good {
				t.Errorf("%d expectations failed", wrong)
			}
		})
	}
}

// Every claim that is named must fail, and say why in its own words.
func TestUnfailed(t *testing.T) {
	fails := map[string]string{"sticky/": "went from", "form/by-cookie": "no cookie"}
	good := []verdict.Claim{
		{ID: "sticky/a", Outcome: verdict.Fail, Reason: "1 went from x to y"}, {ID: "sticky/b", Outcome: verdict.Fail, Reason: "2 went from x to y"},
		{ID: "form/by-cookie", Outcome: verdict.Fail, Reason: "no cookie"}, {ID: "form/by-cookie-2", Outcome: verdict.Pass},
	}
	for name, c := range map[string]struct {
		change func([]verdict.Claim) []verdict.Claim
		wrong  int
	}{
		"as it should be":         {func(cs []verdict.Claim) []verdict.Claim { return cs }, 0},
		"one of several passes":   {func(cs []verdict.Claim) []verdict.Claim { cs[1].Outcome = verdict.Pass; return cs }, 1},
		"one could not be judged": {func(cs []verdict.Claim) []verdict.Claim { cs[2].Outcome = verdict.Inconclusive; return cs }, 1},
		"one on a busy host": {func(cs []verdict.Claim) []verdict.Claim {
			cs[1].Outcome, cs[1].Reason = verdict.Inconclusive, cs[1].Reason+"\nnot counted as a failure: the host stalled"
			return cs
		}, 0},
		"one for another reason":   {func(cs []verdict.Claim) []verdict.Claim { cs[0].Reason = "likely no mesh"; return cs }, 1},
		"one is not there":         {func(cs []verdict.Claim) []verdict.Claim { return append(cs[:2:2], cs[3]) }, 1},
		"none of several is there": {func(cs []verdict.Claim) []verdict.Claim { return cs[2:] }, 1},
	} {
		if got := unfailed(c.change(slices.Clone(good)), fails); len(got) != c.wrong {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Without a reason to fail a scenario must pass.
func TestCheckNoReason(t *testing.T) {
	for outcome, good := range map[verdict.Outcome]bool{verdict.Pass: true, verdict.Fail: false, verdict.Skip: false, verdict.Inconclusive: false} {
		wrong := 0
		gomega.RegisterFailHandler(func(string, ...int) { wrong++ })
		checkReason(verdict.Scenario{ID: "multicluster", Outcome: outcome}, Reason{})
		if (wrong == 0) != good {
			t.Errorf("%s: %d expectations failed", outcome, wrong)
		}
	}
}
