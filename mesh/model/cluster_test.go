package model

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// newMesh is a Builder of the cluster "control" on network "n1".
func newMesh() *Builder {
	return NewBuilder(Mesh{TrustDomain: "td", DomainSuffix: "cluster.local", RootNamespace: "istio-system", ClusterID: "control", Network: "n1"},
		func() time.Time { return time.Unix(0, 0) })
}

func withVIP(s *corev1.Service, ip string) *corev1.Service {
	s.Spec.ClusterIP = ip
	return s
}

func root(network string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: map[string]string{NetworkLabel: network}}}
}

func node(name, region, zone string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{RegionLabel: region, ZoneLabel: zone}}}
}

func onNode(p *corev1.Pod, node string) *corev1.Pod {
	p.Spec.NodeName = node
	return p
}

// places writes the endpoints of a port as address/cluster/network/region/zone.
func places(s *Snapshot, service string) []string {
	var out []string
	if eps := s.Endpoints(service + ".ns.svc.cluster.local"); eps != nil {
		for _, e := range eps.ByPort["http"] {
			out = append(out, fmt.Sprintf("%s/%s/%s/%s/%s", e.Address, e.Cluster, e.Network, e.Region, e.Zone))
		}
	}
	return out
}

func TestServicesOfTwoClustersAreOne(t *testing.T) {
	b := newMesh()
	b.SetIn("remote", root("n2"))
	b.SetIn("remote", node("r-1", "eu", "eu-a"))
	b.Set(node("c-1", "us", "us-a"))
	b.Set(withVIP(service("a"), "10.96.0.5"))
	b.SetIn("remote", withVIP(service("a"), "10.97.0.5"))
	b.SetIn("remote", withVIP(service("only-remote"), "10.97.0.6"))
	b.Set(onNode(pod("pod-10.1.0.1", "10.1.0.1", "v1"), "c-1"))
	b.Set(endpoints("a", "10.1.0.1"))
	b.SetIn("remote", onNode(pod("pod-10.2.0.1", "10.2.0.1", "v2"), "r-1"))
	b.SetIn("remote", endpoints("a", "10.2.0.1"))
	b.SetIn("remote", endpoints("only-remote", "10.2.0.1"))
	s := b.Build()

	want := []string{"10.1.0.1/control/n1/us/us-a", "10.2.0.1/remote/n2/eu/eu-a"}
	if d := cmp.Diff(want, places(s, "a")); d != "" {
		t.Errorf("endpoints of a (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"10.2.0.1/remote/n2/eu/eu-a"}, places(s, "only-remote")); d != "" {
		t.Errorf("endpoints of only-remote (-want +got):\n%s", d)
	}
	a, r := s.Service("a.ns.svc.cluster.local"), s.Service("only-remote.ns.svc.cluster.local")
	for _, tt := range []struct {
		cluster string
		svc     *Service
		want    []string
	}{
		{"control", a, []string{"10.96.0.5"}}, {"remote", a, []string{"10.97.0.5"}},
		{"control", r, nil}, {"remote", r, []string{"10.97.0.6"}}, {"", a, []string{"10.96.0.5"}},
	} {
		if d := cmp.Diff(tt.want, (ProxyView{ClusterID: tt.cluster}).VIPs(tt.svc)); d != "" {
			t.Errorf("addresses of %s in %q (-want +got):\n%s", tt.svc.Name, tt.cluster, d)
		}
	}

	// A cluster that is forgotten takes everything of its own along.
	if got := b.Forget("remote"); got != Config {
		t.Errorf("forgetting a cluster reaches %v", got)
	}
	s = b.Build()
	if d := cmp.Diff(want[:1], places(s, "a")); d != "" {
		t.Errorf("endpoints of a without remote (-want +got):\n%s", d)
	}
	if s.Service("only-remote.ns.svc.cluster.local") != nil || s.Endpoints("only-remote.ns.svc.cluster.local") != nil {
		t.Error("a service of a cluster that was forgotten is still there")
	}
	if s.PodIn("remote", "ns", "pod-10.2.0.1") != nil {
		t.Error("a pod of a cluster that was forgotten is still there")
	}
	if _, ok := s.Clusters()["remote"]; ok {
		t.Error("the cluster is still there")
	}
}

// Pods of the same name and address in two clusters are two pods.
func TestSamePodInTwoClusters(t *testing.T) {
	b := newMesh()
	b.SetIn("remote", root("n2"))
	for _, id := range []string{"control", "remote"} {
		b.SetIn(id, service("a"))
		p := pod("pod-10.1.0.1", "10.1.0.1", id)
		b.SetIn(id, p)
		b.SetIn(id, endpoints("a", "10.1.0.1"))
	}
	s := b.Build()
	if d := cmp.Diff([]string{"10.1.0.1/control/n1//", "10.1.0.1/remote/n2//"}, places(s, "a")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, e := range s.Endpoints("a.ns.svc.cluster.local").ByPort["http"] {
		if e.Pod == nil || e.Pod.Cluster != e.Cluster || e.Pod.Labels["version"] != e.Cluster {
			t.Errorf("endpoint in %s has the pod %+v", e.Cluster, e.Pod)
		}
	}
}

// Networks, nodes and labels of pods may be known later than endpoints, and may change.
func TestPlacesFollow(t *testing.T) {
	b := newMesh()
	b.SetIn("remote", service("a"))
	b.SetIn("remote", onNode(pod("pod-10.2.0.1", "10.2.0.1", "v1"), "r-1"))
	es := endpoints("a", "10.2.0.1")
	es.Endpoints[0].NodeName = new("r-1")
	b.SetIn("remote", es)
	step := func(what string, reach, want Change, place string) {
		t.Helper()
		if reach != want {
			t.Errorf("%s reaches %v, want %v", what, reach, want)
		}
		if d := cmp.Diff([]string{place}, places(b.Build(), "a")); d != "" {
			t.Errorf("after %s (-want +got):\n%s", what, d)
		}
	}
	step("nothing", Nothing, Nothing, "10.2.0.1/remote///")
	step("the network", b.SetIn("remote", root("n2")), Config, "10.2.0.1/remote/n2//")
	step("the same network", b.SetIn("remote", root("n2")), Nothing, "10.2.0.1/remote/n2//")
	step("the node", b.SetIn("remote", node("r-1", "eu", "eu-a")), EndpointsOnly, "10.2.0.1/remote/n2/eu/eu-a")
	step("the node again", b.SetIn("remote", node("r-1", "eu", "eu-a")), Nothing, "10.2.0.1/remote/n2/eu/eu-a")
	p := onNode(pod("pod-10.2.0.1", "10.2.0.1", "v1"), "r-1")
	p.Labels[NetworkLabel], p.Labels[LocalityLabel] = "n3", "asia.b"
	step("labels of the pod", b.SetIn("remote", p), EndpointsOnly, "10.2.0.1/remote/n3/asia/b")
}

func TestNetworkGateways(t *testing.T) {
	gw := func(ip string, change func(*corev1.Service)) *corev1.Service {
		s := service("gw")
		s.Labels = map[string]string{NetworkLabel: "n2"}
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		if ip != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
		}
		if change != nil {
			change(s)
		}
		return s
	}
	for _, tt := range []struct {
		name string
		svc  *corev1.Service
		want []NetworkGateway
	}{
		{"without an address yet", gw("", nil), nil},
		{"the usual port", gw("10.64.1.1", nil), []NetworkGateway{{"10.64.1.1", 15443, "remote", "n2"}}},
		{"a port by annotation", gw("10.64.1.1", func(s *corev1.Service) {
			s.Annotations = map[string]string{GatewayPortLabel: "443"}
		}), []NetworkGateway{{"10.64.1.1", 443, "remote", "n2"}}},
		{"a port that is none", gw("10.64.1.1", func(s *corev1.Service) {
			s.Annotations = map[string]string{GatewayPortLabel: "https"}
		}), []NetworkGateway{{"10.64.1.1", 15443, "remote", "n2"}}},
		{"external addresses", gw("10.64.1.2", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.64.1.1"} }),
			[]NetworkGateway{{"10.64.1.1", 15443, "remote", "n2"}, {"10.64.1.2", 15443, "remote", "n2"}}},
		{"a host name", gw("", func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "lb.example"}}
		}), nil},
		{"no label", gw("10.64.1.1", func(s *corev1.Service) { s.Labels = nil }), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newMesh()
			b.SetIn("remote", tt.svc)
			s := b.Build()
			if d := cmp.Diff(tt.want, s.NetworkGateways["n2"]); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			b.Set(service("other"))
			if next := b.Build(); next.NetworksAt != s.NetworksAt {
				t.Error("networks changed with a service that is no gateway")
			}
			b.DeleteIn("remote", tt.svc)
			if s := b.Build(); len(s.NetworkGateways) != 0 {
				t.Errorf("left over: %v", s.NetworkGateways)
			}
		})
	}
}

