package upgrade_test

import (
	"os"
	"testing"

	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/suites/specs"
	"github.com/meshproof/meshproof/scenarios/suites/upgrade"
)

func TestMain(m *testing.M) { specs.Main(m) }

// TestUpgrade carries the upgrade out on the embedded cluster. Without a mesh, and with namespaces that keep asking for the old
// revision, it must fail, for the right reason.
func TestUpgrade(t *testing.T) {
	specs.Run(t, "upgrade", os.Getenv, specs.Control{
		Name: "fails without a mesh", Mesh: "none", Reasons: map[string]expect.Reason{"upgrade": upgrade.NoMesh},
	}, specs.Control{
		Name: "fails with namespaces that ask for the old revision", LeftOut: true, Reasons: map[string]expect.Reason{"upgrade": upgrade.LeftOut},
	})
}
