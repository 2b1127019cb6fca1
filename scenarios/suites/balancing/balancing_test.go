package balancing_test

import (
	"os"
	"testing"

	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/suites/balancing"
	"github.com/meshproof/meshproof/scenarios/suites/specs"
)

func TestMain(m *testing.M) { specs.Main(m) }

// TestBalancing carries out every scenario of this area on the embedded cluster: with the bundled mesh all claims must pass, and
// without a mesh, or without the policies, each must fail, for the right reason.
func TestBalancing(t *testing.T) {
	specs.Run(t, "balancing", os.Getenv, specs.Control{
		Name: "fails without a mesh", Mesh: "none", Reasons: map[string]expect.Reason{
			"sticky": balancing.StickyNoMesh, "outlier": balancing.OutlierNoMesh,
		},
	}, specs.Control{
		Name: "fails without the policies", LeftOut: true, Reasons: map[string]expect.Reason{
			"sticky": balancing.StickyLeftOut, "outlier": balancing.OutlierLeftOut,
		},
	})
}
