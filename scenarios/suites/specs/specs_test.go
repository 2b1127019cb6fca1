package specs

import (
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
