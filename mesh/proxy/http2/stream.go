package http2

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// Stream is one exchange. At most one goroutine may read its body while another writes. It must not be used after the
// handler that got it returned (server), or after Close (client).
type Stream struct {
	c    *Conn
	id   uint32
	cond sync.Cond

	// Guarded by the connection's lock.
	req      http1.Request  // server: until ReadRequest
	resp     http1.Response // client: until ReadResponse
	headOK   bool
	trailers http1.Header
	into     *http1.Header // where trailers are wanted
	recv     []byte        // body that came and was not taken
	cur      []byte        // the piece that NextBody gave out last
	left     int64         // of a content-length; -1 unknown
	recvEnd  bool
	sentEnd  bool
	answered bool // server: a head was sent
	toHead   bool // client: the request is a HEAD
	unwanted bool // client: the peer has answered in full and wants no more of the request
	err      error
	cut      bool // it failed before END_STREAM came
	sendWin  int64
	recvWin  int64
	credit   int64
	deadline time.Time
	timer    *time.Timer
	onFail   func()
	// The last DATA frame of this stream in Conn.out, while gen is the connection's: END_STREAM may still be set on it.
	last    int // -1 none
	lastGen uint64
	reused  bool
}

var streams = sync.Pool{New: func() any { return new(Stream) }}

// newStream takes a stream off the pool. The lock is held.
func (c *Conn) newStream() *Stream {
	s := streams.Get().(*Stream)
	s.c, s.cond.L = c, &c.mu
	s.sendWin, s.recvWin, s.left, s.last = c.peerWin, int64(c.opt.Window), -1, -1
	return s
}

// free gives what the stream held back. The lock is held, and nobody else uses s.
func (s *Stream) free() {
	c := s.c
	c.giveBack(int64(len(s.recv)))
	if s.timer != nil {
		s.timer.Stop()
	}
	s.req.Reset()
	s.resp.Reset()
	s.trailers.Reset()
	n := Stream{req: s.req, resp: s.resp, trailers: s.trailers, recv: s.recv[:0], cur: s.cur[:0]}
	if cap(n.recv) > maxFrame {
		n.recv = nil
	}
	if cap(n.cur) > maxFrame {
		n.cur = nil
	}
	s.reset(&n)
	streams.Put(s)
}

// reset copies all but the condition, which must not be copied. Timers are made anew: one that fires late finds another stream.
func (s *Stream) reset(n *Stream) {
	s.c, s.id = nil, 0
	s.cond.L = nil
	s.req, s.resp, s.trailers, s.recv, s.cur = n.req, n.resp, n.trailers, n.recv, n.cur
	s.headOK, s.into, s.left = false, nil, -1
	s.recvEnd, s.sentEnd, s.answered, s.toHead, s.unwanted, s.cut = false, false, false, false, false, false
	s.err, s.sendWin, s.recvWin, s.credit = nil, 0, 0, 0
	s.deadline, s.timer, s.onFail = time.Time{}, nil, nil
	s.last, s.lastGen, s.reused = -1, 0, false
}

// fail ends the stream with err. The lock is held.
func (s *Stream) fail(err error) {
	if s.err == nil {
		s.err, s.cut = err, !s.recvEnd
		if f := s.onFail; f != nil {
			s.onFail = nil
			f()
		}
	}
	s.cond.Broadcast()
}

// OnFail has f called once, when the stream fails or at once when it has, under the connection's lock: f must not call
// the stream. nil takes that back, and returns when no call is under way.
func (s *Stream) OnFail(f func()) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil && f != nil {
		f()
		return
	}
	s.onFail = f
}

// Abort implements the proxy's Sink: the peer is told that the stream is cancelled.
func (s *Stream) Abort() { s.Cancel(http2.ErrCodeCancel) }

// block takes a header block that came on an open stream: a response's head, or trailers. The lock is held.
func (s *Stream) block(b *block) error {
	c := s.c
	switch {
	case s.recvEnd:
		return violation(http2.ErrCodeStreamClosed, "HEADERS on a closed stream")
	case !c.server && !s.headOK:
		return s.responseHead(b)
	}
	// Trailers (RFC 9113 section 8.1).
	p := &b.p
	if b.bad != "" || b.large || !b.end || p.method != nil || p.scheme != nil || p.authority != nil || p.path != nil || p.status != nil {
		c.malformed(s, "trailers")
		return nil
	}
	s.trailers, b.h = b.h, s.trailers
	s.ended()
	return nil
}

