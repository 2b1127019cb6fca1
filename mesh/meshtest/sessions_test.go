package meshtest

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// everyPod tells all replicas to fail, not one.
const everyPod = -2

// replicas are pods of reviews that answer with their name, and count; one can be told to fail.
func replicas(t *testing.T, rule string, n int) (m *Mesh, client *Workload, seen []*atomic.Int64, failing *atomic.Int64) {
	t.Helper()
	m = New(t, services+"---"+rule)
	failing = &atomic.Int64{}
	failing.Store(-1)
	for i := range n {
		count := &atomic.Int64{}
		seen = append(seen, count)
		name := fmt.Sprintf("reviews-%d", i)
		m.Add(&Workload{Name: name, Labels: map[string]string{"app": "reviews", "version": "v1"}, ServiceAccount: "reviews", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			count.Add(1)
			w.Header().Set("x-pod", name)
			if bad := failing.Load(); bad == int64(i) || bad == everyPod {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})})
	}
	client = m.Add(&Workload{Name: "productpage", Labels: map[string]string{"app": "productpage"}, ServiceAccount: "productpage"})
	m.Acked()
	return m, client, seen, failing
}

// TestCookieOfTheMesh: the write-up's sticky session, by Istio's own words, sets a cookie of exactly this form.
func TestCookieOfTheMesh(t *testing.T) {
	_, client, _, _ := replicas(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer:
      consistentHash:
        httpCookie: {name: user, ttl: 1800s}
`, 3)
	line := regexp.MustCompile(`^user="([0-9a-f]{16})"; Max-Age=1800; HttpOnly$`)
	pods := map[string]int{}
	for range 30 {
		c := client.Client()
		resp, _ := call(t, c, "http://reviews:9080/")
		set := line.FindStringSubmatch(strings.Join(resp.Header.Values("Set-Cookie"), "|"))
		if set == nil {
			t.Fatalf("Set-Cookie %q", resp.Header.Values("Set-Cookie"))
		}
		home := resp.Header.Get("x-pod")
		pods[home]++
		for range 5 {
			again, _ := call(t, c, "http://reviews:9080/", "Cookie", "user="+set[1])
			if got := again.Header.Get("x-pod"); got != home || again.Header.Get("Set-Cookie") != "" {
				t.Errorf("a session of %s went to %s (Set-Cookie %q)", home, got, again.Header.Get("Set-Cookie"))
			}
		}
	}
	if len(pods) != 3 {
		t.Errorf("30 sessions went to %v", pods)
	}
}

// TestOutlierDetection: the write-up's circuit breaker, over mutual TLS: the pod that fails gets its two errors and no more.
func TestOutlierDetection(t *testing.T) {
	_, client, seen, failing := replicas(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool:
      tcp: {maxConnections: 100}
    outlierDetection:
      consecutive5xxErrors: 2
      interval: 1s
      baseEjectionTime: 3m
      maxEjectionPercent: 100
`, 3)
	c := client.Client()
	failing.Store(1)
	failed := 0
	for range 60 {
		resp, _ := call(t, c, "http://reviews:9080/")
		if resp.StatusCode == 503 {
			failed++
		}
	}
	if failed != 2 || seen[1].Load() != 2 || seen[0].Load()+seen[2].Load() != 58 {
		t.Errorf("%d failed; requests by pod %d, %d, %d; want 2 at the one that fails", failed, seen[0].Load(), seen[1].Load(), seen[2].Load())
	}
	admin := "http://" + client.IP + ":15000"
	_, clusters := call(t, http.DefaultClient, admin+"/clusters")
	_, events := call(t, http.DefaultClient, admin+"/outlier_events")
	http.DefaultClient.CloseIdleConnections()
	if strings.Count(clusters, "::health_flags::/failed_outlier_check\n") != 1 || !strings.Contains(clusters, "::default_priority::max_connections::100\n") {
		t.Errorf("clusters:\n%s", clusters)
	}
	if want := `"type":"` + conf.Eject5xx.String() + `"`; !strings.Contains(events, want) || !strings.Contains(events, `"enforced":true`) {
		t.Errorf("events:\n%s", events)
	}
}

// TestEveryPodFails: the cap refuses each row of errors at a pod that stays in, also of gateway errors, whose default is not enforced, and
// the stats count them; with just half of the pods out minHealthPercent 50 is no panic, with one more out it is.
func TestEveryPodFails(t *testing.T) {
	const pods, row, gatewayRow, requests = 4, 3, 5, 60
	for percent, out := range map[int]int{10: 0, 50: 2, 75: 3} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			_, client, seen, failing := replicas(t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: %d, interval: 1h, baseEjectionTime: 1h, maxEjectionPercent: %d, minHealthPercent: 50}
`, row, percent), pods)
			failing.Store(everyPod)
			c := client.Client()
			for range requests {
				call(t, c, "http://reviews:9080/")
			}
			_, clusters := call(t, http.DefaultClient, "http://"+client.IP+":15000/clusters")
			_, stats := call(t, http.DefaultClient, "http://"+client.IP+":15000/stats")
			http.DefaultClient.CloseIdleConnections()
			ejected, due := 0, 0
			for _, m := range regexp.MustCompile(`(?m)^(outbound.*)::health_flags::(.*)$`).FindAllStringSubmatch(clusters, -1) {
				var n int
				_, after, _ := strings.Cut(clusters, m[1]+"::rq_total::")
				if fmt.Sscan(after, &n); n == 0 {
					continue // of another Service
				}
				switch panics := 2*out > pods; {
				case m[2] == "healthy":
					due += n/row + n/gatewayRow
				case panics && n <= row:
					t.Errorf("in panic nothing was sent to %s, which is out", m[1])
				case !panics && n != row:
					t.Errorf("%d requests to %s, want it to be out after %d", n, m[1], row)
				}
				if m[2] == "/failed_outlier_check" {
					ejected++
				}
			}
			if ejected != out || due == 0 {
				t.Fatalf("%d of %d pods are out, want %d; %d refusals are due", ejected, pods, out, due)
			}
			if want := fmt.Sprintf("|reviews.default.svc.cluster.local.outlier_detection.ejections_overflow: %d\n", due); !strings.Contains(stats, want) {
				for line := range strings.Lines(stats) {
					if strings.Contains(line, "ejections_overflow") {
						t.Errorf("%swant %d", line, due)
					}
				}
			}
			total := int64(0)
			for _, n := range seen {
				total += n.Load()
			}
			if total != requests {
				t.Errorf("the pods had %d requests, not %d", total, requests)
			}
		})
	}
}
