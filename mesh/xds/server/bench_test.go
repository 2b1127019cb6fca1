package server_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/translate"
	"github.com/meshproof/meshproof/mesh/xds"
	"github.com/meshproof/meshproof/mesh/xds/server"
)

const (
	benchServices   = 1000
	benchEndpoints  = 10
	benchNamespaces = 10
	benchProxies    = 500
)

// world fills a Builder with services, endpoints and their pods, and a rule with a split for the first service.
func world() *model.Builder {
	b := model.NewBuilder(model.Mesh{TrustDomain: "cluster.local", DomainSuffix: "cluster.local", RootNamespace: "istio-system"}, time.Now)
	for i := range benchServices {
		name, ns := fmt.Sprintf("svc-%d", i), fmt.Sprintf("ns-%d", i%benchNamespaces)
		b.Set(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
			Spec: corev1.ServiceSpec{
				ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)}, Selector: map[string]string{"app": name},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
			},
		})
		b.Set(slice(i, benchEndpoints))
		for j := range benchEndpoints {
			b.Set(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, j), Namespace: ns, Labels: map[string]string{
					"app": name, "version": fmt.Sprintf("v%d", j%2+1), "security.istio.io/tlsMode": "istio",
				}},
				Status: corev1.PodStatus{PodIP: podIP(i, j)},
			})
		}
	}
	b.Set(&networking.DestinationRule{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "ns-0", Generation: 1}, Spec: networkingv1alpha3.DestinationRule{
		Host: "svc-0", Subsets: []*networkingv1alpha3.Subset{
			{Name: "v1", Labels: map[string]string{"version": "v1"}}, {Name: "v2", Labels: map[string]string{"version": "v2"}},
		},
	}})
	b.Set(split(1))
	return b
}

func podIP(i, j int) string { return fmt.Sprintf("10.%d.%d.%d", 128+j, i/250, i%250+1) }

func slice(i, endpoints int) *discoveryv1.EndpointSlice {
	name, ns := fmt.Sprintf("svc-%d", i), fmt.Sprintf("ns-%d", i%benchNamespaces)
	port, portName := int32(80), "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-1", Namespace: ns, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for j := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{podIP(i, j)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: fmt.Sprintf("%s-%d", name, j)},
		})
	}
	return s
}

// split is the rule, whose weights and generation follow n.
func split(n int64) *networking.VirtualService {
	d := func(subset string, w int32) *networkingv1alpha3.HTTPRouteDestination {
		return &networkingv1alpha3.HTTPRouteDestination{Destination: &networkingv1alpha3.Destination{Host: "svc-0", Subset: subset}, Weight: w}
	}
	w := int32(n % 100)
	return &networking.VirtualService{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "ns-0", Generation: n}, Spec: networkingv1alpha3.VirtualService{
		Hosts: []string{"svc-0"}, Http: []*networkingv1alpha3.HTTPRoute{{Route: []*networkingv1alpha3.HTTPRouteDestination{d("v1", 100-w), d("v2", w)}}},
	}}
}

func view(i int) model.ProxyView {
	ns := fmt.Sprintf("ns-%d", i%benchNamespaces)
	return model.ProxyView{
		Type: model.Sidecar, Namespace: ns, Pod: fmt.Sprintf("svc-%d-0", i), ID: fmt.Sprintf("svc-%d-0.%s", i, ns), IP: podIP(i, 0),
		Labels: map[string]string{"app": fmt.Sprintf("svc-%d", i)},
	}
}

