package server

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const budget = 10 * time.Second

// config is the whole configuration of the fake source, by type and name; the value stands for the content.
type config [numTypes]map[string]string

func part(t testing.TB, c config) *xds.Part {
	t.Helper()
	var lists [numTypes][]*xds.Resource
	for typ, m := range c {
		for name, content := range m {
			var msg proto.Message
			switch typ {
			case cds:
				msg = &clusterv3.Cluster{Name: name, AltStatName: content}
			case eds:
				msg = &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{Locality: &corev3.Locality{Zone: content}}}}
			case lds:
				msg = &listenerv3.Listener{Name: name, StatPrefix: content}
			case rds:
				msg = &routev3.RouteConfiguration{Name: name, RequestHeadersToRemove: []string{content}}
			}
			r, err := xds.Encode(name, msg)
			if err != nil {
				t.Fatal(err)
			}
			lists[typ] = append(lists[typ], r)
		}
	}
	return xds.NewPart(lists)
}

// fakeSource gives every proxy the Part that was set for the snapshot.
type fakeSource struct {
	mu    sync.Mutex
	parts map[uint64]*xds.Part
}

func (f *fakeSource) Parts(s *model.Snapshot, _ model.ProxyView) ([]*xds.Part, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []*xds.Part{f.parts[s.Sequence]}, nil
}

// rig is a server on an in-memory connection.
type rig struct {
	t      *testing.T
	s      *Server
	src    *fakeSource
	cc     *grpc.ClientConn
	seq    uint64
	object model.Key
}

func newRig(t *testing.T, first config) *rig {
	t.Helper()
	src := &fakeSource{parts: map[uint64]*xds.Part{}}
	r := &rig{t: t, src: src, s: New(Options{Source: src, Identifier: "test"}), object: model.Key{Kind: "VirtualService", Namespace: "ns", Name: "v"}}
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	r.s.Register(g, nil)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	r.cc = cc
	t.Cleanup(func() {
		cc.Close()
		r.s.Close()
		g.Stop()
		<-done
	})
	r.publish(first)
	return r
}

// publish makes a new snapshot current, in which the rig's object has the sequence as its generation.
func (r *rig) publish(c config) {
	r.seq++
	r.src.mu.Lock()
	r.src.parts[r.seq] = part(r.t, c)
	r.src.mu.Unlock()
	r.s.Publish(&model.Snapshot{Sequence: r.seq, BuiltAt: time.Unix(int64(r.seq), 0), Objects: map[model.Key]model.Version{r.object: {Generation: int64(r.seq)}}})
}

// client is a proxy with either protocol; got is what it was told of each type, by name.
type client struct {
	t     *testing.T
	sotw  discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	delta discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	names map[string][]string
	node  *corev3.Node
}

// message is a response of either protocol.
type message struct {
	typ       int
	nonce     string
	names     []string // of resources
	removed   []string
	resources map[string]string // name -> version, delta only
}

func (r *rig) connect(delta bool) *client {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), budget)
	r.t.Cleanup(cancel)
	c := &client{t: r.t, names: map[string][]string{}, node: &corev3.Node{Id: "sidecar~10.0.0.1~p.ns~ns.svc.cluster.local"}}
	ads := discoveryv3.NewAggregatedDiscoveryServiceClient(r.cc)
	var err error
	if delta {
		c.delta, err = ads.DeltaAggregatedResources(ctx)
	} else {
		c.sotw, err = ads.StreamAggregatedResources(ctx)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (c *client) subscribe(typ int, names ...string) {
	c.t.Helper()
	url := xds.PushOrder[typ]
	if c.delta != nil {
		c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: names})
		return
	}
	c.names[url] = names
	c.sendSotw(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: names})
}

func (c *client) sendDelta(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	r.Node, c.node = c.node, nil // only the first request carries the node
	if err := c.delta.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) sendSotw(r *discoveryv3.DiscoveryRequest) {
	c.t.Helper()
	r.Node, c.node = c.node, nil
	if err := c.sotw.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) recv() message {
	c.t.Helper()
	m := message{resources: map[string]string{}}
	if c.delta != nil {
		r, err := c.delta.Recv()
		if err != nil {
			c.t.Fatal(err)
		}
		m.typ, m.nonce, m.removed = xds.TypeIndex(r.TypeUrl), r.Nonce, r.RemovedResources
		for _, x := range r.Resources {
			m.resources[x.Name] = x.Version
		}
		m.names = slices.Sorted(maps.Keys(m.resources))
		return m
	}
	r, err := c.sotw.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	m.typ, m.nonce = xds.TypeIndex(r.TypeUrl), r.Nonce
	for _, x := range r.Resources {
		y, err := x.UnmarshalNew()
		if err != nil {
			c.t.Fatal(err)
		}
		switch z := y.(type) {
		case interface{ GetName() string }:
			m.names = append(m.names, z.GetName())
		case *endpointv3.ClusterLoadAssignment:
			m.names = append(m.names, z.ClusterName)
		}
	}
	slices.Sort(m.names)
	return m
}

