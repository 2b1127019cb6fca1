package router

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
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
