package model

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func newBuilder() *Builder {
	return NewBuilder(Mesh{TrustDomain: "td", DomainSuffix: "cluster.local", RootNamespace: "istio-system"}, func() time.Time { return time.Unix(0, 0) })
}

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func pod(name, ip, version string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"version": version}}, Status: corev1.PodStatus{PodIP: ip}}
}

func endpoints(service string, ips ...string) *discoveryv1.EndpointSlice {
	port, name := int32(8080), "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service + "-1", Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: "pod-" + ip}})
	}
	return s
}

func rule(generation int64, weights ...int32) *networking.VirtualService {
	vs := &networking.VirtualService{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "ns", Generation: generation}}
	vs.Spec.Hosts = []string{"a"}
	r := &networkingv1alpha3.HTTPRoute{}
	for _, w := range weights {
		r.Route = append(r.Route, &networkingv1alpha3.HTTPRouteDestination{Destination: &networkingv1alpha3.Destination{Host: "a"}, Weight: w})
	}
	vs.Spec.Http = []*networkingv1alpha3.HTTPRoute{r}
	return vs
}

// The order in which a pod, its slice and its service come must not matter.
func TestEndpointsInAnyOrder(t *testing.T) {
	objs := []any{service("a"), endpoints("a", "1"), pod("pod-1", "1", "v1")}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		b := newBuilder()
		var s *Snapshot
		for _, i := range order {
			b.Set(objs[i])
			s = b.Build()
		}
		e := s.Endpoints("a.ns.svc.cluster.local")
		if e == nil || len(e.ByPort["http"]) != 1 || e.ByPort["http"][0].Pod == nil || e.ByPort["http"][0].Pod.Labels["version"] != "v1" {
			t.Errorf("order %v: endpoints are %+v", order, e)
		}
	}
}

// An endpoint that names a pod is there once the pod is, for only the pod says whether it takes mutual TLS. One that names none is
// there at once, and becomes the pod's at its address, if one comes.
func TestEndpointsOfPodsThatAreLate(t *testing.T) {
	const host = "a.ns.svc.cluster.local"
	manual := endpoints("a", "1", "2")
	manual.Endpoints[1].TargetRef = nil
	b := newBuilder()
	b.Set(service("a"))
	b.Set(manual)
	step := func(what string, change Change, want ...string) {
		t.Helper()
		if change == Nothing {
			t.Errorf("%s changes nothing", what)
		}
		s, got := b.Build(), []string{}
		for _, e := range s.Endpoints(host).ByPort["http"] {
			of := "none"
			if e.Pod != nil {
				of = e.Pod.Name
			}
			got = append(got, e.Address+" "+of)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: endpoints are %q, want %q", what, got, want)
		}
	}
	step("no pod", EndpointsOnly, "2 none")
	step("a pod comes", b.Set(pod("pod-1", "1", "v1")), "1 pod-1", "2 none")
	step("a pod comes to the bare address", b.Set(pod("p", "2", "v1")), "1 pod-1", "2 p")
	step("it moves away", b.Set(pod("p", "3", "v1")), "1 pod-1", "2 none")
	step("it comes back", b.Set(pod("p", "2", "v1")), "1 pod-1", "2 p")
	step("it goes", b.Delete(pod("p", "2", "v1")), "1 pod-1", "2 none")
	step("a pod goes before its slice says so", b.Delete(pod("pod-1", "1", "v1")), "2 none")
	step("it is made anew", b.Set(pod("pod-1", "1", "v2")), "1 pod-1", "2 none")
}

