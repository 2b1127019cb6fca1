package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// pod is a back end that can be told to fail, and counts.
type pod struct {
	name, addr string
	status     atomic.Int64 // of answers; 0 is 200
	seen       atomic.Int64
}

func newPod(t testing.TB, name string) *pod {
	p := &pod{name: name}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.seen.Add(1)
		w.Header().Set("x-backend", name)
		if st := p.status.Load(); st != 0 {
			w.WriteHeader(int(st))
		}
	}))
	t.Cleanup(s.Close)
	p.addr = strings.TrimPrefix(s.URL, "http://")
	return p
}

func pods(t testing.TB, n int) (list []*pod, addrs []string) {
	for i := range n {
		p := newPod(t, fmt.Sprintf("pod-%d", i))
		list, addrs = append(list, p), append(addrs, p.addr)
	}
	return list, addrs
}

// withAdmin gives the proxy an admin port, which is returned.
func withAdmin(t testing.TB) (string, func(*Bootstrap)) {
	admin := freeAddr(t).String()
	return admin, func(b *Bootstrap) { b.Admin = admin }
}

func cookiePolicy(ttl *durationpb.Duration) []*routev3.RouteAction_HashPolicy {
	return []*routev3.RouteAction_HashPolicy{{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{
		Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: "user", Path: "/", Ttl: ttl}}}}
}

// session is a client with a connection and a cookie of its own.
type session struct {
	c      *http.Client
	cookie string
}

var cookieLine = regexp.MustCompile(`^user="([0-9a-f]{16})"; Max-Age=1800; Path=/; HttpOnly$`)

func (s *session) get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.cookie != "" {
		req.Header.Set("Cookie", "a=b; user="+s.cookie)
	}
	resp, err := s.c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	set := resp.Header.Values("Set-Cookie")
	switch {
	case s.cookie != "":
		if set != nil {
			t.Errorf("a session with a cookie got %q", set)
		}
	default:
		m := cookieLine.FindStringSubmatch(strings.Join(set, "|"))
		if m == nil {
			t.Fatalf("Set-Cookie %q", set)
		}
		s.cookie = m[1]
	}
	return resp.Header.Get("x-backend")
}

// TestSticky: each session gets a cookie once and stays on one host, also over a split by weight, until its host leaves.
func TestSticky(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	_, addrs := pods(t, 4)
	put := func(n int) {
		act := weighted("v1", 1, "v2", 1)
		act.HashPolicy = cookiePolicy(durationpb.New(30 * time.Minute))
		ring, maglev := edsCluster("v1"), edsCluster("v2")
		ring.LbPolicy, maglev.LbPolicy = clusterv3.Cluster_RING_HASH, clusterv3.Cluster_MAGLEV
		fixed := routed("v1", cookiePolicy(durationpb.New(30*time.Minute)))
		fixed.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
			Clusters: act.GetWeightedClusters().Clusters, RandomValueSpecifier: &routev3.WeightedCluster_UseHashPolicy{UseHashPolicy: wrapperspb.Bool(true)}}}
		a.put(xds.Set{Clusters: []*clusterPB{ring, maglev}, Endpoints: []*claPB{cla(t, "v1", addrs[:n]...), cla(t, "v2", addrs[:n]...)},
			Listeners: []*listenerPB{httpListener(t, addr, "80")}, Routes: []*routesPB{table("80", []string{"*"}, prefix("/only-v2", routed("v2", cookiePolicy(durationpb.New(30*time.Minute)))), prefix("/fixed", fixed), prefix("/", act))}})
	}
	put(4)
	admin, option := withAdmin(t)
	start(t, a, option)
	url := "http://" + addr
	const n = 60
	var sessions []*session
	homes := map[*session]map[string]bool{}
	spread := map[string]int{}
	maglevHome := map[*session]string{}
	for range n {
		s := &session{c: httpClient(t)}
		sessions = append(sessions, s)
		homes[s] = map[string]bool{}
		first := s.get(t, url+"/fixed") // makes the cookie
		for range 5 {
			if h := s.get(t, url+"/fixed"); h != first {
				t.Errorf("a session moved from %s to %s over a split that goes by its hash", first, h)
			}
		}
		for range 10 {
			homes[s][s.get(t, url+"/")] = true
		}
		if len(homes[s]) > 2 { // one host of each version
			t.Errorf("a session went to %v", homes[s])
		}
		maglevHome[s] = s.get(t, url+"/only-v2")
		for range 4 {
			if h := s.get(t, url+"/only-v2"); h != maglevHome[s] {
				t.Errorf("a session moved from %s to %s", maglevHome[s], h)
			}
		}
		spread[maglevHome[s]]++
	}
	if len(spread) != 4 {
		t.Errorf("60 sessions went to %v", spread)
	}
	put(3)
	adminHas(t, "http://"+admin+"/stats?filter=cluster.v2.membership_total", "membership_total: 3")
	moved := 0
	for _, s := range sessions {
		now := s.get(t, url+"/only-v2")
		if maglevHome[s] == "pod-3" {
			if now == "pod-3" {
				t.Error("a session went to the host that left")
			}
		} else if now != maglevHome[s] {
			moved++
		}
	}
	if moved > 3 { // Maglev moves about 1 % of the others with 65,537 entries
		t.Errorf("%d sessions of hosts that stayed have moved", moved)
	}
}

