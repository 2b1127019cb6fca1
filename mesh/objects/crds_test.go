package objects

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// servedKinds are the plurals of the kinds that this mesh serves. A kind that is not among them has no definition in the cluster,
// so that the API server refuses it by name.
var servedKinds = []string{"destinationrules", "gateways", "virtualservices"}

const source = "kubernetes/customresourcedefinitions.gen.yaml"

// definitions gives a file for each of servedKinds, by its name, out of the istio.io/api module of the build.
func definitions() (map[string][]byte, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}} {{.Version}}", "istio.io/api").Output()
	if err != nil {
		return nil, fmt.Errorf("find module istio.io/api: %w", err)
	}
	dir, version, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok || dir == "" {
		return nil, fmt.Errorf("module istio.io/api is not downloaded: go mod download istio.io/api")
	}
	data, err := os.ReadFile(filepath.Join(dir, source))
	if err != nil {
		return nil, fmt.Errorf("read definitions: %w", err)
	}
	files := map[string][]byte{}
	for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
		var head struct {
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal(doc, &head); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		for _, k := range servedKinds {
			if head.Metadata.Name != k+".networking.istio.io" {
				continue
			}
			header := fmt.Sprintf("# Source: istio.io/api@%s/%s. Copyright Istio Authors, Apache-2.0.\n# Made by go generate in mesh/objects; do not edit.\n", version, source)
			files[k+".yaml"] = append([]byte(header), append(bytes.TrimSpace(doc), '\n')...)
		}
	}
	if len(files) != len(servedKinds) {
		return nil, fmt.Errorf("%s: found %d of the definitions %v", source, len(files), servedKinds)
	}
	return files, nil
}

// TestDefinitionsAreThoseOfTheModule checks the embedded definitions, and with -update writes them.
func TestDefinitionsAreThoseOfTheModule(t *testing.T) {
	want, err := definitions()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		path := filepath.Join("crds", name)
		if *update {
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%s is not what istio.io/api has; run go generate ./mesh/objects", path)
		}
		if !bytes.Contains(CRDs(), data) {
			t.Errorf("CRDs() lacks %s", name)
		}
	}
	entries, err := os.ReadDir("crds")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if want[e.Name()] == nil {
			t.Errorf("crds/%s is of no kind served", e.Name())
		}
	}
}
