package http2

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs the server side for each connection to a loopback address until the test ends.
func serve(t testing.TB, o Options, handle func(*Stream)) (addr string, conns func() []*Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []*Conn
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			c := NewServer(nc, nil, o)
			mu.Lock()
			all = append(all, c)
			mu.Unlock()
			wg.Go(func() {
				_ = c.Serve(ctx, handle)
				// As the listener does: what the peer still sends is read away, or it would lose what is under way to it.
				_ = nc.(*net.TCPConn).CloseWrite()
				_ = nc.SetReadDeadline(time.Now().Add(time.Second))
				_, _ = io.Copy(io.Discard, nc)
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String(), func() []*Conn {
		mu.Lock()
		defer mu.Unlock()
		return append([]*Conn(nil), all...)
	}
}

// echo answers with the request's body and says what it saw; trailers come back as well.
func echo(s *Stream) {
	var q http1.Request
	s.ReadRequest(&q)
	var p http1.Response
	p.Status, p.Framing = 200, http1.Chunked
	p.Add([]byte("x-seen"), []byte(fmt.Sprintf("%s %s %s", q.Method, q.Host, q.Target)))
	s.Response(&p, 0, q.IsHead, false)
	for q.Framing != http1.NoBody {
		b, err := s.NextBody()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			break
		}
		if s.Body(b) != nil {
			return
		}
		if s.Buffered() == 0 {
			_ = s.Flush()
		}
	}
	_ = s.End(&q.Trailers)
	_ = s.Flush()
}

// goClient is an HTTP/2 client of golang.org/x/net without TLS.
func goClient(t testing.TB) *http.Client {
	tr := &http2.Transport{AllowHTTP: true, DisableCompression: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestServerBodies(t *testing.T) {
	addr, _ := serve(t, Options{}, echo)
	c := goClient(t)
	for _, size := range []int{0, 1, 1000, 16 << 10, 16<<10 + 1, 300 << 10, 5 << 20} {
		for _, known := range []bool{true, false} {
			body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			var r io.Reader = bytes.NewReader(body)
			if !known {
				r = struct{ io.Reader }{r}
			}
			q, err := http.NewRequest("POST", "http://"+addr+"/a?b", r)
			if err != nil {
				t.Fatal(err)
			}
			q.Host = "svc:80"
			if !known {
				q.Trailer = http.Header{"X-T": {"v"}}
			}
			p, err := c.Do(q)
			if err != nil {
				t.Fatalf("size %d: %v", size, err)
			}
			got, err := io.ReadAll(p.Body)
			_ = p.Body.Close()
			if err != nil || !bytes.Equal(got, body) || p.Header.Get("x-seen") != "POST svc:80 /a?b" {
				t.Errorf("size %d known %v: %d bytes, %v, %v", size, known, len(got), err, p.Header)
			}
			if !known && p.Trailer.Get("x-t") != "v" {
				t.Errorf("size %d: trailers %v", size, p.Trailer)
			}
		}
	}
}

func TestServerConcurrent(t *testing.T) {
	addr, conns := serve(t, Options{}, echo)
	c := goClient(t)
	// Before the client has read how many streams it may open, it makes more connections.
	if p, err := c.Get("http://" + addr + "/"); err != nil {
		t.Fatal(err)
	} else {
		_ = p.Body.Close()
	}
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			body := strings.Repeat(fmt.Sprint(i), 3000)
			p, err := c.Post("http://"+addr+"/", "text/plain", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(p.Body)
			_ = p.Body.Close()
			if err != nil || string(got) != body {
				t.Errorf("%d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	if n := len(conns()); n != 1 {
		t.Errorf("%d connections for what fits on one", n)
	}
}

// goServer serves HTTP/2 without TLS by golang.org/x/net.
func goServer(t testing.TB, s *http2.Server, h http.HandlerFunc) string {
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
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			wg.Go(func() { s.ServeConn(nc, &http2.ServeConnOpts{Handler: h}) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

func dial(t testing.TB, addr string, o Options) *Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(nc, o)
	t.Cleanup(func() {
		_ = c.Close()
		c.Wait()
	})
	return c
}

type answer struct {
	status   int
	framing  http1.Framing
	length   int64
	head     string
	body     string
	trailers string
	err      error
}

func call(c *Conn, method, path string, body []byte, trailers ...string) (a answer) {
	s := c.Open(0)
	if s == nil {
		return answer{err: errors.New("no room")}
	}
	defer s.Close()
	q := http1.Request{Method: []byte(method), Target: []byte(path), Host: []byte("svc"), Framing: http1.NoBody, IsHead: method == "HEAD"}
	if body != nil {
		q.Framing, q.Length = http1.Length, int64(len(body))
		if trailers != nil {
			q.Framing = http1.Chunked
			q.Add([]byte("trailer"), []byte(trailers[0]))
		}
	}
	s.Request(&q)
	if body != nil {
		_ = s.Body(body)
		var h http1.Header
		for i := 0; i < len(trailers); i += 2 {
			h.Add([]byte(trailers[i]), []byte(trailers[i+1]))
		}
		_ = s.End(&h)
	}
	_ = s.Flush()
	var p http1.Response
	if a.err = s.ReadResponse(&p, http1.Limits{}, method == "HEAD"); a.err != nil {
		return a
	}
	a.status, a.framing, a.length, a.head = p.Status, p.Framing, p.Length, string(p.Get("x-head"))
	for {
		b, err := s.NextBody()
		if errors.Is(err, io.EOF) {
			a.trailers = string(p.Trailers.Get("x-t"))
			return a
		}
		if err != nil {
			a.err = err
			return a
		}
		a.body += string(b)
	}
}

func TestClient(t *testing.T) {
	addr := goServer(t, &http2.Server{}, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Header().Set("x-head", r.Host+" "+r.Method+" "+r.Trailer.Get("x-q"))
		w.Header().Set("Trailer", "x-t")
		if r.URL.Path == "/empty" {
			w.WriteHeader(204)
			return
		}
		_, _ = w.Write(b)
		w.Header().Set("x-t", fmt.Sprint(len(b)))
	})
	c := dial(t, addr, Options{})
	for _, size := range []int{0, 10, 100 << 10, 2 << 20} {
		body := bytes.Repeat([]byte("x"), size)
		a := call(c, "POST", "/", body, "x-q", "trailer")
		if a.err != nil || a.status != 200 || a.body != string(body) || a.trailers != fmt.Sprint(size) || a.head != "svc POST trailer" {
			t.Errorf("size %d: status %d, %d bytes, trailers %q, head %q, %v", size, a.status, len(a.body), a.trailers, a.head, a.err)
		}
	}
	if a := call(c, "GET", "/empty", nil); a.err != nil || a.status != 204 {
		t.Errorf("empty: %+v", a)
	}
	if a := call(c, "HEAD", "/", nil); a.err != nil || a.status != 200 || a.body != "" {
		t.Errorf("HEAD: %+v", a)
	}
	if n := c.Active(); n != 0 {
		t.Errorf("%d streams given out after all were closed", n)
	}
}

// TestBodilessAnswers: answers to HEAD and those of 204 and 304 have no body, whatever their length says (RFC 9110 section
// 6.4.1). A body that comes all the same goes nowhere: an HTTP/1 client would take it for its next answer.
func TestBodilessAnswers(t *testing.T) {
	for _, c := range []struct {
		name, method, status string
		length               string
		end                  bool
		data                 string
		want                 string // of the error
		framing              http1.Framing
		told                 int64
	}{
		{"HEAD", "HEAD", "200", "5", true, "", "", http1.NoBody, 5},
		{"HEAD, the end in DATA", "HEAD", "200", "5", false, "", "", http1.NoBody, 5},
		{"HEAD, no length", "HEAD", "200", "", false, "", "", http1.NoBody, -1},
		{"HEAD with a body", "HEAD", "200", "5", false, "hello", "violation", 0, 0},
		{"204, the end in DATA", "GET", "204", "", false, "", "", http1.NoBody, -1},
		{"204 with a body", "GET", "204", "", false, "hello", "violation", 0, 0},
		{"304", "GET", "304", "5", true, "", "", http1.NoBody, 5},
		{"304 with a body", "GET", "304", "5", false, "hello", "violation", 0, 0},
		{"GET", "GET", "200", "5", false, "hello", "", http1.Length, 5},
		{"GET, no body", "GET", "200", "", true, "", "", http1.NoBody, -1},
		{"GET, no body and a length", "GET", "200", "5", true, "", "violation", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := answered(t, c.method, func(p *peer) {
				head := []string{":status", c.status}
				if c.length != "" {
					head = append(head, "content-length", c.length)
				}
				p.headers(1, c.end, head...)
				if !c.end {
					_ = p.fr.WriteData(1, true, []byte(c.data))
				}
			})
			switch {
			case c.want != "":
				if got.err == nil || !strings.Contains(got.err.Error(), c.want) {
					t.Errorf("%+v, want %q", got, c.want)
				}
			case got.err != nil || got.framing != c.framing || got.length != c.told || got.body != c.data:
				t.Errorf("%+v, want framing %d, length %d", got, c.framing, c.told)
			}
		})
	}
}

// TestHeadAnswer: the server side sends no body after the head of an answer to HEAD.
func TestHeadAnswer(t *testing.T) {
	addr, _ := serve(t, Options{}, func(s *Stream) {
		s.Response(&http1.Response{Status: 200, Framing: http1.Length, Length: 4}, 0, true, false)
		_ = s.Body([]byte("body"))
		_ = s.End(nil)
	})
	p := connect(t, addr)
	p.headers(1, true, ":method", "HEAD", ":scheme", "http", ":authority", "x", ":path", "/")
	if f := p.next(func(f http2.Frame) bool { return f.Header().StreamID == 1 }); !f.Header().Flags.Has(http2.FlagHeadersEndStream) {
		t.Errorf("%v, want the end of the stream", f)
	}
}

// TestRoomForStreams: the peer's limit holds, and room comes back when streams end.
func TestRoomForStreams(t *testing.T) {
	release := make(chan struct{})
	addr := goServer(t, &http2.Server{MaxConcurrentStreams: 3}, func(http.ResponseWriter, *http.Request) { <-release })
	changed := make(chan struct{}, 100)
	c := dial(t, addr, Options{Changed: func() { changed <- struct{}{} }})
	<-changed // its settings
	var open []*Stream
	for range 3 {
		s := c.Open(0)
		if s == nil {
			t.Fatal("no room")
		}
		s.Request(&http1.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("x"), Framing: http1.NoBody})
		_ = s.Flush()
		open = append(open, s)
	}
	if c.Open(0) != nil {
		t.Error("room for a fourth stream")
	}
	close(release)
	for _, s := range open {
		var p http1.Response
		if err := s.ReadResponse(&p, http1.Limits{}, false); err != nil || p.Status != 200 {
			t.Errorf("status %d, %v", p.Status, err)
		}
		s.Close()
	}
	if s := c.Open(0); s == nil {
		t.Error("no room after all streams ended")
	} else {
		s.Close()
	}
}

// TestShutdown: a polite end lets the streams under way finish and sends newer ones elsewhere.
func TestShutdown(t *testing.T) {
	release := make(chan struct{})
	addr, conns := serve(t, Options{}, func(s *Stream) {
		<-release
		echo(s)
	})
	c := dial(t, addr, Options{})
	got := make(chan answer)
	go func() { got <- call(c, "POST", "/", []byte("body")) }()
	wait(t, "a request", func() bool {
		all := conns()
		if len(all) == 0 {
			return false
		}
		all[0].mu.Lock()
		defer all[0].mu.Unlock()
		return all[0].handlers == 1
	})
	conns()[0].Shutdown()
	wait(t, "GOAWAY", func() bool { return !c.Usable() })
	if c.Open(0) != nil {
		t.Error("a stream after GOAWAY")
	}
	close(release)
	if a := <-got; a.err != nil || a.body != "body" {
		t.Errorf("the request under way: %+v", a)
	}
	c.Wait()
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

// TestBackPressure: a body that nobody reads stops its sender at the window, and its stream only.
func TestBackPressure(t *testing.T) {
	release := make(chan struct{})
	addr, _ := serve(t, Options{}, func(s *Stream) {
		var q http1.Request
		s.ReadRequest(&q)
		if string(q.Target) == "/slow" {
			<-release
		}
		s.req, q = q, s.req
		s.into = nil
		echo(s)
	})
	c := dial(t, addr, Options{})
	slow := c.Open(0)
	slow.Request(&http1.Request{Method: []byte("POST"), Target: []byte("/slow"), Host: []byte("x"), Framing: http1.Chunked})
	sent := make(chan int64, 1)
	const size = 4 << 20
	go func() {
		var n int64
		piece := make([]byte, 8<<10)
		for n < size && slow.Body(piece) == nil {
			n += int64(len(piece))
		}
		_ = slow.End(nil)
		_ = slow.Flush()
		sent <- n
	}()
	wait(t, "stop of the sender", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slow.sendWin == 0 && c.blocked == 1
	})
	if a := call(c, "POST", "/other", bytes.Repeat([]byte("y"), 100<<10)); a.err != nil || len(a.body) != 100<<10 {
		t.Errorf("another stream: %d bytes, %v", len(a.body), a.err)
	}
	close(release)
	var p http1.Response
	if err := slow.ReadResponse(&p, http1.Limits{}, false); err != nil {
		t.Fatal(err)
	}
	var n int64
	for {
		b, err := slow.NextBody()
		n += int64(len(b))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if s := <-sent; s != size || n != size {
		t.Errorf("sent %d, got back %d of %d", s, n, size)
	}
	slow.Close()
}

func TestCancel(t *testing.T) {
	failed := make(chan error, 1)
	addr, _ := serve(t, Options{}, func(s *Stream) {
		var q http1.Request
		s.ReadRequest(&q)
		_, err := s.NextBody()
		failed <- err
	})
	c := dial(t, addr, Options{})
	s := c.Open(0)
	s.Request(&http1.Request{Method: []byte("POST"), Target: []byte("/"), Host: []byte("x"), Framing: http1.Chunked})
	_ = s.Flush()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	var p http1.Response
	if err := s.ReadResponse(&p, http1.Limits{}, false); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("read with a deadline: %v", err)
	}
	s.Close()
	var r *ResetError
	if err := <-failed; !errors.As(err, &r) || r.Code != http2.ErrCodeCancel {
		t.Errorf("the server saw %v", err)
	}
}

// TestClientOverTLS speaks to net/http over TLS.
func TestClientOverTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	nc, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(nc, Options{})
	if a := call(c, "GET", "/", nil); a.err != nil || a.body != "HTTP/2.0" {
		t.Errorf("%+v", a)
	}
	_ = c.Close()
	c.Wait()
}
