package local

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshproof/meshproof/clusters"
)

func TestPlan(t *testing.T) {
	spec := clusters.Spec{Lab: "demo", Clusters: []clusters.ClusterSpec{{Name: "east", Nodes: 2}, {Name: "west", Network: "network2"}}}
	got, err := plan("/state/demo", spec, "/bin", time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	node := func(cluster, name, ip, pods string) nodeState {
		return nodeState{Name: name, Dir: "/state/demo/clusters/" + cluster + "/nodes/" + name, IP: ip, PodCIDR: pods}
	}
	want := []clusterState{
		{
			Name: "east", Dir: "/state/demo/clusters/east", Network: "network1", LoadBalancerCIDR: "10.64.0.0/24",
			PodCIDR: "10.32.0.0/16", ServiceCIDR: "10.96.0.0/16", ServiceIP: "10.96.0.1", DNSIP: "10.96.0.10",
			Nodes: []nodeState{node("east", "east-1", "10.30.0.11", "10.32.0.0/24"), node("east", "east-2", "10.30.0.12", "10.32.1.0/24")},
		},
		{
			Name: "west", Dir: "/state/demo/clusters/west", Index: 1, Network: "network2", LoadBalancerCIDR: "10.64.1.0/24",
			PodCIDR: "10.33.0.0/16", ServiceCIDR: "10.97.0.0/16", ServiceIP: "10.97.0.1", DNSIP: "10.97.0.10",
			Nodes: []nodeState{node("west", "west-1", "10.30.1.11", "10.33.0.0/24")},
		},
	}
	if d := cmp.Diff(want, got.Clusters); d != "" {
		t.Error(d)
	}
	moved := clusters.Spec{Lab: "demo", Clusters: []clusters.ClusterSpec{{Name: "east", Nodes: 2}, {Name: "west"}}}
	if got.sameShape(moved) {
		t.Error("sameShape does not see that a cluster is on another network")
	}
	if !got.sameShape(spec) || got.sameShape(clusters.Spec{Lab: "demo", Clusters: spec.Clusters[:1]}) {
		t.Error("sameShape does not know its own spec, or knows another one")
	}
}

func TestPlanErrors(t *testing.T) {
	many := make([]clusters.ClusterSpec, clusters.MaxClusters+1)
	for name, c := range map[string]struct {
		spec clusters.Spec
		want string
	}{
		"no lab name":   {clusters.Spec{Clusters: []clusters.ClusterSpec{{Name: "a"}}}, `lab name ""`},
		"bad lab name":  {clusters.Spec{Lab: "../x", Clusters: []clusters.ClusterSpec{{Name: "a"}}}, `lab name "../x"`},
		"no clusters":   {clusters.Spec{Lab: "x"}, "0 clusters: give 1 to 32"},
		"many clusters": {clusters.Spec{Lab: "x", Clusters: many}, "33 clusters"},
		"bad cluster":   {clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "A"}}}, `cluster name "A"`},
		"twice":         {clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "a"}, {Name: "a"}}}, `two clusters are named "a"`},
		"bad network":   {clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "a", Network: "N_1"}}}, `network name "N_1"`},
		"negative":      {clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "a", Nodes: -1}}}, `"a": -1 nodes`},
		"many nodes":    {clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "a", Nodes: 201}}}, "201 nodes: give at most 200"},
	} {
		if _, err := plan("/x", c.spec, "", time.Time{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestState(t *testing.T) {
	dir := filepath.Join(t.TempDir())
	if _, err := loadState(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no state: %v", err)
	}
	st, err := plan(dir, clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "a"}}}, "/bin", time.Unix(7, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.save(); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(st, got, cmp.AllowUnexported(labState{}), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	c, n, err := got.node("a-1")
	if err != nil || c.Name != "a" || n.IP != "10.30.0.11" {
		t.Errorf("node a-1: %v %v %v", c, n, err)
	}
	if _, _, err := got.node("b-1"); err == nil {
		t.Error("found a node that is not there")
	}
}

func TestCgroupNamesDiffer(t *testing.T) {
	if a, b := cgroupName("/one/lab"), cgroupName("/two/lab"); a == b || !strings.HasPrefix(a, "meshproof/lab-") {
		t.Errorf("%s and %s", a, b)
	}
}
