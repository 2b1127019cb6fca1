package upgrade

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/operator"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
)

var start = time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC)

func at(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }

const (
	blueTag, greenTag = "0.1.0-blue", "0.1.0-green"
	shop              = "upgrade-bookinfo"
)

// good is an upgrade in which everything is as it should be: 10 s quiet and 60 s of moves.
func good() *run {
	r := &run{plan: planFor(lab.Quick), meshed: true, tags: map[string]string{blue: blueTag, green: greenTag}}
	r.quiet = [2]expect.Window{{From: at(0), To: at(5)}, {From: at(5), To: at(10)}}
	r.changing = expect.Window{From: at(10), To: at(70)}
	for _, s := range []string{pages, products, oldReviews, oldDetails, newReviews, newDetails} {
		for i := range 70 * 60 {
			due := at(float64(i) / 60)
			r.requests = append(r.requests, evidence.Request{
				Stream: s, Seq: uint64(i), Intended: due.UnixNano(), Sent: due.UnixNano(), Done: due.Add(5 * time.Millisecond).UnixNano(), Code: 200, Class: expect.OK,
			})
		}
	}
	r.moves = []move{
		{Workload: "details-v1", From: blue, To: green, Began: at(12), Before: seatsOn(blue, blueTag, "details-v1-a-1"), After: seatsOn(green, greenTag, "details-v1-b-1")},
		{Workload: "details-v1", From: green, To: blue, Began: at(30), Before: seatsOn(green, greenTag, "details-v1-b-1"), After: seatsOn(blue, blueTag, "details-v1-c-1")},
	}
	r.mixed = &mixed{Took: 3 * time.Second, Revision: map[string]string{
		"details-v1-b-1." + shop: green, "productpage-v1-a-1." + shop: blue, "loadagent-a-1.upgrade-clients-blue": blue,
	}, Counted: map[series]float64{
		call("details-v1-b-1", "productpage-v1."+shop):             120,
		call("details-v1-b-1", "loadagent.upgrade-clients-blue"):   180,
		call("productpage-v1-a-1", "details-v1."+shop):             40,
		{Pod: "details-v1-b-1." + shop, Source: "unknown.unknown"}: 3,
	}}
	r.refusal = &refusal{
		Needed: []string{"productpage-v1-a-1." + shop},
		Err:    &install.InUseError{Revision: blue, Proxies: []install.User{{Proxy: "productpage-v1-a-1." + shop, Connected: true}}},
	}
	r.removed = &removal{Took: time.Second}
	for _, kind := range removedKinds() {
		r.removed.Had = append(r.removed.Had, kind+" istio-system/istiod-1-20-1 (name)")
	}
	return r
}

func seatsOn(revision, tag, pod string) []seat {
	return []seat{{Pod: pod + "." + shop, Revision: revision, Version: tag, Plane: tag}}
}

func call(pod, source string) series {
	_, ns, _ := strings.Cut(source, ".")
	return series{
		Pod: pod + "." + shop, Source: source, Security: "mutual_tls",
		Principal: "spiffe://cluster.local/ns/" + ns + "/sa/x", Destination: "spiffe://cluster.local/ns/" + shop + "/sa/y",
	}
}

func claim(t *testing.T, r *run, id string) verdict.Claim {
	t.Helper()
	for _, c := range r.judge() {
		if c.ID == id {
			return c
		}
	}
	t.Fatalf("no claim %s", id)
	return verdict.Claim{}
}

func TestAllIsWell(t *testing.T) {
	r := good()
	for len(r.moves) < r.plannedMoves() {
		r.moves = append(r.moves, r.moves[0])
	}
	for _, c := range r.judge() {
		if c.ID != expect.GuardID && c.Outcome != verdict.Pass {
			t.Errorf("%s is %s: %s %s", c.ID, c.Outcome, c.Observed, c.Reason)
		}
	}
}

