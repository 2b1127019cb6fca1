package traffic_test

import (
	"os"
	"testing"

	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/suites/specs"
	"github.com/meshproof/meshproof/scenarios/suites/traffic"
)

func TestMain(m *testing.M) { specs.Main(m) }

// TestTraffic carries out every scenario of this area on the embedded cluster: with the bundled mesh all claims must pass,
// and without a mesh, or with the weights left as they are, each must fail, for the right reason.
func TestTraffic(t *testing.T) {
	specs.Run(t, "traffic", os.Getenv, specs.Control{
		Name: "fails without a mesh", Mesh: "none", Reasons: map[string]expect.Reason{"canary": traffic.CanaryNoMesh},
	}, specs.Control{
		Name: "fails with weights that never change", LeftOut: true, Reasons: map[string]expect.Reason{"canary": traffic.CanaryLeftOut},
	})
}
