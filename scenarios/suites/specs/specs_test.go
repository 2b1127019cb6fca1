package specs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onsi/gomega"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// A control fails for its reason, and for nothing else; without one it passes.
func TestCheckReason(t *testing.T) {
	noMesh := expect.Reason{Fails: map[string]string{"share/": "no mesh"}, Holds: []string{"lost"}}
	fails, holds := verdict.Claim{ID: "share/v1", Outcome: verdict.Fail, Reason: "no mesh in this lab"}, verdict.Claim{ID: "lost", Outcome: verdict.Pass}
	for name, c := range map[string]struct {
		want    expect.Reason
		outcome verdict.Outcome
		claims  []verdict.Claim
		good    bool
	}{
		"as it should be":      {noMesh, verdict.Fail, []verdict.Claim{fails, holds}, true},
		"for another reason":   {noMesh, verdict.Fail, []verdict.Claim{{ID: "share/v1", Outcome: verdict.Fail, Reason: "timeout"}, holds}, false},
		"what must hold fails": {noMesh, verdict.Fail, []verdict.Claim{fails, {ID: "lost", Outcome: verdict.Fail}}, false},
		"passes all the same":  {noMesh, verdict.Pass, []verdict.Claim{fails, holds}, false},
		"no reason, passes":    {expect.Reason{}, verdict.Pass, nil, true},
		"no reason, fails":     {expect.Reason{}, verdict.Fail, nil, false},
		"no reason, skipped":   {expect.Reason{}, verdict.Skip, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			wrong := 0
			gomega.RegisterFailHandler(func(string, ...int) { wrong++ })
			unjudged{}.checkReason(verdict.Scenario{ID: "canary", Outcome: c.outcome, Claims: c.claims}, c.want)
			if (wrong == 0) != c.good {
				t.Errorf("%d expectations failed", wrong)
			}
		})
	}
}

// What must hold in a control, and was not judged for a busy host, is neither green nor red, and noted.
func TestControlIsNotJudged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "unjudged")
	defer func() {
		noted, err := os.ReadFile(file)
		if recover() == nil || err != nil || !strings.Contains(string(noted), "lost is inconclusive") {
			t.Errorf("the spec went on, or noted %q, %v", noted, err)
		}
	}()
	gomega.RegisterFailHandler(func(message string, _ ...int) { t.Error(message) })
	unjudged{file: file}.checkReason(verdict.Scenario{ID: "canary", Outcome: verdict.Fail, Claims: []verdict.Claim{
		{ID: "share/v1", Outcome: verdict.Fail, Reason: "no mesh"},
		{ID: "lost", Outcome: verdict.Inconclusive, Reason: "a reset\nnot counted as a failure: the host stalled"},
	}}, expect.Reason{Fails: map[string]string{"share/": "no mesh"}, Holds: []string{"lost"}})
}
