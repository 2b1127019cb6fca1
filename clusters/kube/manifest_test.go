package kube

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	docs, err := parse(Manifest{Name: "m.yaml", YAML: []byte(`# a comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
---
# nothing
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Secret
  metadata: {name: b, namespace: c}
- {apiVersion: v1, kind: Pod, metadata: {name: d}}
`)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range docs {
		got = append(got, d.at("")+" "+d.String())
	}
	want := "m.yaml:3 ConfigMap a; m.yaml:12 Secret c/b; m.yaml:15 Pod d"
	if s := strings.Join(got, "; "); s != want {
		t.Errorf("%s, want %s", s, want)
	}
}

func TestParseErrors(t *testing.T) {
	for name, c := range map[string]struct{ yaml, want string }{
		"syntax":        {"a: 1\n\tb: 2\n", "m.yaml:2: "},
		"second syntax": {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n---\n a: [\n", "m.yaml:"},
		"no object":     {"\n- a\n", "m.yaml:2: want an object"},
		"no version":    {"kind: Pod\nmetadata: {name: x}\n", "m.yaml:1: apiVersion is missing"},
		"no kind":       {"apiVersion: v1\nmetadata: {name: x}\n", "m.yaml:1: "},
		"no name":       {"apiVersion: v1\nkind: Pod\n", "m.yaml:1: Pod: metadata.name is missing"},
		"key twice":     {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nkind: Job\n", "m.yaml:"},
		"bad list item": {"apiVersion: v1\nkind: List\nitems:\n- 7\n", "m.yaml:4: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(Manifest{Name: "m.yaml", YAML: []byte(c.yaml)})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%v, want it to begin with %q", err, c.want)
			}
		})
	}
}

func TestFieldLine(t *testing.T) {
	docs, err := parse(Manifest{Name: "m.yaml", YAML: []byte(`apiVersion: v1
kind: Service
metadata:
  name: x
  annotations:
    a.b/c: d
spec:
  ports:
  - port: 1
  - name: two
    port: 2
`)})
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"": "m.yaml:1", "spec": "m.yaml:7", "spec.ports[1].port": "m.yaml:11", "spec.ports[0].name": "m.yaml:9", "spec.ports[7].name": "m.yaml:8",
		"metadata.annotations[a.b/c]": "m.yaml:6", "nonesuch.x": "m.yaml:1", "spec.ports[": "m.yaml:8",
	} {
		if got := docs[0].at(field); got != want {
			t.Errorf("%s: %s, want %s", field, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: x}}\n"), "items[0].metadata")
	f.Add([]byte("&a [*a]"), "[")
	f.Fuzz(func(t *testing.T, y []byte, field string) {
		docs, err := parse(Manifest{Name: "m", YAML: y})
		if err != nil {
			return
		}
		for _, d := range docs {
			if d.object.GetName() == "" || d.object.GetKind() == "" {
				t.Errorf("accepted an object without name or kind: %v", d.object)
			}
			d.at(field)
		}
	})
}