func TestWhatDoesNotChangeIsShared(t *testing.T) {
	b := newBuilder()
	for _, o := range []any{service("a"), service("b"), pod("pod-1", "1", ""), pod("pod-2", "2", ""), pod("pod-3", "3", ""), endpoints("a", "1"), endpoints("b", "2"), rule(1, 1)} {
		b.Set(o)
	}
	first := b.Build()
	if got := b.Set(endpoints("a", "1", "3")); got != EndpointsOnly {
		t.Errorf("a slice reaches %v", got)
	}
	next := b.Build()
	const a, other = "a.ns.svc.cluster.local", "b.ns.svc.cluster.local"
	if first.Endpoints(a) == next.Endpoints(a) {
		t.Error("changed endpoints are the same")
	}
	if first.Endpoints(other) != next.Endpoints(other) || first.Service(a) != next.Service(a) || first.VirtualServices[0] != next.VirtualServices[0] {
		t.Error("something else was made anew")
	}
	if len(first.Endpoints(a).ByPort["http"]) != 1 {
		t.Error("the first snapshot changed")
	}
	if next.Sequence != first.Sequence+1 || next.ServicesAt != first.ServicesAt {
		t.Errorf("sequence %d, services at %d", next.Sequence, next.ServicesAt)
	}
	b.Delete(service("a"))
	gone := b.Build()
	if gone.Service(a) != nil || gone.Endpoints(a) != nil || next.Service(a) == nil {
		t.Error("deletion")
	}
}

// An object that turns bad keeps its last good version in force, and says so; one that was never good is not in force.
func TestBadObjects(t *testing.T) {
	b := newBuilder()
	b.Set(service("a"))
	b.Set(rule(1, -1))
	s := b.Build()
	if len(s.VirtualServices) != 0 || len(s.Problems) != 1 || s.Problems[0].InForce != "none" {
		t.Fatalf("never good: %d in force, problems %+v", len(s.VirtualServices), s.Problems)
	}
	if s.Objects[Key{"VirtualService", "ns", "r"}].Generation != 1 {
		t.Error("a bad object counts as not read")
	}
	b.Set(rule(2, 1))
	s = b.Build()
	if len(s.VirtualServices) != 1 || len(s.Problems) != 0 {
		t.Fatalf("good: %+v", s.Problems)
	}
	b.Set(rule(3, -1))
	s = b.Build()
	if len(s.VirtualServices) != 1 || s.VirtualServices[0].Generation != 2 || s.Problems[0].InForce != "previous" || s.Problems[0].Generation != 3 {
		t.Fatalf("turned bad: %+v", s.Problems)
	}
	b.Delete(rule(3))
	if s = b.Build(); len(s.VirtualServices)+len(s.Problems)+len(s.Objects) != 0 {
		t.Errorf("deleted: %+v", s.Problems)
	}
}

// An object made anew under the same name is another one, though its generation is the same and nobody saw the old one go.
func TestObjectsMadeAnew(t *testing.T) {
	b := newBuilder()
	b.Set(service("a"))
	b.Set(rule(1, 1))
	b.Build()
	anew := rule(1, 50, 50)
	anew.UID = "2"
	if got := b.Set(anew); got != Config {
		t.Errorf("an object made anew reaches %v", got)
	}
	s := b.Build()
	if n := len(s.VirtualServices[0].Spec.Spec.Http[0].Route); n != 2 {
		t.Errorf("%d destinations: the object before it is still in force", n)
	}
	if got := b.Set(anew.DeepCopy()); got != Nothing {
		t.Errorf("the same object again reaches %v", got)
	}
	bad := rule(1, -1)
	bad.UID = "3"
	b.Set(bad)
	if s = b.Build(); len(s.VirtualServices) != 0 || s.Problems[0].InForce != "none" {
		t.Errorf("made anew and bad: %d in force, problems %+v", len(s.VirtualServices), s.Problems)
	}
}

func TestReferences(t *testing.T) {
	b := newBuilder()
	b.Set(service("reviews"))
	vs := rule(1, 1)
	vs.Spec.Http[0].Route[0].Destination = &networkingv1alpha3.Destination{Host: "reveiws", Subset: "v1"}
	vs.Spec.Gateways = []string{"gw"}
	b.Set(vs)
	s := b.Build()
	if len(s.Problems) != 2 {
		t.Fatalf("problems are %+v", s.Problems)
	}
	if p := s.Problems[1].Problem; p.Field != "spec.http[0].route[0].destination.host" || p.Fix != `did you mean "reviews"?` {
		t.Errorf("problem is %v", p)
	}
	// What is missing may come later, and a service's coming must clear the problem.
	b.Set(service("reveiws"))
	s = b.Build()
	if len(s.Problems) != 2 || s.Problems[1].Problem.Field != "spec.http[0].route[0].destination.subset" {
		t.Errorf("problems are %+v", s.Problems)
	}
}

