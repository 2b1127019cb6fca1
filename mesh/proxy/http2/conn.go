package http2

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Conn is one HTTP/2 connection, of either side.
type Conn struct {
	nc     net.Conn
	server bool
	opt    Options
	handle func(*Stream) // server
	wg     sync.WaitGroup

	// Of the reading goroutine.
	br      *bufio.Reader
	fr      *http2.Framer
	dec     *hpack.Decoder
	blk     block
	settled bool // the peer's first SETTINGS came
	quiet   int  // frames since quietAt that brought nothing
	quietAt time.Time

	mu      sync.Mutex
	streams map[uint32]*Stream
	err     error // why the connection ended
	enc     *encoder

	// What the writer sends next. gen grows when it takes out away.
	out, spare []byte
	gen        uint64
	wanted     bool // somebody asked for a flush
	work       sync.Cond
	room       sync.Cond            // the reader waits for the writer
	blocked    int                  // streams that wait for a window or for the writer
	early      map[*Stream]struct{} // client: those among them whose requests have not gone out
	finish     bool

	// The peer's settings and windows.
	sendWin   int64
	peerWin   int64 // initial window of streams
	peerFrame int
	peerMax   uint32 // streams

	recvWin, credit int64 // ours

	nextID     uint32 // client: of the next stream; server: highest that the peer opened, refused ones included
	open       int    // client: streams that were given out
	handlers   int    // server: requests being handled
	opened     uint64
	resets     int // server: streams that the peer cancelled before they were answered
	recent     [remembered]uint32
	recentAt   int
	faded      uint32 // highest that recent held and holds no more
	owed       int    // heads that may still come on streams that were reset
	goingAway  bool   // no more streams: a GOAWAY came, the final one went, or Shutdown was called
	refused    bool   // client: a GOAWAY came, so that streams given out before find nobody
	graceful   bool   // server: the first GOAWAY went
	lastGood   uint32 // server: of the final GOAWAY
	finalTimer *time.Timer
	idleTimer  *time.Timer
	idleTicks  int
	idleSeen   uint64
	lifeTimer  *time.Timer
	pingTimer  *time.Timer
	pingOut    bool
}

func newConn(nc net.Conn, server bool, o Options) *Conn {
	c := &Conn{nc: nc, server: server, opt: o.withDefaults(), streams: map[uint32]*Stream{}, early: map[*Stream]struct{}{}, enc: newEncoder(),
		sendWin: initialWindow, peerWin: initialWindow, peerFrame: maxFrame, peerMax: 1 << 30}
	c.work.L, c.room.L = &c.mu, &c.mu
	c.recvWin = int64(c.opt.ConnWindow)
	c.blk.server, c.blk.limits = server, &c.opt
	if !server {
		c.peerMax = 100 // until its SETTINGS say more (RFC 9113 section 6.5.2 recommends no less)
		c.nextID = 1
	}
	return c
}

// start prepares the reader and says hello.
func (c *Conn) start(src io.Reader) {
	c.br = bufio.NewReaderSize(src, maxFrame)
	c.fr = http2.NewFramer(io.Discard, c.br)
	c.fr.SetMaxReadFrameSize(maxFrame)
	c.fr.SetReuseFrames()
	c.dec = hpack.NewDecoder(4096, c.blk.field)
	c.dec.SetMaxStringLength(2 * c.opt.MaxHeaderBytes)
	set := []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: uint32(c.opt.Window)}, {ID: http2.SettingMaxHeaderListSize, Val: uint32(c.opt.MaxHeaderBytes)}}
	if c.server {
		set = append(set, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.opt.MaxStreams})
	} else {
		c.out = append(c.out, Preface...)
		set = append(set, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	}
	c.out = appendSettings(c.out, set...)
	if n := int64(c.opt.ConnWindow) - initialWindow; n > 0 {
		c.out = appendWindowUpdate(c.out, 0, uint32(n))
	}
	c.wanted = true
}

// read reads frames until the connection ends.
func (c *Conn) read() error {
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			var se http2.StreamError
			if !errors.As(err, &se) {
				return err
			}
			if err := c.answerReset(se.StreamID, se.Code); err != nil {
				return err
			}
		} else if err := c.frame(f); err != nil {
			return err
		}
		if c.br.Buffered() == 0 {
			c.flush()
		}
	}
}