func (s *Stream) responseHead(b *block) error {
	c := s.c
	if b.large {
		c.malformed(s, "headers too large")
		return nil
	}
	if bad := b.response(&s.resp, s.toHead); bad != "" {
		c.malformed(s, bad)
		return nil
	}
	if s.resp.Status < 200 {
		if b.end {
			c.malformed(s, "interim response at the end")
		}
		return nil // 100 and 103 go no further: the proxy answers Expect itself
	}
	s.headOK = true
	switch {
	case b.end:
		s.ended()
	case s.resp.Framing == http1.NoBody:
		s.left = 0 // only the end may follow
	case b.length >= 0:
		s.left = b.length
	}
	s.cond.Broadcast()
	return nil
}

// malformed ends a stream whose message breaks the rules (RFC 9113 section 8.1.1). The lock is held.
func (c *Conn) malformed(s *Stream, why string) {
	s.fail(&http1.ParseError{Status: 502, Detail: "http2.violation.of.messaging.rule: " + why})
	c.resetID(s.id, http2.ErrCodeProtocol)
}

// data takes a piece of the body; n is its weight in the windows. The lock is held.
func (s *Stream) data(p []byte, n int64, end bool) {
	c := s.c
	if s.recvWin -= n; s.recvWin < 0 {
		c.giveBack(n)
		c.resetID(s.id, http2.ErrCodeFlowControl)
		return
	}
	if pad := n - int64(len(p)); pad > 0 {
		c.giveBack(pad)
		s.giveBack(pad)
	}
	if !s.headOK {
		c.giveBack(int64(len(p)))
		c.malformed(s, "DATA before the head")
		return
	}
	if s.left >= 0 {
		if s.left -= int64(len(p)); s.left < 0 {
			c.giveBack(int64(len(p)))
			c.malformed(s, "more bytes than the head allows")
			return
		}
	}
	s.recv = append(s.recv, p...)
	if end {
		s.ended()
		return
	}
	s.cond.Broadcast()
}

// ended notes END_STREAM. The lock is held.
func (s *Stream) ended() {
	if s.left > 0 {
		s.c.malformed(s, "fewer bytes than content-length")
		return
	}
	s.recvEnd = true
	s.cond.Broadcast()
}

// giveBack returns bytes of the stream's window, half of it at a time. The lock is held.
func (s *Stream) giveBack(n int64) {
	if s.recvEnd {
		return
	}
	c := s.c
	if s.credit += n; s.credit >= int64(c.opt.Window)/2 {
		c.out = appendWindowUpdate(c.out, s.id, uint32(s.credit))
		s.recvWin += s.credit
		s.credit = 0
		c.want()
	}
}

// await waits for something to happen to the stream, or for the read deadline. The lock is held.
func (s *Stream) await() error {
	if s.late() {
		return os.ErrDeadlineExceeded
	}
	s.cond.Wait()
	return nil
}

func (s *Stream) late() bool { return !s.deadline.IsZero() && !time.Now().Before(s.deadline) }

// SetReadDeadline bounds waits for a head or a piece of the body, and on the client's side those of Body too; zero is no
// bound. A wait under way hears of it.
func (s *Stream) SetReadDeadline(t time.Time) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.deadline = t
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if t.IsZero() {
		return nil
	}
	d := time.Until(t)
	if d <= 0 {
		s.cond.Broadcast()
		return nil
	}
	s.timer = time.AfterFunc(d, func() {
		c.mu.Lock()
		s.cond.Broadcast()
		c.mu.Unlock()
	})
	return nil
}

// NextBody returns the next piece of the body; it is valid until the next call. io.EOF is the end: trailers are in the
// message then.
func (s *Stream) NextBody() ([]byte, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if n := int64(len(s.recv)); n > 0 {
			s.cur, s.recv = s.recv, s.cur[:0]
			c.giveBack(n)
			s.giveBack(n)
			return s.cur, nil
		}
		switch {
		case s.recvEnd && !s.cut:
			if s.into != nil && len(s.trailers.Fields) > 0 {
				s.trailers, *s.into = *s.into, s.trailers
				s.into = nil
			}
			return nil, io.EOF
		case s.err != nil:
			return nil, s.err
		}
		if err := s.await(); err != nil {
			return nil, err
		}
	}
}

