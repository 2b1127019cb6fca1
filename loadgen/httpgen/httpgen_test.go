package httpgen_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func generate(t *testing.T, p loadgen.Profile, o httpgen.Options) []loadgen.Result {
	t.Helper()
	g, err := httpgen.New(p, o)
	if err != nil {
		t.Fatal(err)
	}
	var results []loadgen.Result
	if err := g.Run(t.Context(), func(r loadgen.Result) { results = append(results, r) }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(results, func(a, b loadgen.Result) int { return int(a.Seq) - int(b.Seq) })
	return results
}

// A server stalls for as long as the schedule lasts, and four workers are all there are. The requests that had to wait for a
// worker leave only when the stall is over: counted from the send they were served at once, from the intended start they
// waited the stall out. All bounds follow from what must come before what, none from how fast this machine is.
func TestStallShowsFromIntendedStart(t *testing.T) {
	const (
		rate    = 200
		length  = time.Second
		workers = 4
	)
	gate := make(chan struct{})
	var (
		opened time.Time // before the gate is closed
		first  sync.Once
	)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		first.Do(func() { time.AfterFunc(length, func() { opened = time.Now(); close(gate) }) })
		<-gate
	}))
	defer server.Close()

	results := generate(t, loadgen.Profile{Name: "stall", URL: server.URL, Rate: rate, Duration: length, MaxWorkers: workers}, httpgen.Options{})
	<-gate
	if len(results) != rate {
		t.Fatalf("%d results, want %d: an open loop owes every request of its schedule", len(results), rate)
	}
	var latency, service []time.Duration
	early := 0
	for i, r := range results {
		if r.Seq != uint64(i) || r.Class != loadgen.OK || r.Stream != "stall" {
			t.Fatalf("result %d: %+v", i, r)
		}
		if want := results[0].Intended.Add(time.Duration(i) * time.Second / rate); !r.Intended.Equal(want) {
			t.Fatalf("request %d intended at %s, want %s", i, r.Intended, want)
		}
		latency, service = append(latency, r.Latency()), append(service, r.ServiceTime())
		if r.Sent.Before(opened) {
			early++
			continue
		}
		if stalled := opened.Sub(r.Intended); r.Latency() < stalled || r.Lateness() < stalled {
			t.Errorf("request %d: latency %s, lateness %s; it was stalled for %s", i, r.Latency(), r.Lateness(), stalled)
		}
		if most := r.Done.Sub(opened); r.ServiceTime() > most {
			t.Errorf("request %d: service time %s holds some of the stall; at most %s passed since", i, r.ServiceTime(), most)
		}
	}
	if early > workers {
		t.Errorf("%d requests left during the stall, with %d workers", early, workers)
	}
	slices.Sort(latency)
	slices.Sort(service)
	// Half of the schedule was due in its first half, and nothing ended before the whole of it.
	if p50 := latency[rate/2-1]; p50 < length/2 {
		t.Errorf("median latency %s hides a stall of %s", p50, length)
	}
	t.Logf("latency from intended start: median %s, max %s; service time: median %s, max %s",
		latency[rate/2], latency[rate-1], service[rate/2], service[rate-1])
}