// end fails every stream and lets the writer send what is left, the reason among it.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	var ce *connError
	var fe http2.ConnectionError
	switch {
	case errors.As(err, &ce):
	case errors.As(err, &fe):
		ce = &connError{http2.ErrCode(fe), "framing"}
	case errors.Is(err, http2.ErrFrameTooLarge):
		ce = &connError{http2.ErrCodeFrameSize, "frame too large"}
	}
	if ce != nil {
		last := c.nextID
		switch {
		case !c.server:
			last = 0
		case c.goingAway:
			last = c.lastGood // it may not grow (RFC 9113 section 6.8)
		}
		c.out = appendGoAway(c.out, last, ce.code, ce.why)
		err = ce
	}
	c.lose(err)
}

// lose notes the end of the connection. The lock is held.
func (c *Conn) lose(err error) {
	if c.err != nil {
		return
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = ErrClosed
	} else {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.err, c.finish, c.goingAway = err, true, true
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second)) // farewells do not wait for ever
	for _, s := range c.streams {
		s.fail(err)
	}
	for s := range c.early {
		s.fail(ErrUnprocessed)
	}
	for _, t := range []*time.Timer{c.finalTimer, c.idleTimer, c.lifeTimer, c.pingTimer} {
		if t != nil {
			t.Stop()
		}
	}
	c.work.Signal()
	c.room.Signal()
}

// write is the writing goroutine: it ends after the connection's last bytes.
func (c *Conn) write() {
	c.mu.Lock()
	for {
		for !c.finish && (!c.wanted || len(c.out) == 0) {
			c.wanted = false
			if cap(c.spare) > maxFrame {
				c.spare = nil // an idle connection keeps little
			}
			c.work.Wait()
		}
		if len(c.out) == 0 {
			break
		}
		b := c.out
		c.out, c.spare, c.wanted = c.spare[:0], nil, false
		c.gen++
		c.mu.Unlock()
		_, err := c.nc.Write(b)
		c.mu.Lock()
		if cap(b) <= 2*highWater {
			c.spare = b[:0]
		}
		if err != nil {
			c.lose(err)
			break
		}
		c.room.Signal()
		c.wake()
	}
	c.out = nil
	c.mu.Unlock()
	// Wakes the reader. Closing is the owner's part.
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// wake lets waiting bodies look again. The lock is held.
func (c *Conn) wake() {
	if c.blocked == 0 {
		return
	}
	for _, s := range c.streams {
		s.cond.Broadcast()
	}
	for s := range c.early {
		s.cond.Broadcast()
	}
}

// flush asks the writer to send what was gathered.
func (c *Conn) flush() {
	c.mu.Lock()
	c.want()
	c.mu.Unlock()
}

func (c *Conn) want() {
	if len(c.out) > 0 && !c.wanted {
		c.wanted = true
		c.work.Signal()
	}
}

// frame handles one frame.
func (c *Conn) frame(f http2.Frame) error {
	if !c.settled {
		if s, ok := f.(*http2.SettingsFrame); !ok || s.IsAck() {
			return violation(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
		}
		c.settled = true
	}
	if err := c.busy(f); err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.HeadersFrame:
		c.blk.begin(f.StreamID, f.StreamEnded())
		err := c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
		if err == nil && f.HasPriority() && f.Priority.StreamDep == f.StreamID {
			return c.answerReset(f.StreamID, http2.ErrCodeProtocol) // RFC 7540 section 5.3.1
		}
		return err
	case *http2.ContinuationFrame:
		return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.DataFrame:
		return c.data(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.WindowUpdateFrame:
		return c.window(f)
	case *http2.RSTStreamFrame:
		return c.peerReset(f)
	case *http2.PingFrame:
		return c.ping(f)
	case *http2.GoAwayFrame:
		return c.goAway(f)
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return c.answerReset(f.StreamID, http2.ErrCodeProtocol)
		}
	case *http2.PushPromiseFrame:
		return violation(http2.ErrCodeProtocol, "PUSH_PROMISE")
	}
	return nil
}

// answerReset resets a stream, open or not, for a frame that the peer sent on it.
func (c *Conn) answerReset(id uint32, code http2.ErrCode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.await(); err != nil {
		return err
	}
	c.resetID(id, code)
	return nil
}

// await stops the reader, before it takes what needs an answer, until the peer has read enough of the answers that wait. The
// lock is held.
func (c *Conn) await() error {
	for len(c.out) > maxUnwritten && c.err == nil {
		c.want()
		c.room.Wait()
	}
	return c.err
}

// busy bounds what a peer can send without bringing a request on.
func (c *Conn) busy(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		if len(f.Data()) > 0 || f.StreamEnded() {
			return nil
		}
	case *http2.PingFrame, *http2.SettingsFrame, *http2.PriorityFrame, *http2.UnknownFrame, *http2.ContinuationFrame:
	default:
		return nil
	}
	return c.nothing()
}