var errUnwanted = errors.New("http2: the rest of the request is not wanted")

// BodyDone reports whether nothing of the body is left to be taken, trailers aside.
func (s *Stream) BodyDone() bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.recvEnd && len(s.recv) == 0 && len(s.trailers.Fields) == 0
}

// BodyBuffered reports whether the rest of the body is here, so that NextBody cannot block.
func (s *Stream) BodyBuffered() bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.recvEnd || s.err != nil
}

// Buffered is how many bytes of the body wait to be taken.
func (s *Stream) Buffered() int {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(s.recv)
}

// head appends a header block. The lock is held.
func (s *Stream) head(block []byte, end bool) {
	c := s.c
	s.last = -1
	c.out = appendBlock(c.out, s.id, block, end, c.peerFrame)
	s.sentEnd = s.sentEnd || end
}

// room waits on the client's side until not too much waits for the peer any more: what requests have beside their bodies has no
// window, and could pile up. The deadline ends the wait, and the stream with it. The lock is held.
func (s *Stream) room() error {
	c := s.c
	for len(c.out) > highWater && s.err == nil && !c.server {
		c.want()
		if s.late() {
			s.giveUp()
			break
		}
		c.blocked++
		s.cond.Wait()
		c.blocked--
	}
	return s.err
}

// giveUp cancels a request whose deadline has passed. The lock is held.
func (s *Stream) giveUp() {
	s.fail(os.ErrDeadlineExceeded)
	if s.id != 0 {
		s.c.resetID(s.id, http2.ErrCodeCancel)
	}
}

// Body writes a piece of the body, waiting for the peer's windows and for the writer. A request whose deadline passes
// meanwhile is cancelled, for half a piece may have gone out.
func (s *Stream) Body(p []byte) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		switch {
		case s.err != nil:
			return s.err
		case s.sentEnd:
			return errUnwanted
		}
		n := int(min(int64(len(p)), s.sendWin, c.sendWin, int64(c.peerFrame)))
		if n <= 0 || len(c.out) > highWater {
			c.want()
			if !c.server && s.late() {
				s.giveUp()
				return s.err
			}
			c.blocked++
			s.cond.Wait()
			c.blocked--
			continue
		}
		s.last, s.lastGen = len(c.out), c.gen
		c.out = append(appendHead(c.out, n, http2.FrameData, 0, s.id), p[:n]...)
		s.sendWin -= int64(n)
		c.sendWin -= int64(n)
		p = p[n:]
	}
	if len(c.out) > 2*maxFrame {
		c.want()
	}
	return s.err
}

// End ends the message, with trailers if there are any; nil means none. It does not flush.
func (s *Stream) End(trailers *http1.Header) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.sentEnd:
		return nil
	}
	if trailers != nil && len(trailers.Fields) > 0 {
		if err := s.room(); err != nil {
			return err
		}
		if b := c.enc.trailers(trailers); len(b) > 0 {
			s.head(b, true)
			return nil
		}
	}
	s.sentEnd = true
	if s.last >= 0 && s.lastGen == c.gen {
		c.out[s.last+4] |= byte(http2.FlagDataEndStream)
		return nil
	}
	// Never on HEADERS that did not end the stream by themselves: gRPC wants an empty DATA frame.
	c.out = appendHead(c.out, 0, http2.FrameData, http2.FlagDataEndStream, s.id)
	return nil
}

// Flush asks for what was gathered to be sent, and returns why the stream failed if it did. It does not wait.
func (s *Stream) Flush() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want()
	return s.err
}

// Err is why the stream failed, or nil.
func (s *Stream) Err() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.err
}

// Cancel ends the stream from this side with the given code, whatever its state; waits under way hear of it.
func (s *Stream) Cancel(code http2.ErrCode) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.id != 0 && !(s.sentEnd && s.recvEnd) && c.err == nil {
		c.resetID(s.id, code)
	} else {
		s.fail(errors.New("http2: cancelled"))
	}
}