func routed(cluster string, hash []*routev3.RouteAction_HashPolicy) *routev3.RouteAction {
	act := weighted(cluster, 1)
	act.HashPolicy = hash
	return act
}

// adminHas waits until a page of the admin port holds a text.
func adminHas(t *testing.T, url, want string) string {
	t.Helper()
	c := httpClient(t)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, body := get(t, c, url)
		if strings.Contains(body, want) {
			return body
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: no %q in\n%s", url, want, body)
		}
	}
}

// TestOutlierDetection: the host that fails is used for exactly five more requests, then not at all, and again after its time.
func TestOutlierDetection(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	list, addrs := pods(t, 3)
	c := edsCluster("c")
	c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}}
	c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(5), EnforcingSuccessRate: wrapperspb.UInt32(0),
		Interval: durationpb.New(50 * time.Millisecond), BaseEjectionTime: durationpb.New(5 * time.Minute), MaxEjectionPercent: wrapperspb.UInt32(100)}
	set := xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", addrs...)}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))}}
	a.put(set)
	admin, option := withAdmin(t)
	start(t, a, option)
	client := httpClient(t)
	request := func() int { resp, _ := get(t, client, "http://"+addr); return resp.StatusCode }
	bad := list[1]
	bad.status.Store(503)
	failed := 0
	for range 60 {
		if request() == 503 {
			failed++
		}
	}
	if failed != 5 || bad.seen.Load() != 5 {
		t.Errorf("%d failures, %d at the host that fails; want 5", failed, bad.seen.Load())
	}
	adminHas(t, "http://"+admin+"/stats", "cluster.c.outlier_detection.ejections_active: 1\n")
	adminHas(t, "http://"+admin+"/stats", "cluster.c.outlier_detection.ejections_enforced_consecutive_5xx: 1\n")
	adminHas(t, "http://"+admin+"/stats", "cluster.c.membership_healthy: 2\n")
	adminHas(t, "http://"+admin+"/stats/prometheus", `envoy_cluster_outlier_detection_ejections_active{cluster_name="c"} 1`)
	adminHas(t, "http://"+admin+"/clusters", bad.addr+"::health_flags::/failed_outlier_check\n")
	// A push that changes the cluster does not bring the host back.
	set.Clusters[0].ConnectTimeout = durationpb.New(2 * time.Second)
	set.Clusters[0].CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(77)}}}
	a.put(set)
	adminHas(t, "http://"+admin+"/clusters", "c::default_priority::max_requests::77\n")
	for range 20 {
		request()
	}
	if bad.seen.Load() != 5 {
		t.Errorf("%d requests reached the host that is ejected", bad.seen.Load()-5)
	}
	bad.status.Store(0)
	// One that shortens the time does, when that time has passed since the ejection.
	set.Clusters[0].OutlierDetection.BaseEjectionTime = durationpb.New(2 * time.Second)
	a.put(set)
	body := adminHas(t, "http://"+admin+"/outlier_events", `"UNEJECT"`)
	var last struct {
		Cluster string `json:"cluster_name"`
		URL     string `json:"upstream_url"`
		Since   int    `json:"secs_since_last_action,string"`
	}
	// Five 503s are also five gateway errors, which are detected and by default not enforced.
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"CONSECUTIVE_GATEWAY_FAILURE"`) || !strings.Contains(lines[0], `"enforced":false`) || !strings.Contains(lines[1], `"enforced":true`) {
		t.Errorf("events:\n%s", body)
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Cluster != "c" || last.URL != bad.addr || last.Since < 2 {
		t.Errorf("%v: %s", err, body)
	}
	for range 30 {
		request()
	}
	if n := bad.seen.Load(); n < 10 {
		t.Errorf("the host that is back got %d of 30 requests", n-5)
	}
}

// TestEveryHostFails: the cap keeps the last one in use; without a cap and without panic nobody is left.
func TestEveryHostFails(t *testing.T) {
	for _, x := range []struct {
		percent, panic int
		body           string
	}{{50, 0, ""}, {100, 0, "no healthy upstream"}, {100, 50, ""}} {
		t.Run(fmt.Sprintf("%d%%, panic %d%%", x.percent, x.panic), func(t *testing.T) {
			a := newADS(t)
			addr := freeAddr(t).String()
			list, addrs := pods(t, 2)
			c := edsCluster("c")
			c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: float64(x.panic)}}
			c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(2), BaseEjectionTime: durationpb.New(time.Minute), MaxEjectionPercent: wrapperspb.UInt32(uint32(x.percent))}
			a.put(xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", addrs...)}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
				Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))}})
			start(t, a)
			for _, p := range list {
				p.status.Store(500)
			}
			client := httpClient(t)
			for range 20 {
				get(t, client, "http://"+addr)
			}
			before := list[0].seen.Load() + list[1].seen.Load()
			resp, body := get(t, client, "http://"+addr)
			if body != x.body || (resp.StatusCode == 503) != (x.body != "") {
				t.Errorf("status %d: %q", resp.StatusCode, body)
			}
			if reached := list[0].seen.Load()+list[1].seen.Load() > before; reached != (x.body == "") {
				t.Errorf("a host was reached: %v", reached)
			}
		})
	}
}

// TestFailover: with the first priority ejected its requests go to the second.
func TestFailover(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	list, addrs := pods(t, 4)
	c := edsCluster("c")
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}}
	c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(1), BaseEjectionTime: durationpb.New(time.Minute), MaxEjectionPercent: wrapperspb.UInt32(100)}
	e := cla(t, "c", addrs[:2]...)
	e.Endpoints = append(e.Endpoints, cla(t, "c", addrs[2:]...).Endpoints...)
	e.Endpoints[1].Priority = 1
	a.put(xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{e}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))}})
	start(t, a)
	client := httpClient(t)
	for range 20 {
		get(t, client, "http://"+addr)
	}
	if list[2].seen.Load()+list[3].seen.Load() != 0 {
		t.Fatal("the second priority got requests while the first was well")
	}
	list[0].status.Store(500)
	list[1].status.Store(500)
	failed := 0
	for range 40 {
		if resp, _ := get(t, client, "http://"+addr); resp.StatusCode != 200 {
			failed++
		}
	}
	if failed != 2 || list[2].seen.Load()+list[3].seen.Load() != 38 {
		t.Errorf("%d failed, %d to the second priority; want 2 and 38", failed, list[2].seen.Load()+list[3].seen.Load())
	}
}

// TestCircuitBreakers: one connection, one that waits: what comes on top is refused at once.
func TestCircuitBreakers(t *testing.T) {
	release, in := make(chan struct{}), make(chan struct{}, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		in <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	t.Cleanup(s.Close)
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	a := newADS(t)
	addr := freeAddr(t).String()
	c := edsCluster("c")
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxConnections: wrapperspb.UInt32(1), MaxPendingRequests: wrapperspb.UInt32(1)}}}
	act := weighted("c", 1)
	act.RetryPolicy = istioRetries(t)
	act.RetryPolicy.RetryOn = "5xx,reset,connect-failure" // an overflow is never tried again
	a.put(xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", strings.TrimPrefix(s.URL, "http://"))}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"*"}, prefix("/", act))}})
	admin, option := withAdmin(t)
	start(t, a, option)
	var wg sync.WaitGroup
	results := make(chan string, 2)
	send := func() {
		wg.Go(func() {
			resp, body, err := fetch(httpClient(t), "http://"+addr)
			if err != nil {
				results <- err.Error()
				return
			}
			results <- fmt.Sprint(resp.StatusCode, " ", body)
		})
	}
	send()
	reached(t, in, results) // has the connection
	send()
	adminHas(t, "http://"+admin+"/stats", "cluster.c.upstream_rq_pending_active: 1\n")
	adminHas(t, "http://"+admin+"/stats", "cluster.c.circuit_breakers.default.cx_open: 1\n")
	resp, body := get(t, httpClient(t), "http://"+addr)
	if resp.StatusCode != 503 || resp.Header.Get("x-envoy-overloaded") != "true" || body != "upstream connect error or disconnect/reset before headers. reset reason: overflow" {
		t.Errorf("status %d, %v: %s", resp.StatusCode, resp.Header, body)
	}
	adminHas(t, "http://"+admin+"/stats", "cluster.c.upstream_rq_pending_overflow: 1\n")
	adminHas(t, "http://"+admin+"/stats", "cluster.c.upstream_rq_retry: 0\n")
	let()
	wg.Wait()
	for range 2 {
		if r := <-results; r != "200 done" {
			t.Error(r)
		}
	}
	adminHas(t, "http://"+admin+"/stats", "cluster.c.circuit_breakers.default.remaining_pending: 1\n")
	adminHas(t, "http://"+admin+"/stats", "cluster.c.upstream_cx_active: 1\n")
}

// reached waits until a request is at the back end, of which results tell the end.
func reached(t *testing.T, in <-chan struct{}, results <-chan string) {
	t.Helper()
	select {
	case <-in:
	case r := <-results:
		t.Fatalf("the request ended before it reached the back end: %s", r)
	case <-time.After(20 * time.Second):
		t.Fatal("the request never reached the back end")
	}
}

// TestMaxRequestsAndRetries: the bounds on requests and on retries under way.
func TestMaxRequestsAndRetries(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	list, addrs := pods(t, 1)
	c := edsCluster("c")
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(0), MaxRetries: wrapperspb.UInt32(0)}}}
	d := edsCluster("d")
	d.EdsClusterConfig.ServiceName = "c"
	d.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRetries: wrapperspb.UInt32(0)}}}
	act := weighted("d", 1)
	act.RetryPolicy = istioRetries(t)
	act.RetryPolicy.RetryOn = "5xx"
	a.put(xds.Set{Clusters: []*clusterPB{c, d}, Endpoints: []*claPB{cla(t, "c", addrs...)}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"*"}, prefix("/d", act), prefix("/", weighted("c", 1)))}})
	admin, option := withAdmin(t)
	start(t, a, option)
	client := httpClient(t)
	if resp, _ := get(t, client, "http://"+addr+"/"); resp.StatusCode != 503 || resp.Header.Get("x-envoy-overloaded") != "true" || list[0].seen.Load() != 0 {
		t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
	}
	list[0].status.Store(500)
	if resp, _ := get(t, client, "http://"+addr+"/d"); resp.StatusCode != 500 || list[0].seen.Load() != 1 {
		t.Errorf("status %d after %d tries; want the 500 of the first", resp.StatusCode, list[0].seen.Load())
	}
	adminHas(t, "http://"+admin+"/stats", "cluster.d.upstream_rq_retry_overflow: 1\n")
}