func TestClasses(t *testing.T) {
	answer := func(status int, header map[string]string, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for k, v := range header {
				w.Header().Set(k, v)
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	who := map[string]string{"X-Meshproof-App": "hello", "X-Meshproof-Version": "v2", "X-Meshproof-Pod": "hello-v2-x"}
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		change  func(*loadgen.Profile)
		options httpgen.Options
		class   loadgen.Class
		code    int
		err     string
	}{
		{name: "good", handler: answer(200, who, "hi"), class: loadgen.OK, code: 200},
		{name: "good, and the right app", handler: answer(200, who, "hi"), class: loadgen.OK, code: 200,
			change: func(p *loadgen.Profile) { p.ExpectApp, p.ExpectBody = "hello", "hi" }},
		{name: "status", handler: answer(503, who, ""), class: loadgen.Status, code: 503, err: "503 Service Unavailable"},
		{name: "accepted status", handler: answer(503, who, ""), class: loadgen.OK, code: 503,
			change: func(p *loadgen.Profile) { p.Accept = []int{200, 503} }},
		{name: "redirects are not followed", handler: answer(302, map[string]string{"Location": "/elsewhere"}, ""), class: loadgen.Status, code: 302},
		{name: "another app", handler: answer(200, who, "hi"), class: loadgen.Mismatch, code: 200, err: `answered by app "hello", not "ratings"`,
			change: func(p *loadgen.Profile) { p.ExpectApp = "ratings" }},
		{name: "another body", handler: answer(200, who, "hi"), class: loadgen.Mismatch, code: 200, err: `the body lacks "bye"`,
			change: func(p *loadgen.Profile) { p.ExpectBody = "bye" }},
		{name: "a page with a hole", handler: answer(200, map[string]string{"X-Meshproof-Failed": "reviews/503"}, ""), class: loadgen.Mismatch, code: 200, err: "reviews/503"},
		{name: "verified and refused", handler: answer(200, who, "hi"), class: loadgen.Mismatch, code: 200, err: "I read hi",
			options: httpgen.Options{Verify: func(_ *http.Response, body []byte) error { return fmt.Errorf("I read %s", body) }}},
		{name: "no answer", handler: hang, class: loadgen.Timeout, err: "no whole answer in time (1s)",
			change: func(p *loadgen.Profile) { p.Timeout = time.Second }},
		{name: "half an answer", class: loadgen.Timeout, code: 200, err: "after 2 bytes",
			handler: func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "ha")
				_ = http.NewResponseController(w).Flush()
				hang(w, r)
			},
			change: func(p *loadgen.Profile) { p.Timeout = time.Second }},
		{name: "connection closed without an answer", handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, class: loadgen.Reset},
		{name: "connection closed in the body", class: loadgen.Reset, code: 200,
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "100")
				io.WriteString(w, "ten bytes.")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}},
		{name: "connection refused", handler: hang, class: loadgen.Connect,
			options: httpgen.Options{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }}},
		{name: "connection never made", handler: hang, class: loadgen.Connect,
			change: func(p *loadgen.Profile) { p.Timeout = time.Second },
			options: httpgen.Options{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(test.handler)
			defer server.Close()
			p := loadgen.Profile{Name: "classes", URL: server.URL, Rate: 100, Duration: 30 * time.Millisecond}
			if test.change != nil {
				test.change(&p)
			}
			results := generate(t, p, test.options)
			if len(results) != 3 {
				t.Fatalf("%d results, want 3: failures are results too", len(results))
			}
			for _, r := range results {
				if r.Class != test.class || r.Code != test.code || !strings.Contains(r.Err, test.err) || (r.Err == "") != (r.Class == loadgen.OK) {
					t.Errorf("class %q, code %d, err %q; want %q, %d, %q", r.Class, r.Code, r.Err, test.class, test.code, test.err)
				}
				if r.Sent.Before(r.Intended) || r.Done.Before(r.Sent) {
					t.Errorf("out of order: intended %s, sent %s, done %s", r.Intended, r.Sent, r.Done)
				}
			}
		})
	}
}

func TestAttribution(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("X-Meshproof-App", "productpage")
		h.Set("X-Meshproof-Version", "v1")
		h.Set("X-Meshproof-Pod", "page-1")
		h.Add("X-Meshproof-Via", "details/v1/details-1, reviews/v3/reviews-3")
		h.Add("X-Meshproof-Via", "ratings/v1/ratings-1/west, reviews/v1/reviews-1")
		h.Set("X-Meshproof-Cluster", "east")
	}))
	defer server.Close()
	for _, test := range []struct {
		attribute, app, version, pod, cluster string
		class                                 loadgen.Class
	}{
		{"", "productpage", "v1", "page-1", "east", loadgen.OK},
		{"reviews", "reviews", "v3", "reviews-3", "", loadgen.OK},
		{"ratings", "ratings", "v1", "ratings-1", "west", loadgen.OK},
		{"review", "", "", "", "", loadgen.Mismatch},
	} {
		results := generate(t, loadgen.Profile{
			Name: "who", URL: server.URL, Rate: 1, Duration: 1, Attribute: test.attribute, ExpectApp: "productpage",
		}, httpgen.Options{})
		if len(results) != 1 {
			t.Fatalf("%d results", len(results))
		}
		if r := results[0]; r.App != test.app || r.Version != test.version || r.Pod != test.pod || r.Cluster != test.cluster || r.Class != test.class {
			t.Errorf("attributed to %q: %s/%s/%s/%s, %s", test.attribute, r.App, r.Version, r.Pod, r.Cluster, r.Class)
		}
	}
}

