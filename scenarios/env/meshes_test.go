package env

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/fixtures/labs"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// onNetwork is a cluster of which only name and network are asked.
type onNetwork struct {
	clusters.Cluster
	spec lab.Cluster
}

func (c onNetwork) Name() string    { return c.spec.Name }
func (c onNetwork) Network() string { return c.spec.Network }

// What is installed in each cluster follows from the lab file alone.
func TestWhatIsInstalledWhere(t *testing.T) {
	for name, want := range map[string][]string{
		"primary-remote": {
			"control default network1 [istio-ingressgateway istio-eastwestgateway]",
			"remote remote network1 []",
		},
		"multi-primary": {
			"control default network1 [istio-ingressgateway]",
			"remote default network1 [istio-ingressgateway]",
		},
		"primary-remote-two-networks": {
			"control default network1 [istio-ingressgateway istio-eastwestgateway]",
			"remote remote network2 [istio-eastwestgateway]",
		},
		"multi-primary-two-networks": {
			"control default network1 [istio-ingressgateway istio-eastwestgateway]",
			"remote default network2 [istio-ingressgateway istio-eastwestgateway]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := labs.File(name)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := lab.Parse(name+".yaml", data)
			if err != nil {
				t.Fatal(err)
			}
			e := &Env{Spec: spec, Version: "0.1.0"}
			for _, c := range spec.Clusters {
				e.Sites = append(e.Sites, &Site{Cluster: onNetwork{spec: c}, ID: c.Name, spec: c})
			}
			j := &joined{e: e, driver: install.Bundled{}}
			var got []string
			for _, s := range e.Sites {
				o := j.options(s)
				o.RemotePilotAddress = "10.64.0.1"
				o = o.Default()
				var gateways []string
				for _, g := range o.Gateways {
					gateways = append(gateways, g.Name)
				}
				got = append(got, o.ClusterID+" "+o.Profile+" "+o.Network+" ["+strings.Join(gateways, " ")+"]")
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// counted is a mesh that knows how many proxies it has.
type counted struct {
	Mesh
	text string
	err  error
}

func (c counted) Synced(context.Context) (string, error) { return c.text, c.err }

// Every control plane has to have its proxies synced, that of a remote cluster is its primary's.
func TestSyncedByEveryControlPlane(t *testing.T) {
	for name, want := range map[string]string{
		"primary-remote": "3 proxies synced",
		"multi-primary":  "control: 3 proxies synced, remote: 2 proxies synced",
	} {
		spec, err := lab.Embedded(name)
		if err != nil {
			t.Fatal(err)
		}
		e := &Env{Spec: spec}
		for i, c := range spec.Clusters {
			text := []string{"3 proxies synced", "2 proxies synced"}[i]
			e.Sites = append(e.Sites, &Site{Cluster: onNetwork{spec: c}, Mesh: counted{text: text}, spec: c})
		}
		if got, err := e.Synced(t.Context()); got != want || err != nil {
			t.Errorf("%s: %q, error %v, want %q", name, got, err, want)
		}
		e.Sites[1].Mesh = counted{err: errors.New("stale")}
		if _, err := e.Synced(t.Context()); (err != nil) != (name == "multi-primary") {
			t.Errorf("%s, the second is stale: %v", name, err)
		}
	}
}
