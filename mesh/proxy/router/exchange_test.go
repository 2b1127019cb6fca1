package router

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/filter/hcm"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// front is a proxy in memory, to be used within a synctest bubble: clients on one side, one endpoint on the other, and one
// route between them.
type front struct {
	t       *testing.T
	http    *conf.HTTP
	cluster *conf.Cluster
	set     *upstream.Set
	manager *hcm.Manager
	ctx     context.Context
	wg      sync.WaitGroup
	ups     chan net.Conn // the endpoint's ends
	hole    bool          // the endpoint is never reached
	way     conf.Direction
	tls     upstream.TLSBuilder

	mu      sync.Mutex
	began   time.Time
	records []telemetry.Record
	reports []report
}

// report is one of a gRPC call that goes on.
type report struct {
	cluster string
	in, out uint64
}

func newFront(t *testing.T, f conf.Forward, change ...func(*front)) *front {
	t.Helper()
	f.Clusters, f.TotalWeight = []conf.WeightedCluster{{Name: "c", Weight: 1}}, 1
	vh := &conf.VirtualHost{Routes: []*conf.Route{{Match: conf.RouteMatch{Fraction: conf.Always}, Forward: &f}}}
	p := &front{t: t, ups: make(chan net.Conn, 16), http: &conf.HTTP{Routes: &conf.RouteTable{Any: vh}, HTTP10: true, MaxHeaders: 100, MaxHeaderBytes: 60 << 10, Upgrades: []string{"websocket"}}}
	p.cluster = &conf.Cluster{Name: "c", Discovery: conf.EDS, ConnectTimeout: 10 * time.Second, Breakers: conf.DefaultBreakers,
		Endpoints: &conf.Endpoints{Name: "c", Localities: []conf.Locality{{Weight: 1, Endpoints: []conf.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.3:80"), Weight: 1}}}}}}
	for _, c := range change {
		c(p)
	}
	p.set = upstream.NewSet(p.tls, p.connect)
	apply := func(cs ...*conf.Cluster) {
		cfg := &conf.Config{Clusters: map[string]*conf.Cluster{}}
		for _, c := range cs {
			cfg.Clusters[c.Name] = c
		}
		p.set.Apply(cfg)
	}
	apply(p.cluster)
	p.manager = &hcm.Manager{Router: New(p.set), Recorder: p}
	ctx, cancel := context.WithCancel(context.Background())
	p.ctx = ctx
	t.Cleanup(func() {
		cancel()
		go func() {
			for c := range p.ups { // what nobody asked for
				_ = c.Close()
			}
		}()
		p.wg.Wait()
		apply()
		synctest.Wait()
		close(p.ups)
	})
	return p
}

// over2 makes the endpoint one of HTTP/2.
func over2(p *front) { p.cluster.Protocol = conf.HTTP2Only }

// unreached lets dials take until they are given up.
func unreached(p *front) { p.hole = true }

func (p *front) connect(ctx context.Context, _ netip.Addr, _ conf.Keepalive, _ string) (net.Conn, error) {
	if p.hole {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a, b := net.Pipe()
	p.ups <- b
	return a, nil
}

func (p *front) Current() *conf.FilterChain              { return &conf.FilterChain{HTTP: p.http} }
func (p *front) Draining() bool                          { return false }
func (p *front) OnDrain(func(last bool)) (forget func()) { return func() {} }
func (p *front) HTTP(_ *conf.HTTP, r *telemetry.Record) {
	p.mu.Lock()
	p.records = append(p.records, *r)
	p.mu.Unlock()
}

// Messages sums up what calls reported while they went on.
func (p *front) Messages(r *telemetry.Record, in, out uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reports = append(p.reports, report{r.Cluster.Name, in, out})
}

// client is a new connection to the proxy. Its waits end after a minute.
func (p *front) client() net.Conn {
	a, b := net.Pipe()
	_ = a.SetDeadline(time.Now().Add(time.Minute))
	p.wg.Go(func() {
		p.manager.Serve(p.ctx, &filter.Conn{Conn: b, Chain: p, Direction: p.way, Local: netip.MustParseAddrPort("10.0.0.2:80"), Remote: netip.MustParseAddrPort("10.0.0.1:1234")})
		_ = b.Close()
	})
	p.t.Cleanup(func() { _ = a.Close() })
	return a
}

// send makes a new connection that sends the text, and the body as far as it is taken.
func (p *front) send(head, body string) *bufio.Reader {
	c := p.client()
	p.wg.Go(func() {
		_, _ = io.WriteString(c, head)
		_, _ = io.WriteString(c, body)
	})
	return bufio.NewReader(c)
}

// up is the next connection that reaches the endpoint.
func (p *front) up() net.Conn {
	p.t.Helper()
	select {
	case c := <-p.ups:
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		p.t.Cleanup(func() { _ = c.Close() })
		return c
	case <-time.After(time.Minute):
		p.t.Fatal("the endpoint was not connected to")
		return nil
	}
}

// serve2 has the endpoint speak HTTP/2 on its next connection.
func (p *front) serve2(o http2.Options, handle func(*http2.Stream)) {
	p.wg.Go(func() {
		select {
		case c := <-p.ups:
			_ = http2.NewServer(c, nil, o).Serve(p.ctx, handle)
			_ = c.Close()
		case <-p.ctx.Done():
		}
	})
}

// ended waits for the record of the only exchange.
func (p *front) ended() telemetry.Record {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.records) != 1 {
		p.t.Fatalf("%d exchanges have ended, want 1", len(p.records))
	}
	return p.records[0]
}

// want reads an answer.
func want(t *testing.T, r *bufio.Reader, status int) *http.Response {
	t.Helper()
	a, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("%v, want %d", err, status)
	}
	if a.StatusCode != status {
		t.Fatalf("status %d, want %d", a.StatusCode, status)
	}
	return a
}

// request reads the head of a request.
func request(t *testing.T, c net.Conn) *http.Request {
	t.Helper()
	q, err := http.ReadRequest(bufio.NewReaderSize(c, 16))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

const upload = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n"

// TestAnswerBeforeTheBodyIsSent: the connection of an answer that came within a body that cannot be sent again carries no
// other request, whose head the endpoint would take for the rest of the body.
func TestAnswerBeforeTheBodyIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFront(t, conf.Forward{Retry: &conf.Retry{On: conf.Retry5xx, Num: 2}})
		r := p.send(upload, strings.Repeat("x", 2*maxReplay))
		up := p.up()
		q := request(t, up)
		if _, err := io.CopyN(io.Discard, q.Body, 2*maxReplay); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(up, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
		want(t, r, 503)
		p.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n", "")
		rest, err := io.ReadAll(up)
		if err != nil || strings.Contains(string(rest), "GET") {
			t.Errorf("after the answer: %d bytes, %v, another request among them: %v", len(rest), err, strings.Contains(string(rest), "GET"))
		}
		request(t, p.up())
	})
}

// TestRetryWithinTheBody: a body that was not sent to its end is sent again from its begin, to the end.
func TestRetryWithinTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFront(t, conf.Forward{Retry: &conf.Retry{On: conf.Retry5xx, Num: 2}})
		c := p.client()
		r := bufio.NewReader(c)
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
		up := p.up()
		q := request(t, up)
		_, _ = io.WriteString(c, "01234")
		if _, err := io.CopyN(io.Discard, q.Body, 5); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(up, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
		up = p.up()
		q = request(t, up)
		p.wg.Go(func() { _, _ = io.WriteString(c, "56789") })
		if b, err := io.ReadAll(q.Body); err != nil || string(b) != "0123456789" {
			t.Errorf("second try: %q, %v", b, err)
		}
		_, _ = io.WriteString(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		want(t, r, 200)
	})
}

// TestUnaskedSwitch: a 101 that nobody asked for is an error of the endpoint's, also within a body.
func TestUnaskedSwitch(t *testing.T) {
	for name, head := range map[string]string{"request": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "upload": upload} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newFront(t, conf.Forward{})
				r := p.send(head, strings.Repeat("x", 100))
				up := p.up()
				request(t, up)
				p.wg.Go(func() {
					_, _ = io.WriteString(up, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
					_, _ = io.Copy(io.Discard, up)
				})
				want(t, r, 502)
				if got := p.ended().Flags; got != telemetry.UpstreamProtocolError {
					t.Errorf("flags %v", got)
				}
			})
		})
	}
}