// fickle answers the first request of each connection and hangs up on the second, which is when net/http would send a GET
// again on another connection.
func fickle(t *testing.T) (url string, received *atomic.Int32) {
	t.Helper()
	received = new(atomic.Int32)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			connections.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for n := range 2 {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					io.Copy(io.Discard, req.Body)
					received.Add(1)
					if n == 0 {
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); connections.Wait() })
	return "http://" + ln.Addr().String(), received
}

func TestNothingIsSentTwice(t *testing.T) {
	for _, test := range []struct {
		method string
		body   string
	}{{"GET", ""}, {"HEAD", ""}, {"OPTIONS", ""}, {"DELETE", ""}, {"POST", ""}, {"PUT", "stars"}, {"GET", "odd but allowed"}} {
		t.Run(test.method+" "+test.body, func(t *testing.T) {
			url, received := fickle(t)
			p := loadgen.Profile{
				Name: "fickle", Method: test.method, URL: url, Body: []byte(test.body), Rate: 200, Duration: 100 * time.Millisecond, MaxWorkers: 1,
			}
			if test.method != "POST" { // see TestSecondAttemptIsAFailure
				p.Header = http.Header{"Idempotency-Key": {"tempts net/http to send again"}}
			}
			results := generate(t, p, httpgen.Options{})
			if int(received.Load()) != len(results) || len(results) != 20 {
				t.Errorf("the server got %d requests for %d results, want 20 each", received.Load(), len(results))
			}
			for i, r := range results {
				want := loadgen.OK
				if i%2 == 1 {
					want = loadgen.Reset
				}
				if r.Class != want {
					t.Errorf("request %d: %s (%s), want %s", i, r.Class, r.Err, want)
				}
			}
		})
	}
}

// An empty POST is the one request that net/http can be brought to send again, by a header.
func TestSecondAttemptIsAFailure(t *testing.T) {
	url, received := fickle(t)
	results := generate(t, loadgen.Profile{
		Name: "again", Method: "POST", URL: url, Header: http.Header{"Idempotency-Key": {"1"}}, Rate: 100, Duration: 40 * time.Millisecond, MaxWorkers: 1,
	}, httpgen.Options{})
	// The answer to the second attempt is its connection's first, so that each request but the first is sent twice.
	if got := received.Load(); len(results) != 4 || got != 7 {
		t.Errorf("the server got %d requests for %d results", got, len(results))
	}
	for i, r := range results {
		if want := i > 0; (r.Class == loadgen.Reset && strings.Contains(r.Err, "sent it again")) != want {
			t.Errorf("request %d: %s (%s)", i, r.Class, r.Err)
		}
	}
}

// brokenPipe fails its second write before a byte is out.
type brokenPipe struct {
	net.Conn
	writes int
}

func (c *brokenPipe) Write(b []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(b)
}

// deaf is a connection whose reader does not get to run once an answer was read.
type deaf struct {
	*net.TCPConn
	reads  int
	closed chan struct{}
	once   sync.Once
}

func (c *deaf) Read(b []byte) (int, error) {
	if c.reads++; c.reads > 1 {
		<-c.closed
	}
	return c.TCPConn.Read(b)
}

func (c *deaf) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.TCPConn.Close()
}

