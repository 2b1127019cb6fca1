package meshtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const services = `
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: 8080}]
`

const subsets = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`

func split(v1, v2 int) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match:
    - headers: {end-user: {exact: jason}}
    route:
    - destination: {host: reviews, subset: v2}
  - route:
    - destination: {host: reviews, subset: v1}
      weight: %d
    - destination: {host: reviews, subset: v2}
      weight: %d
`, v1, v2)
}

// echo tells which version answered and who it was told is calling.
func echo(version string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-version", version)
		w.Header().Set("x-xfcc", r.Header.Get("X-Forwarded-Client-Cert"))
		if r.ContentLength > 0 {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = io.WriteString(w, "hello")
	})
}

func bookinfo(t *testing.T) (*Mesh, *Workload) {
	t.Helper()
	m := New(t, services+"---"+subsets)
	for _, v := range []string{"v1", "v2"} {
		m.Add(&Workload{Name: "reviews-" + v, Labels: map[string]string{"app": "reviews", "version": v}, ServiceAccount: "reviews", Handler: echo(v)})
	}
	client := m.Add(&Workload{Name: "productpage", Labels: map[string]string{"app": "productpage"}, ServiceAccount: "productpage"})
	m.Apply(split(100, 0))
	m.Acked()
	return m, client
}

func call(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func share(t *testing.T, c *http.Client, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		resp, body := call(t, c, "http://reviews:9080/")
		if resp.StatusCode != 200 {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
		got[resp.Header.Get("x-version")]++
	}
	return got
}

func TestWeightsAndHeaderRoute(t *testing.T) {
	m, pp := bookinfo(t)
	c := pp.Client()
	if got := share(t, c, 100); got["v1"] != 100 {
		t.Errorf("100/0 gave %v", got)
	}
	m.Apply(split(50, 50))
	m.Acked()
	// 6 standard deviations of binomial(1000, 0.5) are 95.
	if got := share(t, c, 1000); got["v1"] < 405 || got["v1"] > 595 {
		t.Errorf("50/50 gave %v", got)
	}
	m.Apply(split(0, 100))
	m.Acked()
	if got := share(t, c, 100); got["v2"] != 100 {
		t.Errorf("0/100 gave %v", got)
	}
	m.Apply(split(100, 0))
	m.Acked()
	for range 20 {
		if resp, _ := call(t, c, "http://reviews:9080/", "end-user", "jason"); resp.Header.Get("x-version") != "v2" {
			t.Errorf("jason was sent to %s", resp.Header.Get("x-version"))
		}
	}
}

func TestMutualTLS(t *testing.T) {
	m, pp := bookinfo(t)
	resp, _ := call(t, pp.Client(), "http://reviews:9080/")
	xfcc := resp.Header.Get("x-xfcc")
	for _, want := range []string{"By=spiffe://cluster.local/ns/default/sa/reviews", "URI=spiffe://cluster.local/ns/default/sa/productpage", "Hash="} {
		if !strings.Contains(xfcc, want) {
			t.Errorf("x-forwarded-client-cert %q lacks %q", xfcc, want)
		}
	}
	// Permissive: somebody without a sidecar is served in plaintext, and cannot forge a certificate header.
	bare := m.Add(&Workload{Name: "legacy", Bare: true})
	resp, _ = call(t, bare.Client(), "http://"+m.workloads[0].IP+":8080/", "x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/kube-system/sa/admin")
	if resp.StatusCode != 200 || resp.Header.Get("x-xfcc") != "" {
		t.Errorf("plaintext: status %d, x-forwarded-client-cert %q", resp.StatusCode, resp.Header.Get("x-xfcc"))
	}
}

func TestBareEndpointGetsPlaintext(t *testing.T) {
	m := New(t, services)
	m.Add(&Workload{Name: "reviews-v1", Labels: map[string]string{"app": "reviews", "version": "v1"}, Handler: echo("v1"), Bare: true})
	pp := m.Add(&Workload{Name: "productpage", Labels: map[string]string{"app": "productpage"}})
	m.Acked()
	resp, body := call(t, pp.Client(), "http://reviews:9080/")
	if resp.StatusCode != 200 || resp.Header.Get("x-xfcc") != "" {
		t.Errorf("status %d, x-forwarded-client-cert %q: %s", resp.StatusCode, resp.Header.Get("x-xfcc"), body)
	}
}

// TestNoLossWhileWeightsMove: with both sides meshed and under load, no request fails over many pushes.
func TestNoLossWhileWeightsMove(t *testing.T) {
	m, pp := bookinfo(t)
	c := pp.Client()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var total atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				var resp *http.Response
				var err error
				if i%2 == 0 {
					resp, err = c.Get("http://reviews:9080/")
				} else {
					resp, err = c.Post("http://reviews:9080/", "text/plain", strings.NewReader(strings.Repeat("x", 100)))
				}
				total.Add(1)
				if err != nil {
					t.Errorf("request: %v", err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != 200 || err != nil {
					t.Errorf("status %d, %v: %s", resp.StatusCode, err, b)
					return
				}
			}
		})
	}
	for i := 0; i <= 100 && !t.Failed(); i += 5 {
		m.Apply(split(100-i, i))
		m.Acked()
		for want := total.Load() + 50; total.Load() < want && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	wg.Wait()
	t.Logf("%d requests", total.Load())
}