// expect receives a response and checks what it is of; delta and removals are written "type a b -c".
func (c *client) expect(want string) message {
	c.t.Helper()
	m := c.recv()
	got := append([]string{strings.ToLower(shortName(m.typ))}, m.names...)
	for _, n := range m.removed {
		got = append(got, "-"+n)
	}
	if g := strings.Join(got, " "); g != want {
		c.t.Fatalf("response is %q, want %q", g, want)
	}
	return m
}

func (c *client) answer(m message, nack string) {
	c.t.Helper()
	var detail *rpcstatus.Status
	if nack != "" {
		detail = &rpcstatus.Status{Code: 3, Message: nack}
	}
	url := xds.PushOrder[m.typ]
	if c.delta != nil {
		c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: m.nonce, ErrorDetail: detail})
		return
	}
	c.sendSotw(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResponseNonce: m.nonce, ResourceNames: c.names[url], ErrorDetail: detail})
}

// take receives, checks and acknowledges.
func (c *client) take(want string) { c.t.Helper(); c.answer(c.expect(want), "") }

// sync brings a client to a configuration with one of each.
func (c *client) sync() {
	c.t.Helper()
	c.subscribe(cds)
	c.take("cds a")
	c.subscribe(eds, "a")
	c.take("eds a")
	c.subscribe(lds)
	c.take("lds l")
	c.subscribe(rds, "80")
	c.take("rds 80")
}

func base() config {
	return config{cds: {"a": "1"}, eds: {"a": "1"}, lds: {"l": "1"}, rds: {"80": "1"}}
}

// acked waits until the newest snapshot is acknowledged everywhere.
func (r *rig) acked() {
	r.t.Helper()
	deadline := time.Now().Add(budget)
	for {
		p := r.s.Push(r.object, int64(r.seq))
		if p.Done() && len(p.Proxies) > 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not acknowledged: %+v", p)
		}
		time.Sleep(time.Millisecond)
	}
}

func both(t *testing.T, f func(t *testing.T, delta bool)) {
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) { f(t, delta) })
	}
}

func TestOnlyWhatChanged(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		r := newRig(t, base())
		c := r.connect(delta)
		c.sync()
		r.acked()
		next := base()
		next[rds]["80"] = "2"
		r.publish(next)
		c.take("rds 80")
		r.acked()
		if n := r.s.Stats().Responses.Load(); n != 5 {
			t.Errorf("%d responses for 4 subscriptions and 1 change", n)
		}
		r.publish(next) // changes nothing, so counts as acknowledged
		r.acked()
		if n := r.s.Stats().Responses.Load(); n != 5 {
			t.Errorf("%d responses after a snapshot that changed nothing", n)
		}
	})
}

// A new cluster is there, with its endpoints, before the route that leads to it; an old one goes after.
func TestMakeBeforeBreak(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		r := newRig(t, base())
		c := r.connect(delta)
		c.sync()
		r.publish(config{cds: {"b": "1"}, eds: {"b": "1"}, lds: {"l": "1"}, rds: {"80": "2"}})
		first := map[bool]string{true: "cds b", false: "cds a b"}[delta] // a stays for now
		m := c.expect(first)
		c.answer(m, "")
		// Routes wait for the endpoints of b to be asked for and acknowledged.
		c.subscribeMore(eds, "a", "b")
		c.take("eds b")
		c.take("rds 80")
		if delta {
			// Both removals come when routes are acknowledged.
			c.take("eds -a")
			c.take("cds -a")
		} else {
			c.take("cds b")
		}
		r.acked()
	})
}

// subscribeMore asks for names beside those asked for already.
func (c *client) subscribeMore(typ int, old, more string) {
	c.t.Helper()
	if c.delta != nil {
		c.subscribe(typ, more)
		return
	}
	c.subscribe(typ, old, more)
}

func TestRoutesDoNotWaitForEver(t *testing.T) {
	r := newRig(t, base())
	r.s.opts.CoverTimeout = time.Millisecond
	c := r.connect(true)
	c.sync()
	r.publish(config{cds: {"a": "1", "b": "1"}, eds: {"a": "1", "b": "1"}, lds: {"l": "1"}, rds: {"80": "2"}})
	c.take("cds b")
	c.take("rds 80") // although the endpoints of b were never asked for
}

