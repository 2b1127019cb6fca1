package multicluster_test

import (
	"os"
	"testing"

	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/suites/multicluster"
	"github.com/meshproof/meshproof/scenarios/suites/specs"
)

func TestMain(m *testing.M) { specs.Main(m) }

// TestMultiCluster carries out every scenario of this area on two embedded clusters: with the bundled mesh all claims must pass, and
// without a mesh, or without the policies, each must fail, for the right reason. With a control plane in each cluster they must pass too;
// that is for the night.
func TestMultiCluster(t *testing.T) {
	specs.Run(t, "multicluster", os.Getenv, specs.Control{
		Name: "fails without a mesh", Mesh: "none", Reasons: map[string]expect.Reason{
			"multicluster": multicluster.NoMesh, "multicluster-two-networks": multicluster.NoMeshTwoNetworks,
		},
	}, specs.Control{
		Name: "fails without the policies", LeftOut: true, Reasons: map[string]expect.Reason{
			"multicluster": multicluster.LeftOut, "multicluster-two-networks": multicluster.LeftOutTwoNetworks,
		},
	}, specs.Control{
		Name: "serves with two control planes", Lab: "multi-primary", Reasons: map[string]expect.Reason{"multicluster": {}},
	}, specs.Control{
		Name: "serves with two control planes on two networks", Lab: "multi-primary-two-networks",
		Reasons: map[string]expect.Reason{"multicluster-two-networks": {}},
	})
}