// TestUploadNobodyReads: an endpoint that does not read holds an exchange no longer than its end.
func TestUploadNobodyReads(t *testing.T) {
	short := "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" + strings.Repeat("x", 4000)
	for name, c := range map[string]struct {
		head, body string
		change     []func(*front)
	}{
		"HTTP/1": {upload, strings.Repeat("x", 5000000), nil}, "HTTP/1, body at once": {short, "", nil},
		"HTTP/2": {upload, strings.Repeat("x", 5000000), []func(*front){over2}}, "HTTP/2, body at once": {short, "", []func(*front){over2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newFront(t, conf.Forward{MaxDuration: time.Second}, c.change...)
				if c.change != nil {
					p.serve2(http2.Options{Window: 65535, ConnWindow: 65535}, func(*http2.Stream) { <-p.ctx.Done() })
					p.send(upload, strings.Repeat("x", 5000000)) // takes all of the connection's window
					synctest.Wait()
				}
				began := time.Now()
				want(t, p.send(c.head, c.body), 408)
				if took := time.Since(began); took != time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// TestRefusedUpload: an answer passes at once, whether or not the endpoint reads what it has refused.
func TestRefusedUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFront(t, conf.Forward{})
		r := p.send(upload, strings.Repeat("x", 5000000))
		up := p.up()
		request(t, up)
		_, _ = io.WriteString(up, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
		want(t, r, 413)
		p.ended()
		if _, err := io.Copy(io.Discard, up); err != nil {
			t.Errorf("the connection of a refused upload: %v, want its end", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := newFront(t, conf.Forward{}, over2)
		p.serve2(http2.Options{}, func(s *http2.Stream) {
			var q http1.Request
			s.ReadRequest(&q)
			s.Response(&http1.Response{Status: 413, Framing: http1.NoBody}, 0, false, false)
			_ = s.Flush()
			<-p.ctx.Done()
		})
		want(t, p.send(upload, strings.Repeat("x", 5000000)), 413)
		p.ended()
	})
}

// TestEndWhileConnecting: what bounds an exchange also bounds its wait for a connection, which then is not held against the
// endpoint.
func TestEndWhileConnecting(t *testing.T) {
	for name, c := range map[string]struct {
		f      conf.Forward
		head   string
		status int
		flags  telemetry.Flags
	}{
		"timeout":  {conf.Forward{Timeout: time.Second, Retry: &conf.Retry{On: conf.Retry5xx, Num: 2}}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 504, telemetry.UpstreamRequestTimeout},
		"duration": {conf.Forward{MaxDuration: time.Second}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 408, telemetry.DurationTimeout},
		"idle":     {conf.Forward{IdleTimeout: time.Second}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 408, telemetry.StreamIdleTimeout},
	} {
		for proto, change := range map[string]func(*front){"HTTP/1": func(*front) {}, "HTTP/2": over2} {
			t.Run(name+" "+proto, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newFront(t, c.f, change, unreached)
					began := time.Now()
					want(t, p.send(c.head, ""), c.status)
					if took := time.Since(began); took != time.Second {
						t.Errorf("took %v", took)
					}
					if got := p.ended().Flags; got != c.flags {
						t.Errorf("flags %v, want %v", got, c.flags)
					}
					if cl := p.set.View().Cluster("c"); cl.Stats.ConnectFail.Load() != 0 || cl.Members[0].Errors.Load() != 0 {
						t.Errorf("%d failed connects, %d errors of the endpoint", cl.Stats.ConnectFail.Load(), cl.Members[0].Errors.Load())
					}
				})
			})
		}
	}
}

// TestClientGoneWhileConnecting: nobody waits for a connection for a client that is gone.
func TestClientGoneWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFront(t, conf.Forward{}, unreached)
		c := http2.NewClient(p.client(), http2.Options{})
		s := c.Open(0)
		s.Request(&http1.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("x")})
		_ = s.Flush()
		synctest.Wait()
		s.Close()
		if got := p.ended().Flags; got != telemetry.DownstreamTermination {
			t.Errorf("flags %v", got)
		}
		_ = c.Close()
		c.Wait()
	})
}
