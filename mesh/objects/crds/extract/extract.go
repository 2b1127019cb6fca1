// Package extract finds the custom resource definitions of Istio in the istio.io/api module of the build. Only the update
// command and the test that checks its output use it.
package extract

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Kinds are the plurals of the kinds that this mesh serves. A kind that is not among them has no definition in the cluster,
// so that the API server refuses it by name.
var Kinds = []string{"destinationrules", "gateways", "virtualservices"}

const source = "kubernetes/customresourcedefinitions.gen.yaml"

// Files gives a file for each of Kinds, by its name.
func Files() (map[string][]byte, error) {
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
		for _, k := range Kinds {
			if head.Metadata.Name != k+".networking.istio.io" {
				continue
			}
			header := fmt.Sprintf("# Source: istio.io/api@%s/%s. Copyright Istio Authors, Apache-2.0.\n# Made by go generate in mesh/objects; do not edit.\n", version, source)
			files[k+".yaml"] = append([]byte(header), append(bytes.TrimSpace(doc), '\n')...)
		}
	}
	if len(files) != len(Kinds) {
		return nil, fmt.Errorf("%s: found %d of the definitions %v", source, len(files), Kinds)
	}
	return files, nil
}