// TestEachFaultIsSeen breaks one thing at a time; the claim that names it must fail, and say why.
func TestEachFaultIsSeen(t *testing.T) {
	for name, c := range map[string]struct {
		break_  func(r *run)
		claim   string
		outcome verdict.Outcome
		says    string
	}{
		"a request failed": {func(r *run) {
			r.requests[3000].Class, r.requests[3000].Err = "reset", "connection reset by peer"
		}, "lost", verdict.Fail, "connection reset by peer"},
		"a request failed while the host stalled": {func(r *run) {
			for i := 2900; i < 3100; i++ {
				r.requests[i].Sent += int64(time.Second)
			}
			r.requests[3000].Class = "timeout"
		}, "lost", verdict.Inconclusive, "the host stalled"},
		"stays on blue":          {func(r *run) { r.moves[0].After[0].Revision = blue }, "moved/details-v1", verdict.Fail, "was on revision 1-20-1 after"},
		"was on green before":    {func(r *run) { r.moves[0].Before[0].Revision = green }, "moved/details-v1", verdict.Fail, "was on revision 1-23-2 before"},
		"an old proxy":           {func(r *run) { r.moves[0].After[0].Version = blueTag }, "moved/details-v1", verdict.Fail, "of version 0.1.0-blue"},
		"an old control plane":   {func(r *run) { r.moves[0].After[0].Plane = blueTag }, "moved/details-v1", verdict.Fail, "control plane of version 0.1.0-blue"},
		"not connected":          {func(r *run) { r.moves[1].After[0].Revision = "" }, "moved/details-v1", verdict.Fail, "connected to no control plane after"},
		"no pod":                 {func(r *run) { r.moves[1].After = nil }, "moved/details-v1", verdict.Fail, "it had no pod after"},
		"not restarted":          {func(r *run) { r.moves[0].After[0].Pod = r.moves[0].Before[0].Pod }, "moved/details-v1", verdict.Fail, "was not replaced"},
		"rollout did not end":    {func(r *run) { r.moves[1].Err = errors.New("0 of 1 pods are new") }, "moved/details-v1", verdict.Fail, "0 of 1 pods are new"},
		"plaintext between them": {func(r *run) { r.mixed.Counted[series{Pod: "details-v1-b-1." + shop, Source: "unknown.unknown"}] = 60 }, "mixed", verdict.Fail, "60 plaintext requests"},
		"somebody else's identity": {func(r *run) {
			k := call("details-v1-b-1", "productpage-v1."+shop)
			k.Principal = "spiffe://cluster.local/ns/elsewhere/sa/x"
			r.mixed.Counted[k] = 2
		}, "mixed", verdict.Fail, "elsewhere"},
		"traffic one way only":       {func(r *run) { delete(r.mixed.Counted, call("productpage-v1-a-1", "details-v1."+shop)) }, "mixed", verdict.Inconclusive, "too few"},
		"removed while in use":       {func(r *run) { r.refusal.Err = nil }, "refused", verdict.Fail, "proxies were connected: productpage"},
		"refused for another reason": {func(r *run) { r.refusal.Err = errors.New("forbidden") }, "refused", verdict.Fail, "forbidden"},
		"a proxy is not named":       {func(r *run) { r.refusal.Needed = append(r.refusal.Needed, "ratings-v1-a-1."+shop) }, "refused", verdict.Fail, "not named: ratings"},
		"nobody was on it":           {func(r *run) { r.refusal.Needed = nil }, "refused", verdict.Inconclusive, "no proxy was connected"},
		"an orphan": {func(r *run) {
			r.removed.Orphans = []string{"HorizontalPodAutoscaler istio-system/istiod-1-20-1 (name)"}
		}, "orphans", verdict.Fail, "HorizontalPodAutoscaler"},
		"removal is not come to": {func(r *run) { r.removed = nil }, "orphans", verdict.Inconclusive, "over before"},
		"kept in use by a slow move": {func(r *run) {
			r.moves[1].Err = errors.New("0 of 1 pods are new")
			r.removed.Err = &install.InUseError{Revision: blue}
		}, "orphans", verdict.Inconclusive, "in use"},
		"kept in use by nobody": {func(r *run) { r.removed.Err = &install.InUseError{Revision: blue} }, "orphans", verdict.Fail, "in use"},
		"orphans are not known": {func(r *run) { r.removed.ListErr = errors.New("etcdserver: request timed out") }, "orphans", verdict.Inconclusive, "timed out"},
		"there was no autoscaler": {func(r *run) {
			r.removed.Had = slices.DeleteFunc(r.removed.Had, func(o string) bool { return strings.HasPrefix(o, "Horizontal") })
		}, "orphans", verdict.Inconclusive, "no HorizontalPodAutoscaler either"},
		"not all steps":     {func(r *run) {}, "steps", verdict.Inconclusive, "over before"},
		"both never in use": {func(r *run) { r.mixed = nil }, "mixed", verdict.Inconclusive, "over before"},
		"proxies not asked": {func(r *run) { r.mixed.Err = errors.New("no route") }, "mixed", verdict.Inconclusive, "no route"},
		"refusal not tried": {func(r *run) { r.refusal = nil }, "refused", verdict.Inconclusive, "over before"},
		"place before unknown": {func(r *run) {
			r.moves[0].Before, r.moves[0].Blind, r.moves[0].Err = nil, true, errors.New("control planes: i/o timeout")
		}, "moved/details-v1", verdict.Inconclusive, "i/o timeout"},
		"a stream without load": {func(r *run) {
			r.requests = slices.DeleteFunc(r.requests, func(q evidence.Request) bool { return q.Stream == newDetails })
		}, "lost", verdict.Inconclusive, "too few answers in details-green"},
		"a few slow ones": {func(r *run) {
			for i := range r.requests {
				if r.requests[i].Intended > at(20).UnixNano() && i%85 == 0 {
					r.requests[i].Done += int64(time.Second)
				}
			}
		}, "p99/gateway", verdict.Inconclusive, "do not tell"},
		"slow while the host stalled": {func(r *run) {
			for i := range r.requests {
				if r.requests[i].Intended > at(20).UnixNano() && i%20 == 0 {
					r.requests[i].Sent += int64(time.Second)
					r.requests[i].Done += int64(time.Second)
				}
			}
		}, "p99/gateway", verdict.Inconclusive, "the host stalled"},
		"removal hangs": {func(r *run) { r.removed.Err = errors.New("finalizers [x]") }, "orphans", verdict.Fail, "finalizers"},
		"slow": {func(r *run) {
			for i := range r.requests {
				if r.requests[i].Intended > at(20).UnixNano() && i%20 == 0 {
					r.requests[i].Done += int64(time.Second)
				}
			}
		}, "p99/gateway", verdict.Fail, "more than in the quiet time"},
		"too few to compare": {func(r *run) { r.quiet[0].To = at(1) }, "p99/sidecars", verdict.Inconclusive, "200 are needed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			c.break_(r)
			got := claim(t, r, c.claim)
			if got.Outcome != c.outcome || !strings.Contains(got.Reason, c.says) {
				t.Errorf("%s: %s, want %s because of %q", got.Outcome, got.Reason, c.outcome, c.says)
			}
		})
	}
}

