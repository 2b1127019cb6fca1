package translate

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/objects"
	"github.com/meshproof/meshproof/mesh/xds"
)

var update = flag.Bool("update", false, "write the golden files, and remove those without a case")

var testMesh = model.Mesh{
	TrustDomain: "cluster.local", DomainSuffix: "cluster.local", ClusterID: "Kubernetes", MeshID: "cluster.local",
	RootNamespace: "istio-system", AccessLogFile: "/dev/stdout",
}

// read builds a snapshot and the proxy to translate for out of a case: objects, and one document of kind ProxyView.
func read(t testing.TB, data []byte) (*model.Snapshot, model.ProxyView) {
	t.Helper()
	return readStepwise(t, data, func(*model.Builder) {})
}

// readStepwise calls step after each object.
func readStepwise(t testing.TB, data []byte, step func(*model.Builder)) (*model.Snapshot, model.ProxyView) {
	t.Helper()
	b := model.NewBuilder(testMesh, func() time.Time { return time.Unix(0, 0) })
	var view model.ProxyView
	cluster := testMesh.ClusterID
	dec := kyaml.NewYAMLReader(newReader(data))
	for n := int64(1); ; n++ {
		doc, err := dec.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var head metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatal(err)
		}
		var obj any
		switch head.Kind {
		case "":
			continue
		case "ProxyView":
			var v struct {
				Type, ID, IP, Namespace, Pod string
				Labels                       map[string]string
				ClusterID, Network           string
				NetworkView                  []string
				SNIDNAT                      bool
				Region, Zone, SubZone        string
			}
			if err := yaml.Unmarshal(doc, &v); err != nil {
				t.Fatal(err)
			}
			view = model.ProxyView{Type: model.ProxyType(v.Type), ID: v.Pod + "." + v.Namespace, IP: v.IP, Namespace: v.Namespace, Pod: v.Pod, Labels: v.Labels,
				ClusterID: v.ClusterID, Network: v.Network, NetworkView: v.NetworkView, SNIDNAT: v.SNIDNAT, Region: v.Region, Zone: v.Zone, SubZone: v.SubZone}
			continue
		case "Cluster": // what follows is in that cluster
			var c struct{ Kind, ID string }
			if err := yaml.UnmarshalStrict(doc, &c); err != nil {
				t.Fatal(err)
			}
			cluster = c.ID
			continue
		case "Node":
			obj = &corev1.Node{}
		case "Namespace":
			obj = &corev1.Namespace{}
		case "Service":
			obj = &corev1.Service{}
		case "Pod":
			obj = &corev1.Pod{}
		case "EndpointSlice":
			obj = &discoveryv1.EndpointSlice{}
		case "VirtualService":
			obj = &networking.VirtualService{}
		case "DestinationRule":
			obj = &networking.DestinationRule{}
		case "Gateway":
			obj = &networking.Gateway{}
		default:
			t.Fatalf("kind %q", head.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, obj); err != nil {
			t.Fatalf("%s: %v", head.Kind, err)
		}
		m := obj.(metav1.Object)
		m.SetGeneration(1)
		m.SetCreationTimestamp(metav1.Unix(n, 0))
		switch obj.(type) {
		case *networking.VirtualService, *networking.DestinationRule, *networking.Gateway:
			b.Set(obj)
		default:
			b.SetIn(cluster, obj)
		}
		step(b)
	}
	s := b.Build()
	for _, p := range s.Problems {
		if p.Problem.Severity == objects.Error {
			t.Fatalf("%v: %v", p.Object, p.Problem)
		}
	}
	return s, s.View(view)
}

func newReader(data []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(data)) }

// files renders a set as one YAML file for each type.
func files(t testing.TB, s xds.Set) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	render := func(name string, n int, at func(int) proto.Message) {
		var b bytes.Buffer
		for i := range n {
			j, err := protojson.Marshal(at(i))
			if err != nil {
				t.Fatal(err)
			}
			y, err := yaml.JSONToYAML(j)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString("---\n")
			b.Write(y)
		}
		out[name] = b.Bytes()
	}
	render("cds", len(s.Clusters), func(i int) proto.Message { return s.Clusters[i] })
	render("eds", len(s.Endpoints), func(i int) proto.Message { return s.Endpoints[i] })
	render("lds", len(s.Listeners), func(i int) proto.Message { return s.Listeners[i] })
	render("rds", len(s.Routes), func(i int) proto.Message { return s.Routes[i] })
	return out
}

func cases(t testing.TB) []string {
	t.Helper()
	in, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(in) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	return in
}

func TestGolden(t *testing.T) {
	known := map[string]bool{}
	for _, in := range cases(t) {
		name := strings.TrimSuffix(filepath.Base(in), ".in.yaml")
		for _, typ := range []string{"cds", "eds", "lds", "rds"} {
			known[name+"."+typ+".yaml"] = true
		}
		known[name+".in.yaml"] = true
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			s, v := read(t, data)
			set, err := Translate(s, v)
			if err != nil {
				t.Fatal(err)
			}
			for typ, got := range files(t, set) {
				path := filepath.Join("testdata", name+"."+typ+".yaml")
				if *update {
					if err := os.WriteFile(path, got, 0o644); err != nil {
						t.Fatal(err)
					}
					continue
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(string(want), string(got)); d != "" {
					t.Errorf("%s (-want +got; -update writes it anew):\n%s", path, d)
				}
			}
		})
	}
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		if !*update {
			t.Errorf("testdata/%s belongs to no case; -update removes it", e.Name())
		} else if err := os.Remove(filepath.Join("testdata", e.Name())); err != nil {
			t.Error(err)
		}
	}
}

// TestChangesAreFollowed builds up each case object by object with one Translator, for a proxy of its own and for one elsewhere:
// what it remembers must never stand for something else.
func TestChangesAreFollowed(t *testing.T) {
	versions := func(tr *Translator, s *model.Snapshot, v model.ProxyView) map[string]string {
		parts, err := tr.Parts(s, s.View(v))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, p := range parts {
			for typ := range xds.PushOrder {
				for _, r := range p.Resources(typ) {
					got[xds.PushOrder[typ]+"/"+r.Name] = r.Version
				}
			}
		}
		return got
	}
	for _, in := range cases(t) {
		data, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		_, own := read(t, data)
		other := own
		other.ID, other.ClusterID, other.Network, other.Region = "elsewhere.default", "two", "elsewhere", "us"
		other.Labels = map[string]string{"app": "elsewhere"}
		tr := New()
		readStepwise(t, data, func(b *model.Builder) {
			s := b.Build()
			for _, v := range []model.ProxyView{own, other} {
				if d := cmp.Diff(versions(New(), s, v), versions(tr, s, v)); d != "" {
					t.Fatalf("%s: after %d objects, from nothing and by change:\n%s", in, s.Sequence, d)
				}
			}
		})
	}
}

// TestDeterministic translates the same input many times, for maps come in a different order each time.
func TestDeterministic(t *testing.T) {
	for _, in := range cases(t) {
		data, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		var first map[string]string
		for range 10 {
			s, v := read(t, data)
			parts, err := New().Parts(s, v)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, p := range parts {
				for typ := range xds.PushOrder {
					for _, r := range p.Resources(typ) {
						got[xds.PushOrder[typ]+"/"+r.Name] = r.Version
					}
				}
			}
			if first == nil {
				first = got
			} else if d := cmp.Diff(first, got); d != "" {
				t.Fatalf("%s: versions differ between runs:\n%s", in, d)
			}
		}
	}
}