// BenchmarkTranslate is the whole configuration of one proxy, from nothing and after a change of one weight.
func BenchmarkTranslate(b *testing.B) {
	b.Run("cold", func(b *testing.B) {
		s := world().Build()
		for b.Loop() {
			if _, err := translate.New().Parts(s, view(0)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("weight", func(b *testing.B) {
		w, t := world(), translate.New()
		n := int64(1)
		for b.Loop() {
			n++
			w.Set(split(n))
			if _, err := t.Parts(w.Build(), view(0)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			world().Build()
		}
	})
	b.Run("endpoint", func(b *testing.B) {
		w := world()
		w.Build()
		n := 0
		for b.Loop() {
			n++
			w.Set(slice(1, benchEndpoints-n%2))
			w.Build()
		}
	})
}

// BenchmarkPush takes a change to 500 connected proxies over TCP on loopback, until all have acknowledged it. Both sides run in
// this process. It reports the time until the median and the 99th percentile proxy had acknowledged, and the bytes sent.
func BenchmarkPush(b *testing.B) {
	for _, delta := range []bool{true, false} {
		name := map[bool]string{true: "delta", false: "sotw"}[delta]
		b.Run(name+"/weight", func(b *testing.B) {
			benchmarkPush(b, delta, func(w *model.Builder, n int64) { w.Set(split(n)) })
		})
		b.Run(name+"/endpoint", func(b *testing.B) {
			benchmarkPush(b, delta, func(w *model.Builder, n int64) { w.Set(slice(1, benchEndpoints-int(n%2))) })
		})
	}
}

func benchmarkPush(b *testing.B, delta bool, change func(*model.Builder, int64)) {
	s := server.New(server.Options{Source: translate.New()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g, nil)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	w := world()
	s.Publish(w.Build())
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{}, benchProxies)
	for i := range benchProxies {
		go func() {
			proxy(ctx, l.Addr().String(), i, delta)
			done <- struct{}{}
		}()
	}
	defer func() {
		cancel()
		for range benchProxies {
			<-done
		}
		s.Close()
		g.Stop()
		<-served
	}()
	started := time.Now()
	for !synced(s, 1) {
		time.Sleep(10 * time.Millisecond)
	}
	b.ReportMetric(time.Since(started).Seconds(), "s-first-sync")
	var p50, p99 time.Duration
	before := s.Stats().Bytes.Load()
	n := int64(1)
	for b.Loop() {
		n++
		change(w, n)
		snap := w.Build()
		at := time.Now()
		s.Publish(snap)
		for !synced(s, snap.Sequence) {
			time.Sleep(time.Millisecond)
		}
		var took []time.Duration
		for _, p := range s.PushOf(snap.Sequence) {
			took = append(took, p.AckedAt.Sub(at))
		}
		slices.Sort(took)
		p50 += took[len(took)/2]
		p99 += took[len(took)*99/100]
	}
	b.ReportMetric(float64(p50.Microseconds())/float64(b.N)/1000, "p50-ms")
	b.ReportMetric(float64(p99.Microseconds())/float64(b.N)/1000, "p99-ms")
	b.ReportMetric(float64(s.Stats().Bytes.Load()-before)/float64(b.N)/(1<<20), "MiB/push")
}

func synced(s *server.Server, seq uint64) bool {
	ps := s.Proxies()
	for _, p := range ps {
		if p.AckedSnapshot < seq {
			return false
		}
	}
	return len(ps) == benchProxies
}

// proxy acts as a sidecar until ctx ends: it subscribes to everything and acknowledges at once.
func proxy(ctx context.Context, addr string, i int, delta bool) {
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return
	}
	defer cc.Close()
	v := view(i)
	node := &corev3.Node{Id: fmt.Sprintf("sidecar~%s~%s~x", v.IP, v.ID)}
	ads := discoveryv3.NewAggregatedDiscoveryServiceClient(cc)
	var send func(typ, nonce string, names []string) error
	var recv func() (typ, nonce string, clusters []string, err error)
	if delta {
		st, err := ads.DeltaAggregatedResources(ctx)
		if err != nil {
			return
		}
		send = func(typ, nonce string, names []string) error {
			r := &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: typ, ResponseNonce: nonce}
			if nonce == "" {
				r.ResourceNamesSubscribe = names
			}
			node = nil
			return st.Send(r)
		}
		recv = func() (string, string, []string, error) {
			r, err := st.Recv()
			var names []string
			for _, x := range r.GetResources() {
				names = append(names, x.Name)
			}
			return r.GetTypeUrl(), r.GetNonce(), names, err
		}
	} else {
		st, err := ads.StreamAggregatedResources(ctx)
		if err != nil {
			return
		}
		send = func(typ, nonce string, names []string) error {
			r := &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typ, ResponseNonce: nonce, ResourceNames: names}
			node = nil
			return st.Send(r)
		}
		recv = func() (string, string, []string, error) {
			r, err := st.Recv()
			var names []string
			if r.GetTypeUrl() == xds.ClusterType {
				for _, x := range r.Resources {
					var c clusterv3.Cluster
					if x.UnmarshalTo(&c) == nil {
						names = append(names, c.Name)
					}
				}
			}
			return r.GetTypeUrl(), r.GetNonce(), names, err
		}
	}
	want := map[string][]string{xds.RouteType: {"80"}}
	if send(xds.ClusterType, "", nil) != nil {
		return
	}
	seen := map[string]bool{}
	for {
		typ, nonce, clusters, err := recv()
		if err != nil {
			return
		}
		if send(typ, nonce, want[typ]) != nil {
			return
		}
		if seen[typ] {
			continue
		}
		seen[typ] = true
		switch typ {
		case xds.ClusterType:
			for _, n := range clusters {
				if len(n) > 9 && n[:9] == "outbound|" {
					want[xds.EndpointType] = append(want[xds.EndpointType], n)
				}
			}
			err = send(xds.EndpointType, "", want[xds.EndpointType])
		case xds.EndpointType:
			err = send(xds.ListenerType, "", nil)
		case xds.ListenerType:
			err = send(xds.RouteType, "", want[xds.RouteType])
		}
		if err != nil {
			return
		}
	}
}