// A busy host explains a connection that is not there, and not one to the wrong control plane.
func TestFirm(t *testing.T) {
	r := good()
	r.moves[0].After[0].Revision = blue
	if !claim(t, r, "moved/details-v1").Firm {
		t.Error("a pod on the wrong revision would be excused by a busy host")
	}
	r = good()
	r.moves[0].After[0].Revision = ""
	if claim(t, r, "moved/details-v1").Firm {
		t.Error("a pod without a connection would not be excused by a busy host")
	}
}

// Without a mesh there is nothing to remove.
func TestWithoutAMesh(t *testing.T) {
	r := good()
	r.meshed, r.refusal, r.mixed, r.removed = false, nil, nil, nil
	for _, id := range []string{"refused", "orphans"} {
		if got := claim(t, r, id); got.Outcome != verdict.Skip {
			t.Errorf("%s is %s (%s)", id, got.Outcome, got.Reason)
		}
	}
}

func TestObject(t *testing.T) {
	plans, diags := operator.Decode("istiooperator.yaml", object(green, greenTag, 3))
	if len(plans) != 1 || len(diags) > 0 {
		t.Fatalf("%d plans, %v", len(plans), diags)
	}
	o := plans[0].Options
	if o.Revision != green || o.Tag != greenTag || o.Owner.Name != "istiocontrolplane-1-23-2" || len(o.Gateways) != 1 ||
		o.Pilot.Autoscale == nil || o.Pilot.Disruption == nil || o.Gateways[0].Workload.Annotations["meshproof.dev/turn"] != "3" {
		t.Errorf("options %+v", o)
	}
}

func TestP99(t *testing.T) {
	var rs []evidence.Request
	for i := range 200 {
		rs = append(rs, evidence.Request{Done: int64(200-i) * int64(time.Millisecond)})
	}
	if got, n := p99(latencies(rs)); got != 198*time.Millisecond || n != 200 {
		t.Errorf("p99 of 1..200 ms: %s of %d", got, n)
	}
}

const page = `# TYPE istio_requests_total counter
istio_requests_total{reporter="destination",source_workload="productpage-v1",source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/p",destination_principal="spiffe://cluster.local/ns/shop/sa/d",connection_security_policy="mutual_tls"} 12
istio_requests_total{reporter="destination",source_workload="unknown",source_workload_namespace="unknown",source_principal="unknown",destination_principal="unknown",connection_security_policy="none",note="a \"quoted\" } brace"} 3 1700000000000
istio_requests_total{reporter="source",source_workload="details-v1"} 7
istio_request_bytes_sum{reporter="destination"} 7
`

func TestParseInbound(t *testing.T) {
	out := map[series]float64{}
	if err := parseInbound("details-v1-b-1.shop", []byte(page), out); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range keys(out) {
		got = append(got, fmt.Sprintf("%s %s %s %g", k.Pod, k.Source, k.Security, out[k]))
	}
	want := "details-v1-b-1.shop productpage-v1.shop mutual_tls 12; details-v1-b-1.shop unknown.unknown none 3"
	if s := strings.Join(got, "; "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	if err := parseInbound("x.y", []byte("istio_requests_total{reporter=destination} 1\n"), out); err == nil {
		t.Error("a sample that is none was accepted")
	}
}

func FuzzParseInbound(f *testing.F) {
	f.Add([]byte(page))
	f.Add([]byte("istio_requests_total{} 1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		out := map[series]float64{}
		if parseInbound("a.b", data, out) == nil {
			for k := range out {
				if k.Pod != "a.b" {
					t.Errorf("series of another pod: %+v", k)
				}
			}
		}
	})
}
