package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/proxy/listener"
	"github.com/meshproof/meshproof/mesh/xds"
)

// serveWith runs a proxy with one route to the given handler and returns the proxy's address.
func serveWith(t *testing.T, h http.Handler, change func(*routev3.RouteAction)) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return serveTo(t, strings.TrimPrefix(s.URL, "http://"), change)
}

// serveTo is serveWith for an upstream that runs.
func serveTo(t *testing.T, upstream string, change func(*routev3.RouteAction)) string {
	t.Helper()
	a := newADS(t)
	addr := freeAddr(t).String()
	act := weighted("c", 1)
	act.RetryPolicy = istioRetries(t)
	if change != nil {
		change(act)
	}
	a.put(xds.Set{
		Clusters: []*clusterPB{edsCluster("c")}, Endpoints: []*claPB{cla(t, "c", upstream)},
		Listeners: []*listenerPB{httpListener(t, addr, "80")}, Routes: []*routesPB{table("80", []string{"*"}, prefix("/", act))},
	})
	start(t, a)
	return addr
}

// byHand serves each connection by hand until the test ends.
func byHand(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// raw sends bytes and returns everything until the proxy closes.
func raw(t *testing.T, addr, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

func TestBodies(t *testing.T) {
	addr := serveWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(500)
			return
		}
		w.Header().Set("x-length", fmt.Sprint(r.ContentLength))
		w.Header().Set("Trailer", "x-sum")
		_, _ = w.Write(b)
		w.Header().Set("x-sum", fmt.Sprint(len(b)))
	}), nil)
	c := httpClient(t)
	for _, size := range []int{0, 1, 5000, 8 << 10, 100 << 10, 3 << 20} {
		for _, chunked := range []bool{false, true} {
			body := strings.Repeat("abcdefg ", size/8+1)[:size]
			var rd io.Reader = strings.NewReader(body)
			if chunked {
				rd = struct{ io.Reader }{rd}
			}
			resp, err := c.Post("http://"+addr+"/", "text/plain", rd)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || string(got) != body {
				t.Errorf("size %d chunked %v: status %d, %d bytes back, %v", size, chunked, resp.StatusCode, len(got), err)
			}
			if resp.Trailer.Get("x-sum") != fmt.Sprint(size) && resp.ContentLength < 0 {
				t.Errorf("size %d: trailer %v", size, resp.Trailer)
			}
		}
	}
}

func TestExpectContinue(t *testing.T) {
	addr := serveWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }), nil)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n")
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, _ = r.ReadString('\n')
	_, _ = io.WriteString(c, "hello")
	rest, err := io.ReadAll(r)
	if err != nil || !strings.HasPrefix(string(rest), "HTTP/1.1 200") || !strings.HasSuffix(string(rest), "hello") {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestPipelineAndHead(t *testing.T) {
	addr := serveWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "path "+r.URL.Path) }), nil)
	got := raw(t, addr, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if strings.Count(got, "HTTP/1.1 200") != 3 || !strings.Contains(got, "path /1HTTP/1.1") || strings.Contains(got, "path /2") || !strings.HasSuffix(got, "path /3") {
		t.Errorf("got %q", got)
	}
}

// TestOldClient: to a client of HTTP/1.0 the end of an answer without a length is the end of the connection, whatever it asked for.
func TestOldClient(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, "b")
	}))
	t.Cleanup(s.Close)
	a := newADS(t)
	addr := freeAddr(t).String()
	l := httpListener(t, addr, "80")
	l.FilterChains[0].Filters = []*listenerv3.Filter{manager(t, rds("80"), func(h *hcmv3.HttpConnectionManager) {
		h.HttpProtocolOptions = &corev3.Http1ProtocolOptions{AcceptHttp_10: true}
	})}
	a.put(xds.Set{
		Clusters: []*clusterPB{edsCluster("c")}, Endpoints: []*claPB{cla(t, "c", strings.TrimPrefix(s.URL, "http://"))},
		Listeners: []*listenerPB{l}, Routes: []*routesPB{table("80", []string{"*"}, prefix("/", weighted("c", 1)))},
	})
	start(t, a)
	if got := raw(t, addr, "GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\nab") {
		t.Errorf("%q", got)
	}
}

func TestSmugglingIsRefused(t *testing.T) {
	var seen atomic.Int64
	addr := serveWith(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) }), nil)
	got := raw(t, addr, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 400") || strings.Count(got, "HTTP/1.1") != 1 || seen.Load() != 0 {
		t.Errorf("%d requests got through: %q", seen.Load(), got)
	}
}

