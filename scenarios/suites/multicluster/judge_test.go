package multicluster

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

// world is how a simulated mesh behaves.
type world struct {
	noMesh    bool
	leftOut   bool          // no policies: every other call goes to the second cluster, come what may
	failover  time.Duration // after the cut, until then pages fail
	back      time.Duration // after the heal, until then the first cluster answers
	found     time.Duration // until the new service answers
	loseCarts int           // shoppers that lose a cart at the cut
}

func healthy() world {
	return world{failover: 1500 * time.Millisecond, back: 7 * time.Second, found: 300 * time.Millisecond, loseCarts: 8}
}

var start = time.Unix(1_800_000_000, 0)

// simulate makes the observations of a whole run.
func simulate(w world) run {
	pl := newPlan(lab.Quick)
	r := run{
		plan: pl, first: "control", second: "remote", separate: true, meshed: !w.noMesh,
		gateways: []string{"10.64.0.0/24", "10.65.0.0/24"}, servers: []string{"10.30.0.11:6443", "10.31.0.11:6443"},
		calibration: record.Host{CPUs: 2},
	}
	r.calm = expect.Window{From: start.Add(time.Second), To: start.Add(time.Second + pl.calm)}
	r.added = r.calm.To
	r.cut = r.added.Add(pl.newFor)
	r.isCut = r.cut.Add(20 * time.Millisecond)
	r.healed = r.cut.Add(pl.cut)
	r.returned = r.healed.Add(pl.returnWithin + 2*time.Second)
	r.lost = expect.Window{From: r.returned.Add(2 * time.Second), To: r.returned.Add(2*time.Second + pl.lost)}
	load := func(stream string, from, to time.Time, rate float64, answer func(*evidence.Request, time.Time)) {
		for n := uint64(0); ; n++ {
			at := from.Add(time.Duration(float64(n) / rate * float64(time.Second)))
			if !at.Before(to) {
				return
			}
			q := evidence.Request{Stream: stream, Seq: n, Intended: at.UnixNano(), Sent: at.UnixNano(), Done: at.UnixNano() + 1e7, Code: 200, Class: expect.OK, Cluster: "control"}
			answer(&q, at)
			r.requests = append(r.requests, q)
		}
	}
	fail := func(q *evidence.Request) {
		q.Class, q.Code, q.Pod, q.Cluster, q.Err = "mismatch", 200, "", "", "cartservice/4"
	}
	losses := 2 * w.loseCarts
	load(shopStream, start, r.lost.To, pl.shopRate, func(q *evidence.Request, at time.Time) {
		q.App, q.Pod, q.Cluster = cartApp, "cartservice-r", "remote"
		if w.noMesh {
			q.Pod, q.Cluster = "cartservice-c", "control"
			return
		}
		if w.leftOut {
			isCut := !at.Before(r.cut) && at.Before(r.healed)
			switch {
			case q.Seq%2 == 1:
				q.Pod, q.Cluster = "cartservice-c", "control"
			case isCut:
				fail(q)
			}
			return
		}
		switch {
		case at.Before(r.cut) || !at.Before(r.healed.Add(w.back)):
		case at.Before(r.cut.Add(w.failover)):
			if q.Seq%2 == 0 {
				fail(q)
				return
			}
			q.Pod, q.Cluster = "cartservice-c", "control"
		case losses > 0 && at.Before(r.healed):
			losses--
			fail(q)
		default:
			q.Pod, q.Cluster = "cartservice-c", "control"
		}
	})
	load(remoteStream, start, r.lost.To, pl.remoteRate, func(q *evidence.Request, at time.Time) {
		switch {
		case w.noMesh:
			q.Class, q.Code = "connect", 0
		case !at.Before(r.cut) && at.Before(r.healed):
			q.Class, q.Code = "timeout", 0
		}
	})
	load(newStream, r.added, r.added.Add(pl.newFor), pl.newRate, func(q *evidence.Request, at time.Time) {
		q.App, q.Pod = "hello", "news-1"
		if w.noMesh || at.Before(r.added.Add(w.found)) {
			q.Class, q.Code, q.Pod, q.Cluster = "connect", 0, "", ""
		}
	})
	for _, p := range probes() {
		load(p.stream, start.Add(-4*time.Second), start.Add(-2*time.Second), probeRate, func(q *evidence.Request, _ time.Time) { q.Class, q.Code = "timeout", 0 })
	}
	if !w.noMesh {
		r.wire = wire{Frames: 1000, Flows: []flow{
			{Client: netip.MustParseAddrPort("10.32.1.5:40000"), Server: netip.MustParseAddrPort("10.65.0.1:15443"), Whole: true, Bytes: 50000, SNI: "outbound_.7070_._.cartservice.shop.svc.cluster.local"},
			{Client: netip.MustParseAddrPort("10.30.0.11:40001"), Server: netip.MustParseAddrPort("10.31.0.11:6443"), Bytes: 5000},
		}}
		r.served = []served{{App: cartApp, Pod: "cartservice-r", Cluster: "remote", Calls: []call{
			{From: "spiffe://cluster.local/ns/shop/sa/frontend", To: "spiffe://cluster.local/ns/shop/sa/cartservice", Cluster: "control", Policy: "mutual_tls", Count: 200},
		}}}
	}
	return r
}

