package install

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestManifests(t *testing.T) {
	for name, o := range map[string]Options{
		"default":  {Tag: "0.1.0"},
		"revision": {Tag: "0.2.0", Revision: "1-20-1", Namespace: "mesh-system", ClusterID: "east", TrustDomain: "east.example"},
	} {
		t.Run(name, func(t *testing.T) {
			o = o.Default()
			if err := o.validate(); err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, obj := range append(controlPlane(o), gateway(o)...) {
				u, err := toUnstructured(obj)
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := kinds[u.GetKind()]; !ok {
					t.Errorf("kind %s cannot be applied", u.GetKind())
				}
				text, err := yaml.Marshal(u.Object)
				if err != nil {
					t.Fatal(err)
				}
				b.WriteString("---\n" + string(text))
			}
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestOptionsNameTheField(t *testing.T) {
	err := Options{Revision: "1.20.1"}.Default().validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"tag:", `revision: "1.20.1" is not a DNS label`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestByName(t *testing.T) {
	for _, d := range Drivers() {
		if got, err := ByName(d.Name()); err != nil || got != d {
			t.Errorf("%s: %v, %v", d.Name(), got, err)
		}
	}
	if _, err := ByName("istoi"); err == nil || !strings.Contains(err.Error(), "bundled") {
		t.Errorf("unknown mesh: %v does not list what there is", err)
	}
}