// What is refused is sent again when it is another, and nothing else waits for it.
func TestNack(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		r := newRig(t, base())
		c := r.connect(delta)
		c.sync()
		r.acked()
		next := base()
		next[cds]["a"], next[rds]["80"] = "bad", "2"
		r.publish(next)
		c.answer(c.expect("cds a"), "no such thing")
		c.take("rds 80")
		r.refused("CDS: no such thing")

		next[rds]["80"], next[lds]["l"] = "3", "2"
		r.publish(next)
		c.takeUnordered("lds l", "rds 80")
		r.refused("CDS: no such thing")
		if n := r.s.Stats().Responses.Load(); n != 8 {
			t.Errorf("%d responses: what was refused was sent again as it was", n)
		}

		next[cds]["a"] = "good"
		r.publish(next)
		c.take("cds a")
		r.acked()
		if e := r.s.Proxies()[0].LastError; e != "" {
			t.Errorf("last error is still %q", e)
		}
	})
}

// A refusal does not say which resource of a response it means: when one of them is another, all are sent again.
func TestNackOfSeveral(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		r := newRig(t, config{cds: {"a": "1", "b": "1"}, eds: {"a": "1", "b": "1"}})
		c := r.connect(delta)
		c.subscribe(cds)
		c.take("cds a b")
		c.subscribe(eds, "a", "b")
		c.take("eds a b")
		r.publish(config{cds: {"a": "1", "b": "1"}, eds: {"a": "2", "b": "bad"}})
		c.answer(c.expect("eds a b"), "no")
		r.refused("EDS: no")
		r.publish(config{cds: {"a": "1", "b": "1"}, eds: {"a": "3", "b": "bad"}})
		c.answer(c.expect("eds a b"), "no")
		r.refused("EDS: no")
		r.publish(config{cds: {"a": "1"}, eds: {"a": "3"}})
		c.take("eds a")
		if delta {
			c.take("eds -b")
			c.take("cds -b")
		} else {
			c.take("cds a")
		}
		r.acked()
	})
}

// Where new routes are refused the old ones are in force, and where they lead stays.
func TestNothingGoesWhileRoutesAreRefused(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		r := newRig(t, base())
		c := r.connect(delta)
		c.sync()
		next := config{cds: {"b": "1"}, eds: {"b": "1"}, lds: {"l": "1"}, rds: {"80": "bad"}}
		r.publish(next)
		c.take(map[bool]string{true: "cds b", false: "cds a b"}[delta])
		c.subscribeMore(eds, "a", "b")
		c.take("eds b")
		c.answer(c.expect("rds 80"), "no")
		r.refused("RDS: no")
		next[eds]["b"] = "2"
		r.publish(next)
		c.take("eds b")
		r.refused("RDS: no")
		next[rds]["80"] = "2"
		r.publish(next)
		c.take("rds 80")
		if delta {
			c.take("eds -a")
			c.take("cds -a")
		} else {
			c.take("cds b")
		}
		r.acked()
	})
}

// refused waits until the only proxy has refused something of the newest snapshot, for that reason.
func (r *rig) refused(reason string) {
	r.t.Helper()
	deadline := time.Now().Add(budget)
	for {
		p := r.s.Push(r.object, int64(r.seq)).Proxies[0]
		if p.Nack == reason && p.Sent && !p.Acked && r.s.Proxies()[0].LastError == reason {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not refused: %+v", p)
		}
		time.Sleep(time.Millisecond)
	}
}

// takeUnordered takes responses that may come in any order.
func (c *client) takeUnordered(want ...string) {
	c.t.Helper()
	var got []string
	for range want {
		m := c.recv()
		got = append(got, strings.ToLower(shortName(m.typ))+" "+strings.Join(m.names, " "))
		c.answer(m, "")
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		c.t.Fatalf("responses are %q, want %q", got, want)
	}
}

func TestStaleNonceIsNoAck(t *testing.T) {
	r := newRig(t, base())
	c := r.connect(false)
	c.subscribe(cds)
	m := c.expect("cds a")
	c.answer(message{typ: m.typ, nonce: "stale"}, "must not count")
	c.answer(m, "")
	c.subscribe(eds, "a")
	c.take("eds a")
	if n := r.s.Stats().Nacks.Load(); n != 0 {
		t.Errorf("%d NACKs counted", n)
	}
}

