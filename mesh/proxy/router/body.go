package router

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/pool"
)

// maxReplay is how much of a request body is kept for another try.
const maxReplay = 64 << 10

// requestBody brings the downstream's body to the upstream. A body that already lies in the buffer is sent with the
// head; any other is pumped by a goroutine of its own, so that an answer may come before its end.
type requestBody struct {
	whole    []byte // the whole body, when it was buffered
	saved    []byte // the part that was read so far, for another try
	overflow bool   // more than maxReplay was read: no other try
	complete bool   // read to its end
	cut      bool   // the upstream of the last try did not get all of it
	chunked  bool
	pump     *pump
}

type pump struct {
	done chan struct{}
	to   pool.Stream
	// stop was asked for: a read that times out is no error of the client's.
	stopped atomic.Bool
	read    atomic.Bool // the body was read to its end; what is left is to write it
	gone    bool        // the client failed within its body
	sent    bool        // everything reached the upstream
}

// begin prepares the body; false means that the client is gone.
func (b *requestBody) begin(s *filter.Stream) bool {
	if s.Req.Framing == http1.NoBody {
		b.complete = true
		return true
	}
	if (s.Req.Framing == http1.Length || s.Req.Major == 2) && s.In.BodyBuffered() {
		return b.take(s)
	}
	b.chunked = s.Req.Framing == http1.Chunked
	if s.Req.Expect {
		s.Req.Del([]byte("expect"))
		return s.Out.Continue() == nil
	}
	return true
}

// take takes a body that is here.
func (b *requestBody) take(s *filter.Stream) bool {
	p, err := s.In.NextBody()
	if errors.Is(err, io.EOF) { // HTTP/2: the end came by itself
		p, err = []byte{}, nil
	}
	if err != nil {
		return false
	}
	b.whole, b.complete = p, true
	s.BodyIn(p)
	if len(p) > 0 && s.Req.Major == 2 {
		_, err = s.In.NextBody() // the end, which brings the trailers and leaves the piece as it is
		return errors.Is(err, io.EOF)
	}
	return true
}

// replayable reports whether the body can be sent again from its start.
func (b *requestBody) replayable() bool { return !b.overflow }

// send writes the body, or starts the pump.
func (b *requestBody) send(s *filter.Stream, c pool.Stream, x *exchange) {
	b.pump, b.cut = nil, false
	switch {
	case s.Req.Framing == http1.NoBody:
	case b.whole != nil:
		_ = c.Body(b.whole) // errors stick to the Writer
		_ = c.End(&s.Req.Trailers)
	default:
		p := &pump{done: make(chan struct{}), to: c}
		b.pump = p
		go b.run(p, s, c, x)
	}
}

// run is the pump's goroutine; stop and settle wait for it.
func (b *requestBody) run(p *pump, s *filter.Stream, c pool.Stream, x *exchange) {
	defer close(p.done)
	if len(b.saved) > 0 {
		_ = c.Body(b.saved)
	}
	for !b.complete {
		if s.In.Buffered() == 0 && c.Flush() != nil {
			return
		}
		piece, err := s.In.NextBody()
		if errors.Is(err, io.EOF) {
			b.complete = true
			break
		}
		if err != nil {
			if !p.stopped.Load() {
				p.gone = true
				x.bounds.left(x) // the reader of the answer among them
			}
			return
		}
		s.BodyIn(piece)
		if len(b.saved)+len(piece) > maxReplay {
			b.overflow = true
		} else if !b.overflow {
			b.saved = append(b.saved, piece...)
		}
		if c.Body(piece) != nil {
			return
		}
		if s.In.BodyDone() {
			b.complete = true
		}
	}
	p.read.Store(true)
	if !p.stopped.Load() {
		x.bounds.complete(x)
	}
	_ = c.End(&s.Req.Trailers)
	p.sent = c.Flush() == nil
}

// stop ends the pump and reports whether the client is gone.
func (b *requestBody) stop(s *filter.Stream) (gone bool) {
	p := b.pump
	if p == nil {
		return false
	}
	b.pump = nil
	select {
	case <-p.done:
	default:
		p.stopped.Store(true)
		p.to.CutWrites() // it may wait for an upstream that does not read
		_ = s.In.SetReadDeadline(time.Unix(1, 0))
		<-p.done
		_ = s.In.SetReadDeadline(time.Time{})
	}
	b.cut = !p.sent
	return p.gone
}

// lastWrite is how long an answer, which has gone out, waits for the request that it may have overtaken by a hair. An upstream
// that takes no more of it loses its connection.
const lastWrite = 100 * time.Millisecond

// settle ends the pump after an answer, if that came before the request's end, and reports whether the upstream got the whole
// request.
func (b *requestBody) settle(s *filter.Stream) bool {
	if p := b.pump; p != nil && p.read.Load() {
		t := time.NewTimer(lastWrite)
		defer t.Stop()
		select {
		case <-p.done:
		case <-t.C:
		}
	}
	b.stop(s)
	return !b.cut
}

// drop is called when the proxy answers by itself: a body that is not read to its end ends the connection.
func (b *requestBody) drop(s *filter.Stream) {
	b.stop(s)
	if !b.complete {
		s.CloseAfter = true
	}
}
