package http2

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// TestBodyDeadline: a request's deadline also ends the wait of a body for a peer that takes no more of it, and the peer hears
// that the request is cancelled.
func TestBodyDeadline(t *testing.T) {
	cut := make(chan error, 1)
	addr, _ := serve(t, Options{}, func(s *Stream) {
		var q http1.Request
		s.ReadRequest(&q)
		for {
			wait(t, "the end of the request", s.BodyBuffered)
			if _, err := s.NextBody(); err != nil {
				cut <- err
				return
			}
		}
	})
	c := dial(t, addr, Options{})
	s := c.Open(0)
	s.Request(&http1.Request{Method: []byte("POST"), Target: []byte("/"), Host: []byte("x"), Framing: http1.Chunked})
	if err := s.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := s.Body(make([]byte, 10<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Body: %v", err)
	}
	if err := s.ReadResponse(&http1.Response{}, http1.Limits{}, false); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ReadResponse: %v", err)
	}
	if err := <-cut; errors.Is(err, io.EOF) {
		t.Error("the server took a part of the request for all of it")
	}
	s.Close()
}
