package install

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
)

// An operator that goes is named, and one that was not there is not said to be gone.
func TestRemoveOperators(t *testing.T) {
	o := Options{Revision: "1-20-1", Tag: "0.1.0"}.Default()
	for want, objs := range map[string][]runtime.Object{"operator istio-operator-1-20-1": operatorObjects(o), "": nil} {
		var said []string
		o.Progress = func(component, detail string) { said = append(said, component+" "+detail) }
		c := &client{dyn: fake.NewSimpleDynamicClientWithCustomListKinds(scheme.Scheme, map[schema.GroupVersionResource]string{OperatorResource: "IstioOperatorList"}, objs...)}
		there, err := c.removeOperators(t.Context(), o)
		if got := strings.Join(said, "\n"); err != nil || got != want || there != (want != "") {
			t.Errorf("there %v, error %v, said %q, want %q", there, err, got, want)
		}
	}
}