// Rules for a host that was meant to be a service are named; rules for what lies outside the mesh are not.
func TestHostsOfRules(t *testing.T) {
	for _, test := range []struct {
		host, gateway, fix string
		warned             bool
	}{
		{"reviews", "mesh", "", false},
		{"reveiws", "mesh", `did you mean "reviews"?`, true},
		{"other", "mesh", "", true},
		{"reveiws.ns.svc.cluster.local", "mesh", `did you mean "reviews.ns.svc.cluster.local"?`, true},
		{"*", "mesh", "", false},
		{"www.example.com", "mesh", "", false},
		{"reveiws", "gw", "", false},
	} {
		b := newBuilder()
		b.Set(service("reviews"))
		vs := rule(1, 1)
		vs.Spec.Hosts, vs.Spec.Gateways = []string{test.host}, []string{test.gateway}
		vs.Spec.Http[0].Route = []*networkingv1alpha3.HTTPRouteDestination{{Destination: &networkingv1alpha3.Destination{Host: "reviews"}}}
		b.Set(vs)
		warned := false
		for _, p := range b.Build().Problems {
			if p.Problem.Field == "spec.hosts[0]" {
				warned = true
				if p.Problem.Fix != test.fix || p.Problem.Severity != "warning" {
					t.Errorf("%s: %v", test.host, p.Problem)
				}
			}
		}
		if warned != test.warned {
			t.Errorf("%s at %s: warned %v", test.host, test.gateway, warned)
		}
	}
}

