package upgrade_test

import (
	"os"
	"testing"

	"github.com/meshproof/meshproof/scenarios/suites/specs"
)

func TestMain(m *testing.M) { specs.Main(m) }

// TestUpgrade carries the upgrade out on the embedded cluster. Without a mesh, and with namespaces that keep asking for the old
// revision, it must fail, for the right reason. Namespaces that keep asking lose nothing all the same; without a mesh the steps are too
// quick for enough requests to say so.
func TestUpgrade(t *testing.T) {
	specs.Run(t, "upgrade", os.Getenv, specs.Control{
		Name: "fails without a mesh", Mesh: "none", Reasons: map[string]specs.Reason{
			"upgrade": {Claim: "moved/", Says: "no mesh in this lab", Holds: []string{"steps"}},
		},
	}, specs.Control{
		Name: "fails with namespaces that ask for the old revision", LeftOut: true, Reasons: map[string]specs.Reason{
			"upgrade": {Claim: "moved/", Says: "was on revision 1-20-1 after", Holds: []string{"lost", "refused", "moved/istio-ingressgateway"}},
		},
	})
}
