package proxy

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// overHTTP2 makes a cluster speak HTTP/2 to its endpoints.
func overHTTP2(t testing.TB, c *clusterPB) *clusterPB {
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(t, &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}}}})}
	return c
}

func http2Server(t testing.TB, h http.Handler) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// TestHTTP2Breaker: requests share a connection, so the bound is on requests: the third of two is refused, and room that is
// given back is used.
func TestHTTP2Breaker(t *testing.T) {
	release, in := make(chan struct{}), make(chan struct{}, 10)
	backend := http2Server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in <- struct{}{}
		<-release
		_, _ = io.WriteString(w, r.Proto)
	}))
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	a := newADS(t)
	addr := freeAddr(t).String()
	c := overHTTP2(t, edsCluster("c"))
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxConnections: wrapperspb.UInt32(1), MaxRequests: wrapperspb.UInt32(2)}}}
	a.put(xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", backend)}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))}})
	admin, option := withAdmin(t)
	start(t, a, option)
	var wg sync.WaitGroup
	results := make(chan string, 2)
	for range 2 {
		wg.Go(func() {
			resp, body, err := fetch(httpClient(t), "http://"+addr)
			if err != nil {
				results <- err.Error()
				return
			}
			results <- fmt.Sprint(resp.StatusCode, " ", body)
		})
		reached(t, in, results)
	}
	adminHas(t, "http://"+admin+"/stats", "cluster.c.circuit_breakers.default.rq_open: 1\n")
	client := httpClient(t)
	if resp, _ := get(t, client, "http://"+addr); resp.StatusCode != 503 || resp.Header.Get("x-envoy-overloaded") != "true" {
		t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
	}
	let()
	wg.Wait()
	for range 2 {
		if r := <-results; r != "200 HTTP/2.0" {
			t.Error(r)
		}
	}
	adminHas(t, "http://"+admin+"/stats", "cluster.c.circuit_breakers.default.remaining_rq: 2\n")
	adminHas(t, "http://"+admin+"/stats", "cluster.c.upstream_cx_active: 1\n")
	if resp, body := get(t, client, "http://"+addr); resp.StatusCode != 200 {
		t.Errorf("after all: %d %s", resp.StatusCode, body)
	}
}

// TestGRPCOutlier: a gRPC status in the head of an answer counts as the HTTP status that it stands for.
func TestGRPCOutlier(t *testing.T) {
	var addrs []string
	bad := ""
	for i := range 2 {
		addr := http2Server(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "application/grpc")
			w.Header().Set("x-backend", fmt.Sprint(i))
			if i == 1 {
				w.Header().Set("grpc-status", "14")
			} else {
				w.Header().Set("grpc-status", "5") // not found: a success for outlier detection
			}
		}))
		addrs = append(addrs, addr)
		bad = addr
	}
	a := newADS(t)
	addr := freeAddr(t).String()
	c := overHTTP2(t, edsCluster("c"))
	c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(3), MaxEjectionPercent: wrapperspb.UInt32(100)}
	a.put(xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", addrs...)}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))}})
	admin, option := withAdmin(t)
	start(t, a, option)
	client := httpClient(t)
	seen := map[string]int{}
	for range 20 {
		req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/a.B/C", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("content-type", "application/grpc")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		seen[resp.Header.Get("x-backend")]++
	}
	if seen["1"] != 3 || seen["0"] != 17 {
		t.Errorf("requests by host: %v, want 3 at the one that is unavailable", seen)
	}
	adminHas(t, "http://"+admin+"/clusters", bad+"::health_flags::/failed_outlier_check\n")
}

// TestResetsCountOnce: a try that is reset is one error, over either protocol.
func TestResetsCountOnce(t *testing.T) {
	for _, two := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", two), func(t *testing.T) {
			var bad atomic.Int64
			aborts := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				bad.Add(1)
				panic(http.ErrAbortHandler)
			})
			answers := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
			c := edsCluster("c")
			var addrs []string
			for _, h := range []http.Handler{answers, aborts} {
				if two {
					addrs = append(addrs, http2Server(t, h))
					continue
				}
				s := httptest.NewServer(h)
				t.Cleanup(s.Close)
				addrs = append(addrs, strings.TrimPrefix(s.URL, "http://"))
			}
			if two {
				c = overHTTP2(t, c)
			}
			c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
			c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(4), MaxEjectionPercent: wrapperspb.UInt32(100)}
			a := newADS(t)
			addr := freeAddr(t).String()
			a.put(xds.Set{Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", addrs...)}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
				Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))}})
			start(t, a)
			client := httpClient(t)
			for range 20 {
				resp, err := client.Post("http://"+addr, "text/plain", strings.NewReader("x")) // a POST is not sent again
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
			}
			if n := bad.Load(); n != 4 {
				t.Errorf("the host that resets got %d requests, want 4", n)
			}
		})
	}
}
