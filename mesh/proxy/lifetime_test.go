package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshproof/meshproof/mesh/proxy/listener"
	"github.com/meshproof/meshproof/mesh/xds"
)

// TestClientGone: when a client goes while its answer is awaited, the upstream hears of it.
func TestClientGone(t *testing.T) {
	begun, heard := make(chan struct{}), make(chan struct{})
	addr := serveWith(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(heard)
	}), nil)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-begun
	_ = c.Close()
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("the upstream never heard that the client was gone")
	}
}

// TestStreamIdleTimeout: an exchange in which nothing moves is answered with 408, by the manager's limit or the route's.
func TestStreamIdleTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		manager, route time.Duration
	}{"manager": {100 * time.Millisecond, 0}, "route": {0, 100 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
			defer s.Close()
			a := newADS(t)
			addr := freeAddr(t).String()
			act := weighted("c", 1)
			if c.route > 0 {
				act.IdleTimeout = durationpb.New(c.route)
			}
			l := httpListener(t, addr, "80")
			l.FilterChains[0].Filters = []*listenerv3.Filter{manager(t, rds("80"), func(h *hcmv3.HttpConnectionManager) {
				h.StreamIdleTimeout = durationpb.New(c.manager)
			})}
			a.put(xds.Set{
				Clusters: []*clusterPB{edsCluster("c")}, Endpoints: []*claPB{cla(t, "c", strings.TrimPrefix(s.URL, "http://"))},
				Listeners: []*listenerPB{l}, Routes: []*routesPB{table("80", []string{"*"}, &routev3.Route{
					Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}, Action: &routev3.Route_Route{Route: act}})},
			})
			start(t, a)
			resp, body := get(t, httpClient(t), "http://"+addr+"/")
			if resp.StatusCode != 408 || body != "stream timeout" {
				t.Errorf("status %d: %q", resp.StatusCode, body)
			}
		})
	}
}

// TestTunnelOutlivesIdleTimeout: what moves in a tunnel counts; only silence ends it.
func TestTunnelOutlivesIdleTimeout(t *testing.T) {
	const idle = 2 * time.Second
	addr := serveWith(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, buf)
	}), func(a *routev3.RouteAction) { a.IdleTimeout = durationpb.New(idle) })
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(c)
	for line := ""; line != "\r\n"; {
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for begun := time.Now(); time.Since(begun) < idle+idle/2; {
		if _, err := io.WriteString(c, "ping\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || line != "ping\n" {
			t.Fatalf("%q, %v after %s of traffic", line, err, time.Since(begun))
		}
	}
	if line, err := in.ReadString('\n'); err == nil || os.IsTimeout(err) {
		t.Errorf("a silent tunnel did not end: %q, %v", line, err)
	}
}

// TestDrainGrace: while the grace lasts a new connection is served and told to close; after it idle connections end at once,
// well before the limit.
func TestDrainGrace(t *testing.T) {
	for grace := 2 * time.Second; grace < time.Minute; grace *= 2 {
		if drainGrace(t, grace) {
			return
		}
		t.Logf("too slow for a grace of %v", grace)
	}
	t.Fatal("no new connection within the grace")
}

// drainGrace reports false when the test itself was too slow to tell anything.
func drainGrace(t *testing.T, grace time.Duration) bool {
	a := newADS(t)
	addr, admin := freeAddr(t).String(), freeAddr(t).String()
	a.put(canary(t, addr, backend(t, "v1"), backend(t, "v2"), 100, 0))
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Bootstrap{NodeID: "sidecar~127.0.0.1~t.d~d.svc.cluster.local", Discovery: dialOptions(a), Admin: admin,
			Stop: listener.Drain{Grace: grace, Limit: time.Minute}, Ready: func() { close(ready) }})
	}()
	defer cancel()
	<-ready
	ask := func(c net.Conn) (*http.Response, error) {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		p, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, p.Body)
		}
		return p, err
	}
	idle, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	if p, err := ask(idle); err != nil || p.Close {
		t.Fatalf("before the drain: %v, told to close: %v", err, err == nil)
	}
	began := time.Now()
	cancel()
	var p *http.Response
	fresh, err := drainingDial(admin, addr)
	if err == nil {
		p, err = ask(fresh)
		_ = fresh.Close()
	}
	inTime := time.Since(began) < grace
	switch {
	case !inTime:
	case err != nil:
		t.Errorf("new connection in the grace: %v", err)
	case p.StatusCode != 200 || !p.Close:
		t.Errorf("new connection in the grace: status %d, close %v", p.StatusCode, p.Close)
	}
	_ = idle.SetReadDeadline(time.Now().Add(grace + 30*time.Second))
	if n, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("idle connection: %d bytes, %v; want its end", n, err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(grace + 30*time.Second):
		t.Error("the proxy waits for idle connections")
	}
	return inTime
}

// drainingDial connects to addr once the admin port says that the proxy drains.
func drainingDial(admin, addr string) (net.Conn, error) {
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	for {
		_, body, err := fetch(c, "http://"+admin+"/ready")
		if err != nil {
			return nil, err // the proxy has ended
		}
		if strings.TrimSpace(body) == "DRAINING" {
			return net.Dial("tcp", addr)
		}
	}
}

// TestBindLater: a listener whose address somebody else has is an error in the dump, and serves once the address is free.
func TestBindLater(t *testing.T) {
	a := newADS(t)
	addr := freeAddr(t).String()
	other, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	a.put(canary(t, addr, backend(t, "v1"), backend(t, "v2"), 100, 0))
	admin, option := withAdmin(t)
	start(t, a, option)
	dump := adminHas(t, "http://"+admin+"/config_dump", "address already in use")
	if !strings.Contains(dump, `"error_state"`) || !strings.Contains(dump, `"warming_state"`) {
		t.Errorf("dump: %s", dump)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if dump := adminHas(t, "http://"+admin+"/config_dump", `"active_state"`); strings.Contains(dump, "error_state") {
		t.Errorf("dump: %s", dump)
	}
	if resp, body := get(t, httpClient(t), "http://"+addr+"/"); resp.StatusCode != 200 {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}
