package lab_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/fixtures/labs"
	"github.com/meshproof/meshproof/scenarios/lab"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestDefault(t *testing.T) {
	want := &lab.Lab{
		APIVersion: lab.APIVersion, Kind: lab.Kind, Name: "one", Provider: "local", Profile: lab.Quick,
		Networks: []string{"network1"},
		Clusters: []lab.Cluster{{Name: "east", Nodes: 1, Network: "network1"}},
		Mesh:     lab.Mesh{Driver: "bundled", Revision: "default"},
		Apps:     []string{"bookinfo", "hello"},
	}
	if diff := cmp.Diff(want, lab.Default()); diff != "" {
		t.Errorf("the embedded lab (-want +got):\n%s", diff)
	}
}

// Every embedded file is a valid lab that has the file's name.
func TestEmbedded(t *testing.T) {
	for _, name := range labs.Names() {
		if l, err := lab.Embedded(name); err != nil || l.Name != name {
			t.Errorf("%s.yaml: lab %+v, error %v", name, l, err)
		}
	}
	if _, err := lab.Embedded("nowhere"); err == nil || !strings.Contains(err.Error(), `"nowhere"; there are`) {
		t.Errorf("an absent file: %v", err)
	}
}

func TestParseDefaults(t *testing.T) {
	l, err := lab.Parse("x.yaml", []byte("apiVersion: meshproof.dev/v1\nkind: Lab\nname: small\nmesh: {driver: none}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := lab.Default()
	want.Name, want.Mesh.Driver = "small", "none"
	if diff := cmp.Diff(want, l); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestParseTopology(t *testing.T) {
	l, err := lab.Parse("x.yaml", []byte(`apiVersion: meshproof.dev/v1
kind: Lab
name: two
clusters:
  - {primary: west, name: east, nodes: 2, network: network2}
  - {name: west}
networks: [network1, network2]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []lab.Cluster{
		{Name: "east", Nodes: 2, Network: "network2", Primary: "west"},
		{Name: "west", Nodes: 1, Network: "network1"},
	}
	if diff := cmp.Diff(want, l.Clusters); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}
	spec := clusters.Spec{Lab: "two", Clusters: []clusters.ClusterSpec{
		{Name: "east", Nodes: 2, Network: "network2"}, {Name: "west", Nodes: 1, Network: "network1"},
	}}
	if diff := cmp.Diff(spec, l.Spec()); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	c := l.Clone()
	c.Networks[0], c.Clusters[0].Network = "x", "x"
	if l.Networks[0] != "network1" || l.Clusters[0].Network != "network2" {
		t.Error("a clone shares something with its original")
	}
}

// Each testdata/bad/*.yaml is refused with exactly the lines of its .txt.
func TestParseRefuses(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(f, ".yaml") + ".txt"
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			l, err := lab.Parse("lab.yaml", data)
			var problems lab.FileErrors
			if !errors.As(err, &problems) {
				t.Fatalf("want FileErrors, got %v and %+v", err, l)
			}
			if *update {
				if err := os.WriteFile(golden, []byte(problems.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), problems.Error()+"\n"); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{"naem", "name"}, {"Name", "name"}, {"cluster", "clusters"}, {"revison", ""}, {"", ""}, {"zzzzzz", ""},
	} {
		if got := lab.Nearest(c.got, []string{"name", "clusters", "mesh"}); got != c.want {
			t.Errorf("Nearest(%q) = %q, want %q", c.got, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range labs.Names() {
		data, err := labs.File(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	for _, name := range files {
		if data, err := os.ReadFile(name); err == nil {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := lab.Parse("f.yaml", data)
		if err == nil {
			if lab.CheckName(l.Name) != nil || len(l.Clusters) == 0 || l.Nodes() < len(l.Clusters) {
				t.Fatalf("accepted an invalid lab: %+v", l)
			}
			for _, c := range l.Clusters {
				if !slices.Contains(l.Networks, c.Network) || c.Primary == c.Name {
					t.Fatalf("accepted an invalid cluster: %+v", l)
				}
			}
			return
		}
		var problems lab.FileErrors
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("refused without FileErrors: %v", err)
		}
		for _, p := range problems {
			if p.Line < 1 || p.Col < 1 || p.Text == "" {
				t.Fatalf("a problem without a place or text: %+v", p)
			}
		}
	})
}