// TestTelemetryKnowsBothSides: each side's standard metric names source and destination, as they told each other.
func TestTelemetryKnowsBothSides(t *testing.T) {
	m, pp := bookinfo(t)
	call(t, pp.Client(), "http://reviews:9080/")
	for ip, want := range map[string][]string{
		pp.IP: {`istio_requests_total{reporter="source",source_workload="productpage"`, `source_principal="spiffe://cluster.local/ns/default/sa/productpage"`,
			`destination_workload="reviews-v1"`, `destination_principal="spiffe://cluster.local/ns/default/sa/reviews"`, `destination_service="reviews.default.svc.cluster.local"`},
		m.workloads[0].IP: {`istio_requests_total{reporter="destination",source_workload="productpage",source_canonical_service="productpage"`,
			`destination_workload="reviews-v1"`, `connection_security_policy="mutual_tls"`},
	} {
		// An exchange is counted when it is over, which is after its client has the answer.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		again := time.NewTicker(5 * time.Millisecond)
		defer again.Stop()
		for {
			_, body := call(t, http.DefaultClient, "http://"+ip+":15000/stats/prometheus")
			i := slices.IndexFunc(want, func(w string) bool { return !strings.Contains(body, w) })
			if i < 0 {
				break
			}
			select {
			case <-again.C:
				continue
			case <-ctx.Done():
				t.Fatalf("%s lacks %s:\n%.3000s", ip, want[i], body)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestGateway: a gateway is ready before there is anything for it to serve, opens its port when a Gateway asks for it, and
// splits by weight over mutual TLS.
func TestGateway(t *testing.T) {
	m, _ := bookinfo(t)
	gw := m.Add(&Workload{Name: "ingress", Namespace: "istio-system", Labels: map[string]string{"istio": "ingressgateway"}, Gateway: true})
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: ["*"]
  gateways: [web]
  http:
  - match: [{uri: {prefix: /v2}}]
    rewrite: {uri: /}
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, redirectCode: 302}
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 70}
    - {destination: {host: reviews, subset: v2}, weight: 30}
`)
	m.Acked()
	tr := &http.Transport{MaxIdleConnsPerHost: 4}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	base := "http://" + gw.IP + ":8080"
	got := map[string]int{}
	for range 500 {
		resp, body := call(t, c, base+"/")
		if resp.StatusCode != 200 {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
		got[resp.Header.Get("x-version")]++
		if xfcc := resp.Header.Get("x-xfcc"); !strings.Contains(xfcc, "URI=spiffe://cluster.local/ns/istio-system/sa/default") {
			t.Fatalf("not over mutual TLS: %q", xfcc)
		}
	}
	// 6 standard deviations of binomial(500, 0.3) are 61.
	if got["v2"] < 89 || got["v2"] > 211 {
		t.Errorf("70/30 gave %v", got)
	}
	if resp, _ := call(t, c, base+"/v2/x"); resp.Header.Get("x-version") != "v2" {
		t.Errorf("/v2 went to %q", resp.Header.Get("x-version"))
	}
	if resp, _ := call(t, c, base+"/old"); resp.StatusCode != 302 || resp.Header.Get("Location") != base+"/new" {
		t.Errorf("redirect: %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}