// A kept connection that the server had ended before a byte of the request was written is left for another: of such a request
// the server cannot know. Where there is no other, nothing was sent.
func TestEndedConnectionIsNotUsed(t *testing.T) {
	dialer := new(net.Dialer)
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"end not read": func(c net.Conn) net.Conn { return &deaf{TCPConn: c.(*net.TCPConn), closed: make(chan struct{})} },
		"broken pipe":  func(c net.Conn) net.Conn { return &brokenPipe{Conn: c} },
	} {
		for _, method := range []string{"GET", "POST"} {
			for _, dials := range []int{4, 1} {
				t.Run(fmt.Sprint(name, " ", method, " ", dials), func(t *testing.T) {
					var received, dialed atomic.Int32
					server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						received.Add(1)
						if name == "end not read" {
							// Ended without a word in the answer, and the end is here before the answer is read.
							c, _, err := w.(http.Hijacker).Hijack()
							if err != nil {
								t.Error(err)
								return
							}
							io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
							c.Close()
						}
					}))
					server.Start()
					defer server.Close()
					dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
						if dialed.Add(1) > int32(dials) {
							return nil, syscall.ECONNREFUSED
						}
						conn, err := dialer.DialContext(ctx, network, addr)
						if err != nil {
							return nil, err
						}
						return wrap(conn), nil
					}
					results := generate(t, loadgen.Profile{
						Name: "ended", Method: method, URL: server.URL, Rate: 20, Duration: 200 * time.Millisecond, MaxWorkers: 1,
					}, httpgen.Options{DialContext: dial})
					if len(results) != 4 {
						t.Fatalf("%d results", len(results))
					}
					ok := 0
					for i, r := range results {
						want := loadgen.OK
						if i >= dials {
							want = loadgen.Connect
						}
						if r.Class != want {
							t.Errorf("request %d: %s (%s), want %s", i, r.Class, r.Err, want)
						}
						if r.Class == loadgen.OK {
							ok++
						}
					}
					if got := int(received.Load()); got != ok {
						t.Errorf("the server got %d requests, %d were answered", got, ok)
					}
				})
			}
		}
	}
}

func TestConnectionsAreKept(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hi") }))
	defer server.Close()
	var dials atomic.Int32
	results := generate(t, loadgen.Profile{Name: "keep", URL: server.URL, Rate: 500, Duration: 200 * time.Millisecond, MaxWorkers: 1},
		httpgen.Options{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, addr)
		}})
	if len(results) != 100 || dials.Load() != 1 {
		t.Errorf("%d requests over %d connections, want 100 over 1", len(results), dials.Load())
	}
}

// A connection that nobody waits for any more, because another became free first, is given up at the end of the run at the
// latest, and Run waits for that.
func TestNoDialOutlivesTheRun(t *testing.T) {
	dialing := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-dialing }))
	defer server.Close()
	var dials, ended atomic.Int32
	results := generate(t, loadgen.Profile{Name: "dial", URL: server.URL, Rate: 1000, Duration: 2 * time.Millisecond, MaxWorkers: 2},
		httpgen.Options{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			close(dialing) // lets the first request end, and the second have its connection
			<-ctx.Done()
			ended.Add(1)
			return nil, ctx.Err()
		}})
	for _, r := range results {
		if r.Class != loadgen.OK {
			t.Errorf("%+v", r)
		}
	}
	if len(results) != 2 || dials.Load() != 2 || ended.Load() != 1 {
		t.Errorf("%d results, %d dials, %d of them given up; want 2, 2, 1", len(results), dials.Load(), ended.Load())
	}
}

// A canceled run abandons what is in flight as Canceled, sends no more, and leaves nothing behind (see TestMain).
func TestCancel(t *testing.T) {
	for _, workers := range []int{3000, 5} { // free workers, and all of them busy
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var arrived atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if arrived.Add(1) == 5 {
					cancel()
				}
				<-r.Context().Done()
			}))
			defer server.Close()
			g, err := httpgen.New(loadgen.Profile{Name: "cancel", URL: server.URL, Rate: 200, Duration: time.Hour, Timeout: time.Hour, MaxWorkers: workers}, httpgen.Options{})
			if err != nil {
				t.Fatal(err)
			}
			results := 0
			err = g.Run(ctx, func(r loadgen.Result) {
				results++
				if r.Class != loadgen.Canceled {
					t.Errorf("class %s (%s), want canceled", r.Class, r.Err)
				}
			})
			if err != nil || results < 5 {
				t.Errorf("%d results, error %v", results, err)
			}
		})
	}
}

// A long wait for the next request ends with the run.
func TestCancelBetweenRequests(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, err := httpgen.New(loadgen.Profile{Name: "slow", URL: server.URL, Rate: 0.001, Duration: 10 * time.Hour}, httpgen.Options{})
	if err != nil {
		t.Fatal(err)
	}
	results := 0
	if err := g.Run(ctx, func(loadgen.Result) { results++; cancel() }); err != nil || results != 1 {
		t.Errorf("%d results, error %v", results, err)
	}
}

func TestBadProfile(t *testing.T) {
	if _, err := httpgen.New(loadgen.Profile{Name: "x", URL: "nowhere"}, httpgen.Options{}); err == nil || !strings.Contains(err.Error(), "url") {
		t.Errorf("error %v", err)
	}
}
