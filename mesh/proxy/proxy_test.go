package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/listener"
	"github.com/meshproof/meshproof/mesh/xds"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

func TestMain(m *testing.M) {
	if servePeer() {
		return
	}
	goleak.VerifyTestMain(m)
}

// backend answers with its name.
func backend(t testing.TB, name string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-backend", name)
		_, _ = fmt.Fprintf(w, "hello from %s %s", name, r.URL.Path)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// start runs a proxy until the test ends and waits until it serves.
func start(t testing.TB, a *ads, change ...func(*Bootstrap)) {
	t.Helper()
	ready := make(chan struct{})
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	b := Bootstrap{
		NodeID: "sidecar~127.0.0.1~test.default~default.svc.cluster.local", Discovery: client.DialOptions{Address: a.addr},
		Workload: conf.Workload{Name: "test", Namespace: "default"}, DrainTime: time.Second, Stop: listener.Drain{Limit: 200 * time.Millisecond},
		Ready: func() { close(ready) }, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	for _, c := range change {
		c(&b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, b) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("proxy not ready; rejected: %v", a.rejections())
	}
}

func get(t testing.TB, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, body, err := fetch(c, url)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

// fetch is get for goroutines that the test waits for: these must not end the test.
func fetch(c *http.Client, url string) (*http.Response, string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func httpClient(t testing.TB) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func canary(t testing.TB, addr, v1, v2 string, w1, w2 int) xds.Set {
	act := weighted("v1", w1, "v2", w2)
	act.RetryPolicy = istioRetries(t)
	return xds.Set{
		Clusters:  []*clusterPB{edsCluster("v1"), edsCluster("v2")},
		Endpoints: []*claPB{cla(t, "v1", v1), cla(t, "v2", v2)},
		Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes:    []*routesPB{table("80", []string{"*"}, prefix("/", act))},
	}
}

func TestRouteByWeight(t *testing.T) {
	for _, sotw := range []bool{false, true} {
		t.Run(fmt.Sprintf("sotw=%v", sotw), func(t *testing.T) {
			a := newADS(t)
			addr := freeAddr(t).String()
			a.put(canary(t, addr, backend(t, "v1"), backend(t, "v2"), 80, 20))
			start(t, a, func(b *Bootstrap) { b.Sotw = sotw })
			c := httpClient(t)
			n := map[string]int{}
			for range 1000 {
				resp, body := get(t, c, "http://"+addr+"/x")
				if resp.StatusCode != 200 {
					t.Fatalf("status %d: %s", resp.StatusCode, body)
				}
				n[resp.Header.Get("x-backend")]++
			}
			// 200 +- 6 standard deviations of a binomial(1000, 0.2)
			if n["v2"] < 124 || n["v2"] > 276 {
				t.Errorf("v2 got %d of 1000, want about 200", n["v2"])
			}
			if r := a.rejections(); len(r) > 0 {
				t.Errorf("rejected: %v", r)
			}
		})
	}
}

// TestNoLossUnderChange moves weights, endpoints and whole clusters about under load: no request may fail.
func TestNoLossUnderChange(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	v1, v2, v3 := backend(t, "v1"), backend(t, "v2"), backend(t, "v3")
	a.put(canary(t, addr, v1, v2, 100, 0))
	start(t, a)
	c := httpClient(t)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var total, failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := c.Get("http://" + addr + "/load")
				total.Add(1)
				if err != nil {
					failed.Add(1)
					t.Errorf("request: %v", err)
					continue
				}
				b, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != 200 || err != nil {
					failed.Add(1)
					t.Errorf("status %d, %v: %s", resp.StatusCode, err, b)
				}
			}
		})
	}
	want := total.Load()
	for i := range 60 {
		set := canary(t, addr, v1, v2, 100-i, i+1)
		switch i % 3 {
		case 1: // endpoints move
			set.Endpoints[0] = cla(t, "v1", v1, v3)
		case 2: // a new cluster replaces an old one
			act := weighted("v1", 50, "v3", 50)
			set.Clusters = []*clusterPB{edsCluster("v1"), edsCluster("v3")}
			set.Endpoints = []*claPB{cla(t, "v1", v1), cla(t, "v3", v3)}
			set.Routes = []*routesPB{table("80", []string{"*"}, prefix("/", act))}
		}
		a.put(set)
		want += 50
		for total.Load() < want && failed.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	wg.Wait()
	if r := a.rejections(); len(r) > 0 {
		t.Errorf("rejected: %v", r)
	}
	t.Logf("%d requests over 60 changes, %d failed", total.Load(), failed.Load())
}

func TestAdmin(t *testing.T) {
	a := newADS(t)
	addr, admin := freeAddr(t).String(), freeAddr(t).String()
	a.put(canary(t, addr, backend(t, "v1"), backend(t, "v2"), 50, 50))
	start(t, a, func(b *Bootstrap) { b.Admin = admin })
	c := httpClient(t)
	for range 10 {
		get(t, c, "http://"+addr+"/")
	}
	for path, want := range map[string][]string{
		"/config_dump":             {"ClustersConfigDump", "dynamic_active_clusters", "dynamic_listeners", "active_state", "dynamic_route_configs", `"version_info"`, "sidecar~127.0.0.1"},
		"/config_dump?include_eds": {"EndpointsConfigDump", "dynamic_endpoint_configs"},
		"/clusters":                {"v1::127.0.0.1:", "::rq_total::", "::health_flags::healthy"},
		"/clusters?format=json":    {`"cluster_statuses"`, `"eds_health_status": "HEALTHY"`},
		"/listeners":               {"listener_80::" + addr},
		"/stats":                   {"cluster.v1.upstream_rq_2xx: ", "control_plane.connected_state: 1"},
		"/stats/prometheus":        {`istio_requests_total{reporter="source",source_workload="test"`, `envoy_cluster_upstream_rq_total{cluster_name="v1"}`, `le="+Inf"`},
		"/ready":                   {"LIVE"},
		"/server_info":             {`"state": "LIVE"`},
	} {
		resp, body := get(t, c, "http://"+admin+path)
		if resp.StatusCode != 200 {
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
		for _, w := range want {
			// protojson varies its white space on purpose
			if !strings.Contains(body, w) && !strings.Contains(strings.ReplaceAll(body, ":  ", ": "), w) {
				t.Errorf("%s lacks %q:\n%.2000s", path, w, body)
			}
		}
	}
}

// TestControlPlaneAway: the proxy serves on while its control plane is gone, and takes the newest configuration when it is back.
func TestControlPlaneAway(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	v1, v2 := backend(t, "v1"), backend(t, "v2")
	a.put(canary(t, addr, v1, v2, 100, 0))
	start(t, a)
	c := httpClient(t)
	a.stop()
	for range 20 {
		if resp, body := get(t, c, "http://"+addr+"/"); resp.StatusCode != 200 || resp.Header.Get("x-backend") != "v1" {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
	}
	a.put(canary(t, addr, v1, v2, 0, 100))
	a.serve()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, body := get(t, c, "http://"+addr+"/")
		if resp.StatusCode != 200 {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
		if resp.Header.Get("x-backend") == "v2" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the new configuration did not come")
		}
	}
}

// TestRefusalKeepsWhatWorks: a push with one bad resource is refused with its reason, and what served before serves on.
func TestRefusalKeepsWhatWorks(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	set := canary(t, addr, backend(t, "v1"), backend(t, "v2"), 100, 0)
	a.put(set)
	start(t, a)
	bad := canary(t, addr, "127.0.0.1:1", "127.0.0.1:1", 100, 0)
	bad.Endpoints = set.Endpoints
	bad.Routes[0].VirtualHosts[0].Routes[0].GetRoute().RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: "v2"}}
	a.put(bad)
	for deadline := time.Now().Add(10 * time.Second); len(a.rejections()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not refused")
		}
	}
	if r := a.rejections()[0]; !strings.Contains(r, "request_mirror_policies is not supported") {
		t.Errorf("reason %q", r)
	}
	if resp, body := get(t, httpClient(t), "http://"+addr+"/"); resp.StatusCode != 200 {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}