// join puts the clusters on one network.
func (r *run) join() {
	r.separate = false
	for _, p := range probes() {
		r.requests[r.last(p.stream)].Class = expect.OK
	}
}

func outcomes(r run) map[string]verdict.Claim {
	out := map[string]verdict.Claim{}
	for _, c := range judge(r) {
		out[c.ID] = c
	}
	return out
}

func TestHealthyMeshPasses(t *testing.T) {
	r := simulate(healthy())
	for id, c := range outcomes(r) {
		if c.Outcome != verdict.Pass {
			t.Errorf("%s is %s: %s; %s", id, c.Outcome, c.Observed, c.Reason)
		}
	}
	r.join()
	if c := outcomes(r)["networks"]; c.Outcome != verdict.Pass {
		t.Errorf("one network: %s, %s", c.Outcome, c.Reason)
	}
	if c := outcomes(r)["wire/addresses"]; c.Outcome != verdict.Skip {
		t.Errorf("addresses on one network: %s", c.Outcome)
	}
}

// Each way in which a mesh can be wrong fails the claim that is there for it, and no other.
func TestWrongMeshFails(t *testing.T) {
	const anybody = "spiffe://cluster.local/ns/shop/sa/default"
	for _, test := range []struct {
		name  string
		world func(*world)
		wrong func(*run)
		fails []string
		says  string
	}{
		{name: "slow failover", world: func(w *world) { w.failover = 7 * time.Second }, fails: []string{"failover/time", "failover/lost"}, says: "stream shop"},
		{name: "no failover", world: func(w *world) { w.failover = time.Minute }, fails: []string{"failover/time", "failover/lost", "return/lost"}, says: "after"},
		{name: "no return", world: func(w *world) { w.back = time.Hour }, fails: []string{"return", "lost/no-control-plane"}, says: ""},
		{name: "new service is not found", world: func(w *world) { w.found = time.Minute }, fails: []string{"new-service"}},
		{name: "carts are lost all the time", world: func(w *world) { w.loseCarts = 80 }, fails: []string{"failover/time", "failover/lost"}, says: "mismatch"},
		{name: "the link was never cut", wrong: func(r *run) {
			for i := range r.requests {
				if q := &r.requests[i]; q.Stream == remoteStream {
					q.Class = expect.OK
				}
			}
		}, fails: []string{"fault/cut"}, says: "not cut"},
		{name: "a page is lost in the calm", wrong: func(r *run) { r.requests[100].Class, r.requests[100].Code = "status", 503 }, fails: []string{"visits", "lost/calm"}},
		{name: "plain text on the link", wrong: func(r *run) { r.wire.Flows[0].Problem = "HTTP" }, fails: []string{"wire/tls"}, says: "10.65.0.1:15443: HTTP"},
		{name: "a pod of the other network answers", wrong: func(r *run) { r.requests[r.last(podProbe)].Class = expect.OK }, fails: []string{"networks"}, says: "not separate"},
		{name: "a node of the other network answers", wrong: func(r *run) { r.requests[r.last(nodeProbe)].Class = expect.OK }, fails: []string{"networks"}, says: "not separate"},
		{name: "a ClusterIP of the other network answers", wrong: func(r *run) { r.requests[r.last(serviceProbe)].Class = expect.OK }, fails: []string{"networks"}, says: "the ClusterIP answered"},
		{name: "a node port of the other network answers", wrong: func(r *run) { r.requests[r.last(nodePortProbe)].Class = expect.OK }, fails: []string{"networks"}, says: "the node port answered"},
		{name: "one network without its Services", wrong: func(r *run) {
			r.separate = false
			for _, p := range []string{podProbe, nodeProbe} {
				r.requests[r.last(p)].Class = expect.OK
			}
		}, fails: []string{"networks"}, says: "the ClusterIP, node port did not answer"},
		{name: "one network that is two", wrong: func(r *run) { r.separate = false }, fails: []string{"networks"}, says: "not on one network"},
		{name: "UDP on the link", wrong: func(r *run) { r.wire.Other = map[string]int{"UDP": 3} }, fails: []string{"wire/tls"}, says: "3 frames UDP"},
		{name: "pod calls pod", wrong: func(r *run) { r.wire.Flows[0].Server = netip.MustParseAddrPort("10.33.1.7:15443") }, fails: []string{"wire/addresses"}, says: "called 10.33.1.7:15443"},
		{name: "a gateway's other port", wrong: func(r *run) { r.wire.Flows[0].Server = netip.MustParseAddrPort("10.65.0.1:8080") }, fails: []string{"wire/addresses"}},
		{name: "not mutual", wrong: func(r *run) { r.served[0].Calls[0].Policy = "none" }, fails: []string{"identity"}, says: "policy none"},
		{name: "another account", wrong: func(r *run) { r.served[0].Calls[0].From = anybody }, fails: []string{"identity"}, says: anybody},
		{name: "another server", wrong: func(r *run) { r.served[0].Calls[0].To = anybody }, fails: []string{"identity"}},
		{name: "no identity", wrong: func(r *run) { r.served[0].Calls[0].From = "unknown" }, fails: []string{"identity"}},
		{name: "the control plane stayed", wrong: func(r *run) { r.pilots = []string{"istiod-x"} }, fails: []string{"lost/no-control-plane"}, says: "istiod-x"},
		{name: "lost without a control plane", wrong: func(r *run) { r.requests[r.last(shopStream)].Class = "reset" }, fails: []string{"lost/no-control-plane"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := healthy()
			if test.world != nil {
				test.world(&w)
			}
			r := simulate(w)
			if test.wrong != nil {
				test.wrong(&r)
			}
			says := false
			for id, c := range outcomes(r) {
				if (c.Outcome == verdict.Fail) != slices.Contains(test.fails, id) {
					t.Errorf("%s is %s: %s; %s", id, c.Outcome, c.Observed, c.Reason)
				}
				says = says || c.Outcome == verdict.Fail && strings.Contains(c.Reason, test.says)
			}
			if !says {
				t.Errorf("no reason says %q", test.says)
			}
		})
	}
}