// nothing counts a frame that brings nothing.
func (c *Conn) nothing() error {
	if c.quiet++; c.quiet < maxQuiet {
		return nil
	}
	now := time.Now()
	if now.Sub(c.quietAt) < time.Second {
		return violation(http2.ErrCodeEnhanceYourCalm, "too many frames that bring nothing")
	}
	c.quiet, c.quietAt = 0, now
	return nil
}

// control checks before an answer is appended that the peer reads answers. The lock is held.
func (c *Conn) control() error {
	if len(c.out) > maxUnwritten {
		return violation(http2.ErrCodeEnhanceYourCalm, "answers are not read")
	}
	return nil
}

func (c *Conn) fragment(p []byte, last bool) error {
	b := &c.blk
	if b.wire += len(p); b.wire > maxContinuation*c.opt.MaxHeaderBytes {
		return violation(http2.ErrCodeEnhanceYourCalm, "header block too large")
	}
	if _, err := c.dec.Write(p); err != nil {
		return violation(http2.ErrCodeCompression, err.Error())
	}
	if !last {
		return nil
	}
	if err := c.dec.Close(); err != nil {
		return violation(http2.ErrCodeCompression, err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[b.id]; s != nil {
		return s.block(b)
	}
	if c.server {
		return c.accept(b)
	}
	if c.late(b.id) {
		return c.lateHead()
	}
	return violation(http2.ErrCodeProtocol, "HEADERS on a stream that is not open")
}

// forgotten reports whether a stream was reset here a short while ago. The lock is held.
func (c *Conn) forgotten(id uint32) bool {
	for _, r := range c.recent {
		if r == id {
			return true
		}
	}
	return false
}

// late reports whether frames of a closed stream may have been under way when it was given up here: it lies beyond the final
// GOAWAY, or was reset, or may have been (of those that recent holds no more nobody knows). The lock is held.
func (c *Conn) late(id uint32) bool {
	if c.idle(id) {
		return false
	}
	return c.server && c.goingAway && id > c.lastGood || id <= c.faded || c.forgotten(id)
}

// lateHead ignores a head that came late. Beyond what the resets account for it counts as a frame that brings nothing. The lock is held.
func (c *Conn) lateHead() error {
	if c.owed > 0 {
		c.owed--
		return nil
	}
	return c.nothing()
}

// idle reports whether a stream has never been opened. The lock is held.
func (c *Conn) idle(id uint32) bool {
	if c.server {
		return id > c.nextID || id%2 == 0
	}
	return id >= c.nextID || id%2 == 0
}

func (c *Conn) data(f *http2.DataFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.server {
		if err := c.control(); err != nil { // windows that are given back have no bound of their own
			return err
		}
	}
	n := int64(f.Length) // padding counts (RFC 9113 section 6.9.1)
	if c.recvWin -= n; c.recvWin < 0 {
		return violation(http2.ErrCodeFlowControl, "connection window exceeded")
	}
	s := c.streams[f.StreamID]
	if s == nil || s.recvEnd {
		c.giveBack(n)
		switch {
		case s == nil && c.idle(f.StreamID):
			return violation(http2.ErrCodeProtocol, "DATA on an idle stream")
		case s == nil && c.late(f.StreamID):
			return nil // the window bounds it
		}
		return violation(http2.ErrCodeStreamClosed, "DATA on a closed stream")
	}
	s.data(f.Data(), n, f.StreamEnded())
	return nil
}

// giveBack returns bytes of the connection's window, a good part of it at a time. The lock is held.
func (c *Conn) giveBack(n int64) {
	if c.credit += n; c.credit >= int64(c.opt.ConnWindow)/4 {
		c.out = appendWindowUpdate(c.out, 0, uint32(c.credit))
		c.recvWin += c.credit
		c.credit = 0
		c.want()
	}
}

func (c *Conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.NumSettings() > 64 {
		return violation(http2.ErrCodeEnhanceYourCalm, "too many settings in a frame")
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.enc.enc.SetMaxDynamicTableSizeLimit(min(s.Val, 4096))
			c.enc.enc.SetMaxDynamicTableSize(min(s.Val, 4096))
		case http2.SettingMaxConcurrentStreams:
			c.peerMax = s.Val
		case http2.SettingMaxFrameSize:
			c.peerFrame = int(min(s.Val, maxFrame))
		case http2.SettingInitialWindowSize:
			d := int64(s.Val) - c.peerWin
			c.peerWin = int64(s.Val)
			for _, st := range c.streams {
				if st.sendWin += d; st.sendWin > maxWindow {
					return violation(http2.ErrCodeFlowControl, "window too large")
				}
			}
			c.wake()
		case http2.SettingEnablePush:
			if !c.server && s.Val == 1 {
				return violation(http2.ErrCodeProtocol, "a server may not enable push")
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.control(); err != nil {
		return err
	}
	c.out = appendHead(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	c.changed()
	return nil
}

// changed tells the pool, on another goroutine because the lock is held.
func (c *Conn) changed() {
	if c.opt.Changed != nil {
		c.wg.Go(c.opt.Changed)
	}
}

func (c *Conn) window(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID == 0 {
		if c.sendWin += int64(f.Increment); c.sendWin > maxWindow {
			return violation(http2.ErrCodeFlowControl, "window too large")
		}
		c.wake()
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return violation(http2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream")
		}
		return nil
	}
	if s.sendWin += int64(f.Increment); s.sendWin > maxWindow {
		c.resetID(f.StreamID, http2.ErrCodeFlowControl)
		return nil
	}
	s.cond.Broadcast()
	return nil
}

func (c *Conn) peerReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return violation(http2.ErrCodeProtocol, "RST_STREAM on an idle stream")
		}
		return nil
	}
	if c.server && !s.answered {
		// CVE-2023-44487: requests that are cancelled at once, over and over.
		if c.resets++; c.resets >= minResets && uint64(2*c.resets) > c.opened {
			return violation(http2.ErrCodeEnhanceYourCalm, "too many cancelled requests")
		}
	}
	if f.ErrCode == http2.ErrCodeNo && !c.server && s.recvEnd {
		// The whole answer is here and the rest of the request is not wanted (RFC 9113 section 8.1).
		s.sentEnd = true
		s.unwanted = true
		s.cond.Broadcast()
		return nil
	}
	s.fail(&ResetError{f.ErrCode})
	s.sentEnd, s.recvEnd = true, true
	delete(c.streams, s.id)
	c.finished()
	return nil
}

func (c *Conn) ping(f *http2.PingFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.IsAck() {
		if err := c.control(); err != nil {
			return err
		}
		c.out = appendPing(c.out, http2.FlagPingAck, f.Data)
		return nil
	}
	switch {
	case f.Data == drainPing && c.graceful:
		c.lastGoAway()
	case f.Data == alivePing:
		c.pingOut = false
	}
	return nil
}

var (
	drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}
	alivePing = [8]byte{'a', 'l', 'i', 'v', 'e'}
)

func (c *Conn) goAway(f *http2.GoAwayFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server {
		return nil // a client that opens no more streams needs no answer
	}
	c.goingAway, c.refused = true, true
	for s := range c.early {
		s.fail(ErrUnprocessed)
	}
	for id, s := range c.streams {
		if id > f.LastStreamID {
			s.fail(ErrUnprocessed)
			s.sentEnd, s.recvEnd = true, true
			delete(c.streams, id)
		}
	}
	c.finished()
	c.changed()
	return nil
}

// resetID ends a stream by RST_STREAM. The lock is held.
func (c *Conn) resetID(id uint32, code http2.ErrCode) {
	s := c.streams[id]
	if s == nil && c.forgotten(id) {
		return
	}
	if s != nil {
		if !s.recvEnd {
			c.remember(id)
		}
		s.fail(fmt.Errorf("http2: stream ended: %v", code))
		s.sentEnd, s.recvEnd = true, true
		delete(c.streams, id)
	} else {
		c.remember(id)
	}
	c.out = appendReset(c.out, id, code)
	c.want()
	c.finished()
}

func (c *Conn) remember(id uint32) {
	c.faded = max(c.faded, c.recent[c.recentAt])
	c.owed += 2 // a head and trailers
	c.recent[c.recentAt] = id
	c.recentAt = (c.recentAt + 1) % len(c.recent)
}

// finished looks whether a connection that takes no more streams can end. The lock is held.
func (c *Conn) finished() {
	if c.goingAway && len(c.streams) == 0 && c.handlers == 0 && c.open == 0 && !c.finish {
		c.finish = true
		c.work.Signal()
	}
}

// prefixed gives back what was read before.
func prefixed(prefix []byte, r io.Reader) io.Reader {
	if len(prefix) == 0 {
		return r
	}
	return io.MultiReader(bytes.NewReader(prefix), r)
}

// expired reports a read that a deadline ended, which is how the writer wakes the reader.
func expired(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
