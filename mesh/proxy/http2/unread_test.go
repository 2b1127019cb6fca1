package http2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// large is a request with a head of about 10 KiB that does not shrink on the wire.
func large(i int) *http1.Request {
	q := &http1.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("x"), Framing: http1.Chunked}
	b := bytes.Repeat([]byte{'a' + byte(i%26)}, 10<<10)
	q.Add([]byte("x-large"), b)
	q.Trailers.Add([]byte("x-large"), b)
	return q
}

// unwritten is how much waits for the peer.
func unwritten(c *Conn) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out)
}

// TestServerThatDoesNotRead: what a client's callers have for a server that reads nothing does not pile up, however often they give
// up: they wait, as long as their deadlines let them.
func TestServerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := NewClient(a, Options{})
		const most = highWater + 64<<10
		waits := 0
		for i := range 500 {
			s := c.Open(0)
			if s == nil {
				t.Fatal("no room for a stream")
			}
			if err := s.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			q := large(i)
			s.Request(q)
			if time.Since(began) == time.Second {
				waits++
			}
			_ = s.End(&q.Trailers)
			_ = s.Flush()
			if err := s.ReadResponse(&http1.Response{}, http1.Limits{}, false); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("request %d: %v", i, err)
			}
			s.Close()
			if n := unwritten(c); n > most {
				t.Fatalf("%d bytes wait after %d requests", n, i)
			}
		}
		if waits == 0 {
			t.Error("nobody waited")
		}
		_ = c.Close()
		c.Wait()
		_ = b.Close()
	})
}

// TestRequestsWaitTheirTurn: requests that wait for a server to read go out when it does, end with their connection, and can be
// cancelled.
func TestRequestsWaitTheirTurn(t *testing.T) {
	for name, then := range map[string]struct {
		do   func(c *Conn, s *Stream, b net.Conn)
		want error // of the answer; nil for none yet
	}{
		"it reads": {func(_ *Conn, _ *Stream, b net.Conn) { go func() { _, _ = io.Copy(io.Discard, b) }() }, nil},
		"closed":   {func(c *Conn, _ *Stream, _ net.Conn) { _ = c.Close() }, ErrUnprocessed},
		"woken":    {func(_ *Conn, s *Stream, _ net.Conn) { _ = s.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				c := NewClient(a, Options{})
				var all []*Stream
				for i := 0; unwritten(c) <= highWater; i++ {
					s := c.Open(0)
					s.Request(large(i))
					_ = s.Flush()
					synctest.Wait() // the writer has taken the first of them, and waits with it
					all = append(all, s)
				}
				last := c.Open(0)
				sent := make(chan struct{})
				go func() {
					last.Request(large(0))
					close(sent)
				}()
				synctest.Wait()
				select {
				case <-sent:
					t.Fatal("the last request did not wait")
				default:
				}
				then.do(c, last, b)
				synctest.Wait()
				<-sent
				if then.want != nil {
					if err := last.ReadResponse(&http1.Response{}, http1.Limits{}, false); !errors.Is(err, then.want) {
						t.Errorf("error %v, want %v", err, then.want)
					}
				} else if last.id == 0 || last.Err() != nil {
					t.Errorf("stream %d, %v", last.id, last.Err())
				}
				last.Close()
				for _, s := range all {
					s.Close()
				}
				_ = c.Close()
				c.Wait()
				_ = b.Close()
			})
		})
	}
}