// What is not obeyed because an older object has rules for the host is named, with that object.
func TestSecondRulesForAHost(t *testing.T) {
	b := newBuilder()
	for _, name := range []string{"a", "b", "c"} {
		b.Set(service(name))
	}
	age := int64(0)
	dr := func(ns, name, host string, exportTo ...string) {
		age++
		b.Set(&networking.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(age, 0)},
			Spec: networkingv1alpha3.DestinationRule{Host: host, ExportTo: exportTo}})
	}
	vs := func(ns, name string, gateways []string, hosts ...string) {
		age++
		o := rule(1, 1)
		o.Namespace, o.Name, o.CreationTimestamp = ns, name, metav1.Unix(age, 0)
		o.Spec.Hosts, o.Spec.Gateways = hosts, gateways
		o.Spec.Http[0].Route[0].Destination.Host = "a.ns.svc.cluster.local"
		b.Set(o)
	}
	b.Set(&networking.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gw"}, Spec: networkingv1alpha3.Gateway{
		Servers: []*networkingv1alpha3.Server{{Port: &networkingv1alpha3.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"}}}}})
	dr("ns", "first", "a")
	dr("ns", "second", "a.ns.svc.cluster.local")
	dr("other", "elsewhere", "a.ns.svc.cluster.local") // for clients of that namespace
	dr("ns", "private", "b", ".")
	dr("ns", "public", "b") // where the private one is not seen
	dr("ns", "private-too", "b", ".")
	vs("ns", "first", nil, "a", "b")
	vs("ns", "second", []string{"mesh", "gw"}, "c", "b")
	vs("ns", "gateway", []string{"gw"}, "a")
	vs("other", "second", nil, "a.ns.svc.cluster.local")
	var got []string
	for _, p := range b.Build().Problems {
		got = append(got, fmt.Sprintf("%s %s/%s %s: %s", p.Object.Kind, p.Object.Namespace, p.Object.Name, p.Problem.Field, strings.Fields(p.Problem.Message)[1]))
	}
	want := []string{
		"DestinationRule ns/private-too spec.host: ns/private", "DestinationRule ns/second spec.host: ns/first",
		"VirtualService ns/second spec.hosts[1]: ns/first", "VirtualService other/second spec.hosts[0]: ns/first",
	}
	if !slices.Equal(got, want) {
		t.Errorf("problems are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Servers that give way to older ones are named.
func TestGatewaysThatShareAPort(t *testing.T) {
	b := newBuilder()
	gateway := func(name string, age int64, selector string, servers ...*networkingv1alpha3.Server) {
		b.Set(&networking.Gateway{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Generation: 1, CreationTimestamp: metav1.Unix(age, 0)},
			Spec:       networkingv1alpha3.Gateway{Selector: map[string]string{"istio": selector}, Servers: servers},
		})
	}
	server := func(port uint32, protocol string, mode networkingv1alpha3.ServerTLSSettings_TLSmode, host string) *networkingv1alpha3.Server {
		s := &networkingv1alpha3.Server{Port: &networkingv1alpha3.Port{Number: port, Name: fmt.Sprintf("%s-%s", protocol, host), Protocol: protocol}, Hosts: []string{host}}
		if protocol == "TLS" {
			s.Tls = &networkingv1alpha3.ServerTLSSettings{Mode: mode}
		}
		return s
	}
	const pass = networkingv1alpha3.ServerTLSSettings_PASSTHROUGH
	gateway("old", 1, "ingress", server(80, "HTTP", 0, "a.example.com"), server(443, "TLS", pass, "a.example.com"))
	gateway("fine", 2, "ingress", server(80, "HTTP", 0, "a.example.com"), server(443, "TLS", pass, "b.example.com"))
	gateway("elsewhere", 3, "egress", server(80, "TLS", pass, "a.example.com"))
	gateway("new", 4, "ingress", server(80, "TLS", pass, "c.example.com"), server(443, "TLS", pass, "ns/a.example.com"))
	var got []string
	for _, p := range b.Build().Problems {
		got = append(got, p.Object.Name+" "+p.Problem.Field)
	}
	if want := []string{"new spec.servers[0].port", "new spec.servers[1].hosts[0]"}; !slices.Equal(got, want) {
		t.Errorf("problems are %q, want %q", got, want)
	}
}

func TestPortProtocol(t *testing.T) {
	app := func(s string) *string { return &s }
	for _, tt := range []struct {
		port corev1.ServicePort
		want Protocol
	}{
		{corev1.ServicePort{Name: "http", Port: 1}, HTTP},
		{corev1.ServicePort{Name: "http-web", Port: 1}, HTTP},
		{corev1.ServicePort{Name: "HTTP2-x", Port: 1}, HTTP2},
		{corev1.ServicePort{Name: "grpc-api", Port: 1}, GRPC},
		{corev1.ServicePort{Name: "httpx", Port: 1}, Auto},
		{corev1.ServicePort{Port: 1}, Auto},
		{corev1.ServicePort{Port: 3306}, TCP},
		{corev1.ServicePort{Name: "tcp-db", Port: 1}, TCP},
		{corev1.ServicePort{Name: "http", Port: 1, Protocol: corev1.ProtocolUDP}, UDP},
		{corev1.ServicePort{Name: "tcp", Port: 1, AppProtocol: app("http")}, HTTP},
		{corev1.ServicePort{Name: "x", Port: 1, AppProtocol: app("kubernetes.io/h2c")}, HTTP2},
	} {
		if got := portProtocol(tt.port); got != tt.want {
			t.Errorf("%+v is %s, want %s", tt.port, got, tt.want)
		}
	}
}

func TestDestinationRulePrecedence(t *testing.T) {
	b := newBuilder()
	add := func(ns, name, host string, exportTo ...string) {
		b.Set(&networking.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: networkingv1alpha3.DestinationRule{Host: host, ExportTo: exportTo}})
	}
	add("istio-system", "root", "*.cluster.local")
	add("server", "wild", "*.server.svc.cluster.local")
	add("server", "exact", "a")
	add("server", "private", "b", ".")
	add("client", "own", "a.server.svc.cluster.local")
	s := b.Build()
	for _, tt := range []struct{ client, host, want string }{
		{"client", "a", "own"}, {"other", "a", "exact"}, {"other", "c", "wild"}, {"other", "b", "wild"}, {"server", "b", "private"},
	} {
		r := s.DestinationRule(tt.client, tt.host+".server.svc.cluster.local", "server")
		if r == nil || r.Key.Name != tt.want {
			t.Errorf("client in %s, host %s: %+v, want %s", tt.client, tt.host, r, tt.want)
		}
	}
	if r := s.DestinationRule("x", "a.y.svc.cluster.local", "y"); r == nil || r.Key.Name != "root" {
		t.Errorf("root namespace: %+v", r)
	}
}
