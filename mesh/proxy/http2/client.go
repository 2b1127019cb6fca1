package http2

import (
	"net"

	"golang.org/x/net/http2"

	"github.com/meshproof/meshproof/mesh/proxy/hangup"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// NewClient returns the client side of nc, which it closes when the connection ends. Wait waits for its goroutines.
func NewClient(nc net.Conn, o Options) *Conn {
	c := newConn(nc, false, o)
	c.start(nc)
	c.wg.Go(func() {
		c.write()
		if c.lost() {
			_ = hangup.Now(nc)
		} else {
			_ = nc.Close() // nothing is left to be said
		}
	})
	c.wg.Go(func() {
		c.end(c.read())
		c.changed()
	})
	c.timers()
	return c
}

// Wait returns when the connection has ended and its goroutines have.
func (c *Conn) Wait() { c.wg.Wait() }

// Close ends a client's connection at once: its streams fail, and the peer is told nothing.
func (c *Conn) Close() error {
	c.end(net.ErrClosed)
	return hangup.Now(c.nc)
}

// lost reports whether the connection ended in the midst of something.
func (c *Conn) lost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// Usable reports whether the connection lives and takes more streams, now or when others have ended.
func (c *Conn) Usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usable()
}

func (c *Conn) usable() bool { return c.err == nil && !c.goingAway && c.nextID < 1<<31-1 }

// Active is how many streams are given out.
func (c *Conn) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// Open returns a stream for one request, or nil when the connection has no room: the peer's limit is reached (its streams
// will end), or Usable is false. most bounds the streams from this side; 0 is no bound.
func (c *Conn) Open(most uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.usable() || uint32(c.open) >= c.peerMax || most > 0 && uint32(c.open) >= most {
		return nil
	}
	s := c.newStream()
	s.reused = c.opened > 0
	c.open++
	return s
}

// Opened is how many requests went out.
func (c *Conn) Opened() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened
}

// Request sends the head of q, waiting for the writer while much waits for the peer, at most until the read deadline. A failure shows
// at ReadResponse.
func (s *Stream) Request(q *http1.Request) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) > highWater {
		c.early[s] = struct{}{}
		err := s.room()
		delete(c.early, s)
		if err != nil {
			return
		}
	}
	// A stream that was given out before our own Shutdown still has its request.
	if c.err != nil || c.refused || c.nextID >= 1<<31-1 {
		s.fail(ErrUnprocessed)
		return
	}
	s.id = c.nextID
	c.nextID += 2
	c.opened++
	s.sendWin, s.toHead = c.peerWin, q.IsHead
	c.streams[s.id] = s
	s.head(c.enc.request(q), q.Framing == http1.NoBody)
}

// ReadResponse waits for the response's head. Limits were given with the connection, and toHead with the request.
func (s *Stream) ReadResponse(p *http1.Response, _ http1.Limits, _ bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for !s.headOK {
		if s.err != nil {
			return s.err
		}
		if err := s.await(); err != nil {
			return err
		}
	}
	s.resp, *p = *p, s.resp
	s.into = &p.Trailers
	return nil
}

// Reused reports whether the connection had carried a request before this one.
func (s *Stream) Reused() bool { return s.reused }

// Close gives the stream up, with RST_STREAM where either side has not ended it. It reports whether the exchange was complete.
func (s *Stream) Close() (complete bool) {
	c := s.c
	c.mu.Lock()
	complete = s.err == nil && s.sentEnd && s.recvEnd
	s.onFail = nil
	if s.id != 0 && c.streams[s.id] == s {
		if !s.sentEnd || !s.recvEnd {
			c.resetID(s.id, http2.ErrCodeCancel)
		}
		delete(c.streams, s.id)
	}
	c.open--
	c.want()
	s.free()
	c.finished()
	c.mu.Unlock()
	if c.opt.Changed != nil {
		c.opt.Changed()
	}
	return complete
}

// LocalAddr is our address.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }
