package operator

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/objects"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestDecode reads every file of testdata and compares what it says and asks for with the golden file beside it.
func TestDecode(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			plans, diags := Decode(filepath.Base(file), data)
			var b strings.Builder
			for _, d := range diags {
				b.WriteString(string(d.Problem.Severity) + " " + d.String() + "\n")
			}
			for _, p := range plans {
				text, err := yaml.Marshal(settings(p.Options))
				if err != nil {
					t.Fatal(err)
				}
				b.WriteString("---\n" + string(text))
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
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

// settings are options without their functions, which no file can hold.
func settings(o install.Options) map[string]any {
	out := map[string]any{}
	v := reflect.ValueOf(o)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() != reflect.Func && !f.IsZero() {
			out[v.Type().Field(i).Name] = f.Interface()
		}
	}
	return out
}

// An object of the API server has fields that no file has.
func TestFromObject(t *testing.T) {
	object := map[string]any{
		"apiVersion": APIVersion, "kind": Kind,
		"metadata": map[string]any{
			"name": "cp", "namespace": "istio-system", "uid": "x", "generation": int64(3), "creationTimestamp": "2026-11-20T10:00:00Z",
			"managedFields": []any{map[string]any{"manager": "kubectl", "operation": "Update", "fieldsV1": map[string]any{"f:spec": map[string]any{}}}},
		},
		"spec":   map[string]any{"revision": "1-20-1"},
		"status": map[string]any{"status": "HEALTHY"},
	}
	p, problems := FromObject(object)
	if len(problems) > 0 || p.Options.Revision != "1-20-1" || p.Options.Owner.Name != "cp" {
		t.Errorf("plan %+v, problems %v", p.Options, problems)
	}
	object["spec"].(map[string]any)["profile"] = "none"
	if _, problems := FromObject(object); !objects.HasErrors(problems) || problems[0].Field != "spec.profile" {
		t.Errorf("problems %v", problems)
	}
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		plans, diags := Decode("fuzz", data)
		for _, d := range diags {
			if d.Problem.Field == "" || d.Problem.Message == "" {
				t.Errorf("a problem without field or message: %+v", d)
			}
		}
		for _, p := range plans {
			o := p.Options
			o.Tag = "test"
			_ = o.Default() // what is accepted can be installed
		}
	})
}
