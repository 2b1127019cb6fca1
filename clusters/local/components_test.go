package local

import (
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/clusters"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestNodeFiles compares the components and the configuration of a cluster's two nodes with what was reviewed.
func TestNodeFiles(t *testing.T) {
	dir := t.TempDir()
	st, err := plan(dir, clusters.Spec{Lab: "demo", Clusters: []clusters.ClusterSpec{{Name: "east", Nodes: 2}}}, "/bin", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	c := &st.Clusters[0]
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if err := writeNode(c, n, "meshproof/demo"); err != nil {
			t.Fatal(err)
		}
		list, err := json.MarshalIndent(components(c, n), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		text := "== components\n" + string(list) + "\n"
		err = filepath.WalkDir(filepath.Join(n.Dir, "etc"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			text += "== " + strings.TrimPrefix(path, n.Dir+"/") + "\n" + string(b) + "\n"
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", n.Name+".golden")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), text); d != "" {
			t.Errorf("%s (go test -run NodeFiles -update writes it anew):\n%s", golden, d)
		}
	}
}
