package http2

import (
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// NewServer returns the server side of nc. prefix is what was read of it before, the preface included.
func NewServer(nc net.Conn, prefix []byte, o Options) *Conn {
	c := newConn(nc, true, o)
	c.start(prefixed(prefix, nc))
	return c
}

// Serve calls handle for each request, on a goroutine of its own, until the connection ends, and returns when every
// handler has. It does not close the connection. When ctx ends, streams fail at once.
func (c *Conn) Serve(ctx context.Context, handle func(*Stream)) error {
	c.handle = handle
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	stop := context.AfterFunc(ctx, func() { c.end(context.Cause(ctx)) })
	defer stop()
	c.timers()
	err := c.preface()
	if err == nil {
		err = c.read()
	}
	if expired(err) {
		err = io.EOF // the writer was done
	}
	c.end(err)
	<-written
	c.wg.Wait()
	return c.err
}

// preface reads the client's (RFC 9113 section 3.4).
func (c *Conn) preface() error {
	var b [len(Preface)]byte
	if _, err := io.ReadFull(c.br, b[:]); err != nil {
		return err
	}
	if string(b[:]) != Preface {
		return violation(http2.ErrCodeProtocol, "bad preface")
	}
	return nil
}

// timers starts those that the options ask for.
func (c *Conn) timers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if c.opt.Life > 0 {
		c.lifeTimer = time.AfterFunc(c.opt.Life, c.Shutdown)
	}
	if step := c.opt.Idle / 4; step > 0 {
		c.idleTimer = time.AfterFunc(step, func() { c.idleTick(step) })
	}
	if c.opt.KeepAlive > 0 {
		c.pingTimer = time.AfterFunc(c.opt.KeepAlive, c.pingTick)
	}
}

// idleTick looks four times in the idle timeout, so that requests need not touch a timer.
func (c *Conn) idleTick(step time.Duration) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if len(c.streams) > 0 || c.opened != c.idleSeen {
		c.idleTicks, c.idleSeen = 0, c.opened
	} else {
		c.idleTicks++
	}
	c.idleTimer.Reset(step)
	over := c.idleTicks >= 4
	c.mu.Unlock()
	if over {
		c.Shutdown()
	}
}

// pingTick asks the peer whether it is there, and gives it up when the last answer is missing.
func (c *Conn) pingTick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
	case c.pingOut:
		c.lose(context.DeadlineExceeded)
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	case len(c.streams) > 0:
		c.pingOut = true
		c.out = appendPing(c.out, 0, alivePing)
		c.want()
		c.pingTimer.Reset(c.opt.KeepAliveTimeout)
	default:
		c.pingTimer.Reset(c.opt.KeepAlive)
	}
}

// Shutdown ends the connection politely (RFC 9113 section 6.8): a GOAWAY that refuses nothing yet, then, when the peer has
// heard of it, one that names the last stream, and the end when the streams have ended. It does not wait.
func (c *Conn) Shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.goingAway || c.graceful {
		return
	}
	if !c.server {
		c.goingAway = true
		c.finished()
		return
	}
	c.graceful = true
	c.out = appendGoAway(c.out, maxWindow, http2.ErrCodeNo, "")
	c.out = appendPing(c.out, 0, drainPing)
	c.want()
	c.finalTimer = time.AfterFunc(goAwayWait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lastGoAway()
	})
}

// lastGoAway names the last stream. The lock is held.
func (c *Conn) lastGoAway() {
	if c.err != nil || c.goingAway {
		return
	}
	c.goingAway, c.lastGood = true, c.nextID
	c.out = appendGoAway(c.out, c.nextID, http2.ErrCodeNo, "")
	c.want()
	c.finished()
}

// accept takes the head of a new request. The lock is held.
func (c *Conn) accept(b *block) error {
	if err := c.await(); err != nil {
		return err
	}
	switch {
	case b.id%2 == 0:
		return violation(http2.ErrCodeProtocol, "client stream with an even number")
	case b.id <= c.nextID:
		if c.late(b.id) {
			return c.lateHead()
		}
		return violation(http2.ErrCodeStreamClosed, "HEADERS on a closed stream")
	}
	c.nextID = b.id
	if c.goingAway {
		return c.nothing() // beyond the last stream: the client knows to send it elsewhere
	}
	c.opened++
	// Requests that were cancelled count until their handlers have ended.
	if uint32(len(c.streams)) >= c.opt.MaxStreams || uint32(c.handlers) >= c.opt.MaxStreams {
		c.resetID(b.id, http2.ErrCodeRefusedStream)
		return nil
	}
	s := c.newStream()
	s.id = b.id
	if b.large {
		b.h.Reset()
		s.req.Reset()
		s.req.Method, s.req.Target = []byte("GET"), []byte("/")
		s.req.Major, s.req.TooLarge = 2, true
	} else if bad := b.request(&s.req); bad != "" {
		s.free()
		c.resetID(b.id, http2.ErrCodeProtocol)
		return nil
	}
	s.headOK = true
	s.recvEnd = b.end
	if !b.end {
		s.left = b.length
	} else if b.length > 0 {
		s.free()
		c.resetID(b.id, http2.ErrCodeProtocol) // a length without a body
		return nil
	}
	c.streams[b.id] = s
	c.handlers++
	c.wg.Go(func() {
		c.handle(s)
		s.done()
	})
	return nil
}

// done ends a stream whose handler has returned: an answer that was not finished is reset, and so is a request that was
// not read to its end (RFC 9113 section 8.1).
func (s *Stream) done() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.onFail = nil
	if c.streams[s.id] == s {
		switch {
		case !s.sentEnd:
			c.resetID(s.id, http2.ErrCodeInternal)
		case !s.recvEnd:
			c.resetID(s.id, http2.ErrCodeNo)
		}
		delete(c.streams, s.id)
	}
	c.want()
	c.handlers--
	s.free()
	c.finished()
}

// ReadRequest moves the request's head into q; trailers will be there when NextBody has returned io.EOF.
func (s *Stream) ReadRequest(q *http1.Request) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.req, *q = *q, s.req
	s.into = &q.Trailers
}

// Continue sends an interim 100 response.
func (s *Stream) Continue() error { return s.interim(100) }

func (s *Stream) interim(status int) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	e := c.enc
	e.buf = e.buf[:0]
	e.status(status)
	s.head(e.buf, false)
	c.want()
	return nil
}

// Response sends the head of p, and with it the end where no body may follow. The other arguments are HTTP/1's and mean
// nothing here.
func (s *Stream) Response(p *http1.Response, _ int, toHead, _ bool) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil || s.sentEnd {
		return
	}
	s.answered = true
	s.head(c.enc.response(p), p.Framing == http1.NoBody || p.Bodiless(toHead))
}

// Finished reports whether the whole answer was handed over.
func (s *Stream) Finished() bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.sentEnd
}

// ID is the stream's number.
func (s *Stream) ID() uint32 { return s.id }

// LooksLike reports whether b, the first bytes of a connection, begin HTTP/2; sure is false while more bytes are needed.
func LooksLike(b []byte) (is, sure bool) {
	n := min(len(b), len(Preface))
	if !bytes.Equal(b[:n], []byte(Preface[:n])) {
		return false, true
	}
	return true, n >= len("PRI * HTTP/2.0")
}

// String names the connection in logs.
func (c *Conn) String() string {
	return "http2 " + c.nc.RemoteAddr().String() + " stream " + strconv.Itoa(int(c.nextID))
}
