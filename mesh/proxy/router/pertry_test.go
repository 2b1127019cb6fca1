package router

import (
	"bufio"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// TestPerTry: the timeout of a try is for the time from the request's end to the answer's begin. Source:
// source/common/router/upstream_request.cc, onPoolReady and onPerTryTimeout; route_components.proto, RetryPolicy.
func TestPerTry(t *testing.T) {
	const tenth = 100 * time.Millisecond
	for _, c := range []struct {
		name    string
		timeout time.Duration // of the route
		upload  time.Duration // that the request takes
		begin   time.Duration // of the answer, after that of the request
		answer  time.Duration // that it takes from there
		status  int
		took    time.Duration
		cut     bool // the answer
	}{
		{"an answer that streams", 0, 0, 0, 30 * tenth, 200, 30 * tenth, false},
		{"an answer that streams, within the route's timeout", 40 * tenth, 0, 5 * tenth, 30 * tenth, 200, 35 * tenth, false},
		{"an answer that streams beyond the route's timeout", 20 * tenth, 0, 5 * tenth, 30 * tenth, 200, 20 * tenth, true},
		{"no answer", 0, 0, 50 * tenth, 0, 504, 10 * tenth, false},
		{"a slow request", 0, 30 * tenth, 35 * tenth, 0, 200, 35 * tenth, false},
		{"no answer to a slow request", 0, 30 * tenth, 90 * tenth, 0, 504, 40 * tenth, false},
		{"an answer before the end of the request", 0, 30 * tenth, 5 * tenth, 60 * tenth, 200, 65 * tenth, false},
	} {
		for proto, change := range map[string]func(*front){"HTTP/1": func(*front) {}, "HTTP/2": over2} {
			t.Run(c.name+" "+proto, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newFront(t, conf.Forward{Timeout: c.timeout, Retry: &conf.Retry{PerTry: 10 * tenth}}, change)
					p.answer(c.begin, c.answer, proto == "HTTP/2")
					cl := p.client()
					p.wg.Go(func() {
						_, _ = io.WriteString(cl, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
						if c.upload == 0 {
							_, _ = io.WriteString(cl, "xx")
							return
						}
						_, _ = io.WriteString(cl, "x")
						time.Sleep(c.upload)
						_, _ = io.WriteString(cl, "x")
					})
					began := time.Now()
					a := want(t, bufio.NewReader(cl), c.status)
					_, err := io.Copy(io.Discard, a.Body)
					if (err != nil) != c.cut {
						t.Errorf("the answer's end: %v", err)
					}
					if took := time.Since(began); took != c.took {
						t.Errorf("took %v, want %v", took, c.took)
					}
					timeouts := uint64(p.set.View().Cluster("c").Stats.PerTryTimeouts.Load())
					if r := p.ended(); (r.Flags&telemetry.UpstreamRequestTimeout != 0) != (c.status == 504 || c.cut) || (timeouts != 0) != (c.status == 504) {
						t.Errorf("flags %v, %d timeouts of tries", r.Flags, timeouts)
					}
				})
			})
		}
	}
}

// answer has the endpoint answer a request so long after its begin, with a body that takes so long.
func (p *front) answer(begin, length time.Duration, two bool) {
	pause := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-p.ctx.Done():
			return false
		}
	}
	say := func(out filter.Sink) {
		if !pause(begin) {
			return
		}
		out.Response(&http1.Response{Status: 200, Framing: http1.Length, Length: 2}, 1, false, false)
		_ = out.Body([]byte("x"))
		_ = out.Flush()
		if pause(length) {
			_ = out.Body([]byte("x"))
			_ = out.End(nil)
			_ = out.Flush()
		}
	}
	if two {
		p.serve2(http2.Options{}, func(s *http2.Stream) {
			var q http1.Request
			s.ReadRequest(&q)
			say(s)
		})
		return
	}
	p.wg.Go(func() {
		up := p.up()
		read := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, up)
			close(read)
		}()
		say(http1.NewWriter(up))
		<-read // until the proxy hangs up
	})
}

// TestTimeoutOfAnUnreadEnd: the route's timeout runs from the end of the request, whether or not the endpoint reads that.
func TestTimeoutOfAnUnreadEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFront(t, conf.Forward{Timeout: time.Second})
		cl := p.client()
		_, _ = io.WriteString(cl, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
		request(t, p.up())
		began := time.Now()
		p.wg.Go(func() { _, _ = io.WriteString(cl, "xx") })
		want(t, bufio.NewReader(cl), 504)
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v", took)
		}
	})
}