func TestWebsocketUpgrade(t *testing.T) {
	addr := serveWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
			http.Error(w, "no upgrade", 400)
			return
		}
		c, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst,")
		line, _ := buf.ReadString('\n')
		_, _ = io.WriteString(c, "echo "+line)
	}), nil)
	got := raw(t, addr, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nping\n")
	if !strings.HasPrefix(got, "HTTP/1.1 101") || !strings.Contains(strings.ToLower(got), "upgrade: websocket") || !strings.HasSuffix(got, "first,echo ping\n") {
		t.Errorf("got %q", got)
	}
}

// TestRetryOnDeadEndpoint: an endpoint that refuses connections costs no request, as the policy retries on connect-failure.
func TestRetryOnDeadEndpoint(t *testing.T) {
	a := newADS(t)
	addr, dead := freeAddr(t).String(), freeAddr(t).String()
	act := weighted("c", 1)
	act.RetryPolicy = istioRetries(t)
	a.put(xds.Set{
		Clusters: []*clusterPB{edsCluster("c")}, Endpoints: []*claPB{cla(t, "c", dead, backend(t, "alive"))},
		Listeners: []*listenerPB{httpListener(t, addr, "80")}, Routes: []*routesPB{table("80", []string{"*"}, prefix("/", act))},
	})
	start(t, a)
	c := httpClient(t)
	for range 50 {
		if resp, body := get(t, c, "http://"+addr+"/"); resp.StatusCode != 200 {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
	}
}

func TestRetryOnStatusAndItsLimit(t *testing.T) {
	var n atomic.Int64
	addr := serveWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if n.Add(1)%3 != 0 {
			w.WriteHeader(503)
			return
		}
		_, _ = fmt.Fprintf(w, "%s attempt %s", b, r.Header.Get("x-envoy-attempt-count"))
	}), func(a *routev3.RouteAction) {
		a.RetryPolicy = &routev3.RetryPolicy{RetryOn: "retriable-status-codes", RetriableStatusCodes: []uint32{503}, NumRetries: wrapperspb.UInt32(2)}
	})
	resp, err := httpClient(t).Post("http://"+addr+"/", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || string(b) != "body attempt 3" {
		t.Errorf("status %d: %q", resp.StatusCode, b)
	}
	if n.Load() != 3 {
		t.Errorf("%d attempts", n.Load())
	}
}

func TestTimeouts(t *testing.T) {
	release := make(chan struct{})
	addr := serveWith(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}), func(a *routev3.RouteAction) { a.Timeout = durationpb.New(100 * time.Millisecond) })
	t.Cleanup(func() { close(release) })
	resp, body := get(t, httpClient(t), "http://"+addr+"/")
	if resp.StatusCode != 504 || body != "upstream request timeout" {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}

// TestStalePooledConnections: a server that closes each connection after an answer without saying so costs nothing.
func TestStalePooledConnections(t *testing.T) {
	addr := serveTo(t, byHand(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}), func(a *routev3.RouteAction) { a.RetryPolicy = nil })
	c := httpClient(t)
	for range 300 {
		if resp, body := get(t, c, "http://"+addr+"/"); resp.StatusCode != 200 {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
	}
}

// TestEarlyAnswerToABody: a connection that an upstream answered on before it had read the whole request is not used again, though
// the answer could have been tried again: what comes next on it would be read as the rest of that body.
func TestEarlyAnswerToABody(t *testing.T) {
	var connections atomic.Int64
	addr := serveTo(t, byHand(t, func(c net.Conn) {
		connections.Add(1)
		in := bufio.NewReader(c)
		for {
			q, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if q.Method == http.MethodPost {
				// More than can be sent again, and not all of it.
				if _, err := io.CopyN(io.Discard, q.Body, 100<<10); err != nil {
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
				continue
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}), func(a *routev3.RouteAction) {
		a.RetryPolicy = &routev3.RetryPolicy{RetryOn: "5xx", NumRetries: wrapperspb.UInt32(1)}
	})
	body, w := io.Pipe()
	go func() { _, _ = w.Write(make([]byte, 120<<10)) }() // and never the rest
	t.Cleanup(func() { _ = w.Close(); _ = body.Close() })
	c := httpClient(t)
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/", body)
	if err != nil {
		t.Fatal(err)
	}
	q.ContentLength = 200 << 10
	resp, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 503 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if resp, got := get(t, c, "http://"+addr+"/"); resp.StatusCode != 200 || got != "ok" {
		t.Errorf("the next request: status %d, %q", resp.StatusCode, got)
	}
	if n := connections.Load(); n != 2 {
		t.Errorf("%d connections: the one that was cut short was used again", n)
	}
}

// TestUnaskedSwitch: an upstream that switches protocols though nobody asked it to costs its connection, and nothing of it reaches
// the client.
func TestUnaskedSwitch(t *testing.T) {
	addr := serveTo(t, byHand(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nsecret")
			_, _ = io.Copy(io.Discard, c)
		}
	}), nil)
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		if got := raw(t, addr, head); !strings.HasPrefix(got, "HTTP/1.1 502 ") || strings.Contains(got, "secret") {
			t.Errorf("%.4s: %q", head, got)
		}
	}
}

