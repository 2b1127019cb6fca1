package proxy

import (
	"fmt"
	"net"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// ads is a small ADS server that speaks both protocols and pushes whatever set was put last.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t    testing.TB
	addr string
	stop func()

	mu      sync.Mutex
	version int
	res     map[string]map[string]*anypb.Any
	changed chan struct{} // closed and replaced at each put
	nacks   []string
}

func newADS(t testing.TB) *ads {
	a := &ads{t: t, addr: freeAddr(t).String(), res: map[string]map[string]*anypb.Any{}, changed: make(chan struct{})}
	a.serve()
	t.Cleanup(func() { a.stop() })
	return a
}

// serve listens at a.addr until stop.
func (a *ads) serve() {
	ln, err := net.Listen("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = ln.Addr().String()
	s := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, a)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ln) })
	a.stop = func() { s.Stop(); wg.Wait() }
}

// put replaces everything.
func (a *ads) put(set xds.Set) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.res = map[string]map[string]*anypb.Any{xds.ClusterType: {}, xds.EndpointType: {}, xds.ListenerType: {}, xds.RouteType: {}}
	for _, m := range set.Clusters {
		a.res[xds.ClusterType][m.Name] = pack(a.t, m)
	}
	for _, m := range set.Endpoints {
		a.res[xds.EndpointType][m.ClusterName] = pack(a.t, m)
	}
	for _, m := range set.Listeners {
		a.res[xds.ListenerType][m.Name] = pack(a.t, m)
	}
	for _, m := range set.Routes {
		a.res[xds.RouteType][m.Name] = pack(a.t, m)
	}
	close(a.changed)
	a.changed = make(chan struct{})
	return a.version
}

func (a *ads) rejections() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.nacks...)
}

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	out, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (a *ads) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	in := make(chan *discoveryv3.DeltaDiscoveryRequest)
	done := make(chan struct{})
	defer close(done)
	go func() {
		defer close(in)
		for {
			q, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case in <- q:
			case <-done:
				return
			}
		}
	}()
	subs := map[string]map[string]bool{}
	sent := map[string]map[string]string{}
	nonce := 0
	for {
		a.mu.Lock()
		changed := a.changed
		for _, typ := range xds.PushOrder {
			want := subs[typ]
			if want == nil {
				continue
			}
			resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: fmt.Sprint(nonce)}
			for name, body := range a.res[typ] {
				key := string(body.Value)
				if (want["*"] || want[name]) && sent[typ][name] != key {
					sent[typ][name] = key
					resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: fmt.Sprint(a.version), Resource: body})
				}
			}
			for name := range sent[typ] {
				if a.res[typ][name] == nil {
					delete(sent[typ], name)
					resp.RemovedResources = append(resp.RemovedResources, name)
				}
			}
			if len(resp.Resources)+len(resp.RemovedResources) == 0 {
				continue
			}
			nonce++
			if err := s.Send(resp); err != nil {
				a.mu.Unlock()
				return err
			}
		}
		a.mu.Unlock()
		select {
		case q, ok := <-in:
			if !ok {
				return nil
			}
			if subs[q.TypeUrl] == nil {
				subs[q.TypeUrl], sent[q.TypeUrl] = map[string]bool{}, map[string]string{}
			}
			for _, n := range q.ResourceNamesSubscribe {
				subs[q.TypeUrl][n] = true
			}
			for _, n := range q.ResourceNamesUnsubscribe {
				delete(subs[q.TypeUrl], n)
				delete(sent[q.TypeUrl], n)
			}
			if q.ErrorDetail != nil {
				a.mu.Lock()
				a.nacks = append(a.nacks, q.ErrorDetail.Message)
				a.mu.Unlock()
			}
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (a *ads) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	in := make(chan *discoveryv3.DiscoveryRequest)
	done := make(chan struct{})
	defer close(done)
	go func() {
		defer close(in)
		for {
			q, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case in <- q:
			case <-done:
				return
			}
		}
	}()
	names := map[string][]string{}
	sent := map[string]string{}
	for nonce := 0; ; {
		a.mu.Lock()
		changed := a.changed
		for _, typ := range xds.PushOrder {
			want, ok := names[typ]
			if !ok {
				continue
			}
			key := fmt.Sprint(a.version, want)
			if sent[typ] == key || a.version == 0 {
				continue
			}
			sent[typ] = key
			resp := &discoveryv3.DiscoveryResponse{TypeUrl: typ, Nonce: fmt.Sprint(nonce), VersionInfo: fmt.Sprint(a.version)}
			nonce++
			for name, body := range a.res[typ] {
				ok := len(want) == 0
				for _, w := range want {
					ok = ok || w == name
				}
				if ok {
					resp.Resources = append(resp.Resources, body)
				}
			}
			if err := s.Send(resp); err != nil {
				a.mu.Unlock()
				return err
			}
		}
		a.mu.Unlock()
		select {
		case q, ok := <-in:
			if !ok {
				return nil
			}
			names[q.TypeUrl] = q.ResourceNames
			if q.ErrorDetail != nil {
				a.mu.Lock()
				a.nacks = append(a.nacks, q.ErrorDetail.Message)
				a.mu.Unlock()
			}
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

// Names that keep the imports of the generated types in one place.
type (
	clusterPB  = clusterv3.Cluster
	claPB      = endpointv3.ClusterLoadAssignment
	listenerPB = listenerv3.Listener
	routesPB   = routev3.RouteConfiguration
)