func TestReconnectWithVersions(t *testing.T) {
	r := newRig(t, config{cds: {"a": "1", "b": "1"}, lds: {"l": "1"}})
	c := r.connect(true)
	c.subscribe(cds)
	m := c.expect("cds a b")
	have := m.resources
	have["gone"] = "1"
	if err := c.delta.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.publish(config{cds: {"a": "1", "b": "2"}, lds: {"l": "1"}})
	c = r.connect(true)
	c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, InitialResourceVersions: have})
	c.take("cds b") // a is as it was
	c.take("cds -gone")
}

func TestReconnectStateOfTheWorld(t *testing.T) {
	r := newRig(t, base())
	c := r.connect(false)
	// A client that comes back sends the nonce and version of the stream before.
	c.sendSotw(&discoveryv3.DiscoveryRequest{TypeUrl: xds.ClusterType, ResponseNonce: "of-another-stream", VersionInfo: "7"})
	c.take("cds a")
}

func TestUnsubscribe(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		r := newRig(t, config{cds: {"a": "1", "b": "1"}, eds: {"a": "1", "b": "1"}, lds: {"l": "1"}})
		c := r.connect(delta)
		c.subscribe(cds)
		c.take("cds a b")
		c.subscribe(eds, "a", "b")
		c.take("eds a b")
		if delta {
			c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.EndpointType, ResourceNamesUnsubscribe: []string{"a"}})
		} else {
			c.subscribe(eds, "b")
		}
		c.subscribe(lds)
		c.take("lds l") // the unsubscription has been read when this comes
		r.publish(config{cds: {"a": "1", "b": "1"}, eds: {"a": "2", "b": "2"}, lds: {"l": "1"}})
		c.take("eds b")
		if delta {
			// Asking again gets the resource again, changed or not.
			c.subscribe(eds, "a")
			c.take("eds a")
			c.subscribe(eds, "a")
			c.take("eds a")
		}
	})
}

func TestDeltaSaysWhatIsNotThere(t *testing.T) {
	r := newRig(t, base())
	c := r.connect(true)
	c.subscribe(eds, "a", "nothing")
	c.take("eds a -nothing")
}

func TestDeltaWildcardBesideNames(t *testing.T) {
	r := newRig(t, config{cds: {"a": "1", "b": "1"}})
	c := r.connect(true)
	c.subscribe(cds, "a")
	c.take("cds a")
	c.subscribe(cds, "*")
	c.take("cds a b")
	c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, ResourceNamesUnsubscribe: []string{"*"}})
	c.subscribe(eds, "x")
	c.take("eds -x") // the unsubscription has been read when this comes
	r.publish(config{cds: {"a": "2", "b": "2"}})
	c.take("cds a")
}

func TestRefusesNodesThatAreNone(t *testing.T) {
	r := newRig(t, base())
	for _, id := range []string{"", "sidecar~1.2.3.4", "waypoint~1.2.3.4~a.b~c"} {
		c := r.connect(false)
		c.node.Id = id
		c.subscribe(cds)
		if _, err := c.sotw.Recv(); err == nil || !strings.Contains(err.Error(), "node id") {
			t.Errorf("node %q: error is %v", id, err)
		}
	}
}

func TestPushOfObjects(t *testing.T) {
	r := newRig(t, base())
	k := func(name string) model.Key { return model.Key{Kind: "VirtualService", Namespace: "ns", Name: name} }
	at := func(o map[model.Key]model.Version) {
		r.seq++
		r.src.mu.Lock()
		r.src.parts[r.seq] = r.src.parts[1]
		r.src.mu.Unlock()
		r.s.Publish(&model.Snapshot{Sequence: r.seq, Objects: o})
	}
	at(map[model.Key]model.Version{k("a"): {Generation: 1}})
	at(map[model.Key]model.Version{k("a"): {Generation: 3}, k("b"): {Generation: 1}})
	at(map[model.Key]model.Version{k("b"): {Generation: 1}})
	at(map[model.Key]model.Version{k("a"): {Generation: 1}, k("b"): {UID: "2", Generation: 1}})
	for _, tt := range []struct {
		name       string
		generation int64
		want       uint64
	}{
		{"a", 1, 5}, // made anew: its first life does not count
		{"a", 2, 0},
		{"b", 1, 5}, // likewise, and nobody saw it gone
		{"b", -1, 0},
		{"never", -1, 1},
		{"never", 1, 0},
	} {
		if got := r.s.Push(k(tt.name), tt.generation).Snapshot; got != tt.want {
			t.Errorf("%s at %d: snapshot %d, want %d", tt.name, tt.generation, got, tt.want)
		}
	}
}