// last is the index of the last request of a stream.
func (r run) last(stream string) int {
	last := 0
	for i, q := range r.requests {
		if q.Stream == stream {
			last = i
		}
	}
	return last
}

// Without a mesh there is no control plane to lose, nothing to take over from the second cluster, and every failure says that there is none.
func TestNoMesh(t *testing.T) {
	for id, c := range outcomes(simulate(world{noMesh: true})) {
		if c.Outcome == verdict.Fail && !strings.Contains(c.Reason, "there is no mesh over these clusters") {
			t.Errorf("%s is %s: %s", id, c.Outcome, c.Reason)
		}
		if skipped := id == "lost/no-control-plane" || id == "failover/time"; skipped != (c.Outcome == verdict.Skip) {
			t.Errorf("%s is %s: %s", id, c.Outcome, c.Reason)
		}
	}
}

// Where each cluster has a control plane, all of them are taken away, and the claim says so.
func TestOwnControlPlanes(t *testing.T) {
	r := simulate(healthy())
	r.primaries = []string{"control", "remote"}
	c := outcomes(r)["lost/no-control-plane"]
	if c.Outcome != verdict.Pass || c.Statement != "without its own control plane each cluster keeps serving" {
		t.Errorf("%q is %s: %s", c.Statement, c.Outcome, c.Reason)
	}
	r.pilots = []string{"remote/istiod-x"}
	if c := outcomes(r)["lost/no-control-plane"]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, "remote/istiod-x") {
		t.Errorf("one stayed: %s, %q", c.Outcome, c.Reason)
	}
}

// A host that stalled around losses is not held against the mesh.
func TestStall(t *testing.T) {
	r := simulate(healthy())
	r.requests[100].Class = "timeout"
	for i := 60; i < 140; i++ {
		r.requests[i].Sent += int64(400 * time.Millisecond)
	}
	for _, id := range []string{"lost/calm", "visits"} {
		if c := outcomes(r)[id]; c.Outcome != verdict.Inconclusive {
			t.Errorf("%s is %s: %s", id, c.Outcome, c.Reason)
		}
	}
}