func TestView(t *testing.T) {
	b := newMesh()
	b.Set(node("c-1", "us", "us-a"))
	b.Set(onNode(pod("p", "10.1.0.1", "v1"), "c-1"))
	b.SetIn("remote", root("n2"))
	b.SetIn("remote", node("r-1", "eu", "eu-a"))
	b.SetIn("remote", onNode(pod("p", "10.2.0.1", "v1"), "r-1"))
	s := b.Build()
	for _, tt := range []struct{ in, want ProxyView }{
		{ProxyView{Namespace: "ns", Pod: "p"}, ProxyView{Namespace: "ns", Pod: "p", ClusterID: "control", Network: "n1", Region: "us", Zone: "us-a"}},
		{
			ProxyView{Namespace: "ns", Pod: "p", ClusterID: "remote"},
			ProxyView{Namespace: "ns", Pod: "p", ClusterID: "remote", Network: "n2", Region: "eu", Zone: "eu-a"},
		},
		{
			ProxyView{Namespace: "ns", Pod: "p", ClusterID: "remote", Network: "n9", Region: "x"},
			ProxyView{Namespace: "ns", Pod: "p", ClusterID: "remote", Network: "n9", Region: "x"},
		},
		{ProxyView{Namespace: "ns", Pod: "other", ClusterID: "nowhere"}, ProxyView{Namespace: "ns", Pod: "other", ClusterID: "nowhere"}},
	} {
		if d := cmp.Diff(tt.want, s.View(tt.in)); d != "" {
			t.Errorf("view of %+v (-want +got):\n%s", tt.in, d)
		}
	}
}

func TestClusterLocal(t *testing.T) {
	b := newMesh()
	for _, tt := range []struct {
		namespace, name, app string
		want                 bool
	}{
		{"kube-system", "kube-dns", "", true}, {"default", "kubernetes", "", true}, {"default", "hello", "", false},
		{"istio-system", "istiod-green", "istiod", true}, {"istio-system", "istio-ingressgateway", "istio-ingressgateway", false}, {"ns", "kubernetes", "istiod", false},
	} {
		o := service(tt.name)
		o.Namespace, o.Labels = tt.namespace, map[string]string{"app": tt.app}
		b.SetIn("remote", o)
		if got := b.Build().Service(tt.name + "." + tt.namespace + ".svc.cluster.local"); got == nil || got.ClusterLocal != tt.want {
			t.Errorf("%s/%s: %+v", tt.namespace, tt.name, got)
		}
	}
}
