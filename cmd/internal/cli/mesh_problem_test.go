package cli

import (
	"testing"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/objects"
)

func TestObjectProblemSaysWhatIsInForce(t *testing.T) {
	p := model.ObjectProblem{
		Object:  model.Key{Kind: "VirtualService", Namespace: "hello", Name: "typo"},
		Problem: objects.Problem{Severity: "error", Field: "spec.http[0].fault", Message: "field fault is not supported", Fix: "remove it"},
	}
	const what = "VirtualService hello/typo: error: spec.http[0].fault: field fault is not supported; remove it"
	for inForce, want := range map[string]string{
		"none":     what + " (not in force)",
		"previous": what + " (its previous version is in force)",
		"this":     what,
	} {
		p.InForce = inForce
		if got := objectProblem(p); got != want {
			t.Errorf("%s: %q, want %q", inForce, got, want)
		}
	}
}