// So it is with every claim on time or place, whatever the stall made fail there; without a stall each fails.
func TestStallOfOthers(t *testing.T) {
	for _, test := range []struct {
		id     string
		stream string
		at     func(run) time.Time // of the request that is wrong
	}{
		{"visits", shopStream, func(r run) time.Time { return r.calm.From.Add(4 * time.Second) }},
		{"placed/cartservice", shopStream, func(r run) time.Time { return r.calm.From.Add(4 * time.Second) }},
		{"new-service", newStream, func(r run) time.Time { return r.added.Add(r.plan.newWithin + 500*time.Millisecond) }},
		{"failover/time", shopStream, func(r run) time.Time { return r.cut.Add(r.plan.failoverWithin + 2*time.Second) }},
		{"return", shopStream, func(r run) time.Time { return r.healed.Add(r.plan.returnWithin + time.Second) }},
	} {
		for _, stall := range []bool{false, true} {
			r := simulate(healthy())
			at, spoilt := test.at(r), false
			for i := range r.requests {
				q := &r.requests[i]
				if d := time.Unix(0, q.Intended).Sub(at); q.Stream == test.stream && d >= 0 && !spoilt {
					spoilt = true
					if test.id == "placed/cartservice" {
						// A stray: whole, but of the wrong cluster. Of a page that the claim counts.
						if r.page(*q) == pageProduct {
							spoilt = false
							continue
						}
						q.Cluster = r.first
					} else {
						q.Class = "timeout"
					}
				}
				if d := time.Unix(0, q.Intended).Sub(at); stall && d.Abs() < time.Second {
					q.Sent += int64(400 * time.Millisecond)
				}
			}
			want := verdict.Fail
			if stall {
				want = verdict.Inconclusive
			}
			if c := outcomes(r)[test.id]; c.Outcome != want {
				t.Errorf("%s, stalled %t, is %s: %s", test.id, stall, c.Outcome, c.Reason)
			}
		}
	}
}

// Bounds must be tighter than what they are to catch: a mesh that does not fail over at all loses more than is allowed.
func TestBounds(t *testing.T) {
	for _, p := range lab.Profiles() {
		pl := newPlan(lab.Profile(p))
		// With the link cut and no failover every page that needs the other side fails.
		if all := int(pl.shopRate * pl.cut.Seconds()); pl.failoverLosses() >= all/2 {
			t.Errorf("%s: %d losses are allowed of %d pages", p, pl.failoverLosses(), all)
		}
		if pl.failoverWithin >= pl.cut {
			t.Errorf("%s: the cut is over before failover is late", p)
		}
		if need := pl.callTimeout * time.Duration(pl.errors); pl.failoverWithin <= need {
			t.Errorf("%s: errors in a row alone take %s", p, need)
		}
		const rto = 250 * time.Millisecond // at least 200 ms and the round trip, acknowledgements that wait included
		again := rto
		for again < pl.cut {
			again = 2*again + rto
		}
		if pl.callTimeout+pl.baseEjection <= again {
			t.Errorf("%s: hosts return before their connections, which may try again %s after the cut", p, again)
		}
	}
}

func TestParseCalls(t *testing.T) {
	got, err := parseCalls([]byte(`# HELP istio_requests_total x
istio_requests_total{reporter="destination",source_principal="spiffe://a",destination_principal="spiffe://b",source_cluster="c\"1",connection_security_policy="mutual_tls"} 12
istio_requests_total{reporter="source",source_principal="spiffe://a"} 3
istio_requests_other{reporter="destination"} 3
`))
	want := call{From: "spiffe://a", To: "spiffe://b", Cluster: `c"1`, Policy: "mutual_tls", Count: 12}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{`istio_requests_total{reporter="destination"} many`, `istio_requests_total{reporter=destination} 1`, `istio_requests_total{reporter="x`} {
		if _, err := parseCalls([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// A byte that the capture does not have is not said to be TLS; connections of control planes that are older than it are borne.
func TestUnproven(t *testing.T) {
	r := simulate(healthy())
	r.wire.Flows[1].Unproven = "a part was not captured" // to an API server, from before
	if c := outcomes(r)["wire/tls"]; c.Outcome != verdict.Pass {
		t.Errorf("older connection: %s, %s", c.Outcome, c.Reason)
	}
	r.wire.Flows[0].Unproven = "a part was not captured"
	if c := outcomes(r)["wire/tls"]; c.Outcome != verdict.Inconclusive || !strings.Contains(c.Reason, "not captured") {
		t.Errorf("a gap: %s, %s", c.Outcome, c.Reason)
	}
}

// Who reaches nobody at all shows nothing of networks.
func TestNetworksNeedAControl(t *testing.T) {
	r := simulate(healthy())
	for i := range r.requests {
		if q := &r.requests[i]; q.Stream == remoteStream {
			q.Class = "timeout"
		}
	}
	if c := outcomes(r)["networks"]; c.Outcome != verdict.Inconclusive {
		t.Errorf("%s: %s", c.Outcome, c.Reason)
	}
}

// Steps that the run did not come to say nothing.
func TestCutShort(t *testing.T) {
	r := simulate(healthy())
	r.wire, r.wireErr = wire{}, errors.New("the capture was not read")
	r.cut, r.isCut, r.healed, r.returned, r.lost = time.Time{}, time.Time{}, time.Time{}, time.Time{}, expect.Window{}
	for id, c := range outcomes(r) {
		if c.Outcome == verdict.Fail {
			t.Errorf("%s: %s", id, c.Reason)
		}
	}
}