// TestUpstreamThatDoesNotRead: a request that does not get through ends when nothing of it moves.
func TestUpstreamThatDoesNotRead(t *testing.T) {
	addr := serveTo(t, byHand(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			<-t.Context().Done()
		}
	}), func(a *routev3.RouteAction) {
		a.IdleTimeout = durationpb.New(200 * time.Millisecond)
	})
	resp, err := httpClient(t).Post("http://"+addr+"/", "application/octet-stream", bytes.NewReader(make([]byte, 32<<20)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 408 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// TestTimeoutWhileConnecting: the route's time runs while the connection is made, here a handshake that nobody answers.
func TestTimeoutWhileConnecting(t *testing.T) {
	silent := byHand(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	a := newADS(t)
	addr := freeAddr(t).String()
	c := edsCluster("c")
	c.ConnectTimeout = durationpb.New(time.Hour)
	c.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{
		TypedConfig: pack(t, &tlsv3.UpstreamTlsContext{Sni: "c"}),
	}}
	act := weighted("c", 1)
	act.Timeout, act.RetryPolicy = durationpb.New(200*time.Millisecond), istioRetries(t)
	a.put(xds.Set{
		Clusters: []*clusterPB{c}, Endpoints: []*claPB{cla(t, "c", silent)},
		Listeners: []*listenerPB{httpListener(t, addr, "80")}, Routes: []*routesPB{table("80", []string{"*"}, prefix("/", act))},
	})
	start(t, a)
	if resp, body := get(t, httpClient(t), "http://"+addr+"/"); resp.StatusCode != 504 || body != "upstream request timeout" {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}

// TestDrainAtTheEnd: a request under way when the proxy is told to stop is answered, and told to come elsewhere next time.
func TestDrainAtTheEnd(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	defer s.Close()
	a := newADS(t)
	addr := freeAddr(t).String()
	set := canary(t, addr, strings.TrimPrefix(s.URL, "http://"), backend(t, "v2"), 100, 0)
	a.put(set)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended, admin := make(chan struct{}), make(chan error, 1), freeAddr(t).String()
	go func() {
		ended <- Run(ctx, Bootstrap{NodeID: "sidecar~127.0.0.1~t.d~d.svc.cluster.local", Discovery: dialOptions(a), Stop: listener.Drain{Grace: 300 * time.Millisecond, Limit: 10 * time.Second}, Admin: admin, Ready: func() { close(ready) }})
	}()
	<-ready
	type answer struct {
		resp *http.Response
		body string
		err  error
	}
	got := make(chan answer, 1)
	c := httpClient(t)
	go func() {
		resp, body, err := fetch(c, "http://"+addr+"/")
		got <- answer{resp, body, err}
	}()
	select {
	case <-begun:
	case r := <-got:
		t.Fatalf("the request ended before it reached the back end: %v, %s", r.err, r.body)
	}
	cancel()
	adminSays(t, admin, "DRAINING")
	close(release)
	r := <-got
	if r.err != nil {
		t.Error(r.err)
	} else if r.resp.StatusCode != 200 || r.body != "done" || !r.resp.Close {
		t.Errorf("status %d, close %v: %s", r.resp.StatusCode, r.resp.Close, r.body)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// adminSays waits until the admin port reports a state.
func adminSays(t *testing.T, admin, want string) {
	t.Helper()
	c := httpClient(t)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		_, body := get(t, c, "http://"+admin+"/ready")
		if strings.TrimSpace(body) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("state %q, want %q", body, want)
		}
	}
}

func TestNoRouteAndNoCluster(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	a.put(xds.Set{
		Clusters: []*clusterPB{edsCluster("empty")}, Endpoints: []*claPB{cla(t, "empty")}, Listeners: []*listenerPB{httpListener(t, addr, "80")},
		Routes: []*routesPB{table("80", []string{"known"}, prefix("/missing", weighted("nowhere", 1)), prefix("/empty", weighted("empty", 1)))},
	})
	start(t, a)
	c := httpClient(t)
	for _, x := range []struct {
		host, path string
		code       int
	}{{"other", "/", 404}, {"known", "/", 404}, {"known:80", "/missing", 503}, {"KNOWN", "/empty", 503}} {
		req, _ := http.NewRequest("GET", "http://"+addr+x.path, nil)
		req.Host = x.host
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != x.code {
			t.Errorf("%s%s: status %d, want %d", x.host, x.path, resp.StatusCode, x.code)
		}
	}
}