// TestRefusedListener: a listener whose new address is taken, or whose certificate is not there, is refused with the reason, and
// serves on where it did.
func TestRefusedListener(t *testing.T) {
	taken, err := net.Listen("tcp", freeAddr(t).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, c := range map[string]struct {
		change func(*listenerPB)
		reason string
	}{
		"address": {func(l *listenerPB) {
			l.Address = address(t, taken.Addr().String())
		}, "address already in use"},
		"certificate": {func(l *listenerPB) {
			l.FilterChains[0].TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{
				TypedConfig: pack(t, &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{TlsCertificates: []*tlsv3.TlsCertificate{{
					CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "/nonexistent/cert.pem"}},
					PrivateKey:       &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "/nonexistent/key.pem"}},
				}}}})}}
		}, "/nonexistent/cert.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newADS(t)
			addr := freeAddr(t).String()
			set := canary(t, addr, backend(t, "v1"), backend(t, "v2"), 100, 0)
			a.put(set)
			start(t, a)
			bad := set
			bad.Listeners = []*listenerPB{httpListener(t, addr, "80")}
			c.change(bad.Listeners[0])
			a.put(bad)
			for deadline := time.Now().Add(10 * time.Second); len(a.rejections()) == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("not refused")
				}
			}
			if r := a.rejections()[0]; !strings.Contains(r, c.reason) {
				t.Errorf("reason %q, want %q", r, c.reason)
			}
			if resp, body := get(t, httpClient(t), "http://"+addr+"/"); resp.StatusCode != 200 {
				t.Errorf("status %d: %s", resp.StatusCode, body)
			}
		})
	}
}

// TestListenerMoves: a listener whose address changes serves at the new one alone.
func TestListenerMoves(t *testing.T) {
	a := newADS(t)
	addr, next := freeAddr(t).String(), freeAddr(t).String()
	set := canary(t, addr, backend(t, "v1"), backend(t, "v2"), 100, 0)
	a.put(set)
	start(t, a)
	c := httpClient(t)
	if resp, body := get(t, c, "http://"+addr+"/"); resp.StatusCode != 200 {
		t.Fatalf("status %d: %s", resp.StatusCode, body)
	}
	set.Listeners = []*listenerPB{httpListener(t, next, "80")}
	a.put(set)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			break // the new one is open before this one is closed
		}
		_ = conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("the old address is still open")
		}
	}
	if resp, body := get(t, c, "http://"+next+"/"); resp.StatusCode != 200 {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}
