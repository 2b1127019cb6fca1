package router

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
)

// frames are n messages of gRPC, of three bytes each.
func frames(n int) string { return strings.Repeat("\x00\x00\x00\x00\x03abc", n) }

const callHead = "POST /a.B/C HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"

// TestMessagesOfCalls: the messages of gRPC are counted each way, however they come; another try counts none again.
func TestMessagesOfCalls(t *testing.T) {
	for _, c := range []struct {
		name, mime string
		pieces     []string
		tries      int
		in, out    uint64
	}{
		{"unary", "application/grpc", []string{frames(1)}, 1, 1, 2},
		{"streaming", "application/grpc+proto", []string{frames(1)[:2], frames(2)[2:], frames(1)}, 1, 3, 2},
		{"another try", "application/grpc", []string{frames(1)}, 2, 1, 2},
		{"another try while streaming", "application/grpc", []string{frames(1)[:6], frames(1)[6:]}, 2, 1, 2},
		{"not gRPC", "text/plain", []string{frames(1)}, 1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newFront(t, conf.Forward{Retry: &conf.Retry{On: conf.Retry5xx, Num: 2}})
				body := strings.Join(c.pieces, "")
				cl := p.client()
				p.wg.Go(func() {
					head := fmt.Sprintf(callHead, c.mime, len(body))
					_, _ = io.WriteString(cl, head+c.pieces[0])
					for _, piece := range c.pieces[1:] {
						synctest.Wait()
						_, _ = io.WriteString(cl, piece)
					}
				})
				p.wg.Go(func() {
					up := p.up()
					for try := 1; ; try++ {
						q, err := http.ReadRequest(bufio.NewReaderSize(up, 16))
						if err != nil {
							t.Error(err)
							return
						}
						if b, err := io.ReadAll(q.Body); string(b) != body {
							t.Errorf("the endpoint got %q, %v", b, err)
						}
						if try == c.tries {
							break
						}
						// Its body is not passed on, so that nothing of it counts.
						_, _ = io.WriteString(up, "HTTP/1.1 503 Unavailable\r\nContent-Length: 8\r\n\r\n"+frames(1))
						select {
						case up = <-p.ups:
						default:
						}
					}
					_, _ = io.WriteString(up, "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n"+frames(2))
				})
				a := want(t, bufio.NewReader(cl), 200)
				if b, err := io.ReadAll(a.Body); string(b) != frames(2) {
					t.Errorf("answer %q, %v", b, err)
				}
				if r := p.ended(); r.MessagesIn.N != c.in || r.MessagesOut.N != c.out {
					t.Errorf("%d messages in and %d out, want %d and %d", r.MessagesIn.N, r.MessagesOut.N, c.in, c.out)
				}
			})
		})
	}
}

// chunk is a piece of a chunked body.
func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// TestMessagesOfLongCalls: a call reports its messages every 5 s, once it is known between whom they are, and at its end what is
// left. As in Istio, the peer of a client is known by the head of the answer.
func TestMessagesOfLongCalls(t *testing.T) {
	const open = "POST /a.B/C HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"
	call := func(p *front) (say func(messages int), end func()) {
		c := p.client()
		p.wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
		_, _ = io.WriteString(c, open)
		return func(n int) { _, _ = io.WriteString(c, chunk(frames(n))) }, func() { _, _ = io.WriteString(c, "0\r\n\r\n") }
	}
	call2 := func(p *front) (say func(messages int), end func()) {
		c := http2.NewClient(p.client(), http2.Options{})
		p.t.Cleanup(func() {
			_ = c.Close()
			c.Wait()
		})
		s := c.Open(0)
		q := http1.Request{Method: []byte("POST"), Target: []byte("/a.B/C"), Host: []byte("x"), Framing: http1.Chunked}
		q.Add([]byte("content-type"), []byte("application/grpc"))
		s.Request(&q)
		_ = s.Flush()
		return func(n int) {
				_ = s.Body([]byte(frames(n)))
				_ = s.Flush()
			}, func() {
				_ = s.End(nil)
				_ = s.Flush()
			}
	}
	for name, call := range map[string]func(*front) (func(int), func()){"HTTP/1": call, "HTTP/2": call2} {
		for way, first := range map[conf.Direction][]report{conf.Inbound: {{"c", 1, 0}}, conf.Outbound: nil} {
			t.Run(fmt.Sprint(name, " ", way == conf.Inbound), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newFront(t, conf.Forward{}, func(p *front) { p.way = way })
					p.wg.Go(func() { _ = p.manager.Run(p.ctx) })
					reported := func(want ...report) {
						t.Helper()
						p.mu.Lock()
						defer p.mu.Unlock()
						if !slices.Equal(p.reports, want) {
							t.Errorf("after %v: reports %v, want %v", time.Since(p.began), p.reports, want)
						}
						p.reports = nil
					}
					at := func(d time.Duration) {
						time.Sleep(time.Until(p.began.Add(d)))
						synctest.Wait()
					}
					p.began = time.Now()
					say, end := call(p)
					up := p.up()
					q := request(t, up)
					p.wg.Go(func() { _, _ = io.Copy(io.Discard, q.Body) })
					say(1)
					at(4900 * time.Millisecond)
					reported()
					at(5300 * time.Millisecond)
					reported(first...)
					_, _ = io.WriteString(up, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk(frames(2)))
					at(9900 * time.Millisecond)
					reported()
					at(10300 * time.Millisecond)
					if way == conf.Inbound {
						reported(report{"c", 0, 2})
					} else {
						reported(report{"c", 1, 2})
					}
					say(2)
					say(1)
					at(20 * time.Second)
					reported(report{"c", 3, 0}) // once, and nothing where nothing is new
					_, _ = io.WriteString(up, chunk(frames(1))+"0\r\n\r\n")
					end()
					r := p.ended()
					if r.MessagesIn.N != 4 || r.MessagesOut.N != 3 {
						t.Errorf("%d messages in and %d out", r.MessagesIn.N, r.MessagesOut.N)
					}
					if in, out := r.MessagesIn.Untold(), r.MessagesOut.Untold(); in != 0 || out != 1 {
						t.Errorf("%d in and %d out are left to the end, want the last alone", in, out)
					}
					at(time.Minute)
					reported()
				})
			})
		}
	}
}
