package httpgen

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"
)

// errHungUp is met before a request's first byte on a kept connection that the server has ended meanwhile.
var errHungUp = errors.New("the server had ended the connection before the request")

// wire is a connection that counts what is written, and that looks before the first byte of each request whether the server
// is still there. net/http learns of an end only when its reader gets to run: in a process that keeps a processor busy that is
// late enough to send a request after an end that was here long before.
type wire struct {
	net.Conn
	raw     syscall.RawConn // or nil
	written atomic.Int64
	look    atomic.Bool // before the next byte
	ended   atomic.Bool
}

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		w.raw, _ = sc.SyscallConn() // without it net/http finds out by itself
	}
	return w
}

// Write implements net.Conn.
func (w *wire) Write(b []byte) (int, error) {
	if w.look.Swap(false) && w.hungUp() {
		w.ended.Store(true)
	}
	if w.ended.Load() {
		return 0, errHungUp
	}
	n, err := w.Conn.Write(b)
	w.written.Add(int64(n))
	return n, err
}

// hungUp asks the kernel. Anything but "nothing has come" is an end, an error, or an answer that nobody asked for.
func (w *wire) hungUp() (gone bool) {
	if w.raw == nil {
		return false
	}
	var b [1]byte
	err := w.raw.Control(func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = err != syscall.EAGAIN && err != syscall.EINTR
	})
	return gone || err != nil
}

// sending is how one request fares on the connections that it is given.
type sending struct {
	given  int   // connections
	wire   *wire // the last
	before int64 // what was written on it earlier
	reused bool
	twice  bool // bytes went out on a connection before the last
}

// got notes a connection that net/http gives to the request. It is called before a byte of the request is written there.
func (s *sending) got(info httptrace.GotConnInfo) {
	s.twice = s.twice || s.sent()
	s.given++
	nc := info.Conn
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	s.wire, s.reused = nc.(*wire), info.Reused
	s.before = s.wire.written.Load()
	s.wire.look.Store(info.Reused)
}

// sent reports whether anything of the request went out on its last connection.
func (s *sending) sent() bool { return s.wire != nil && s.wire.written.Load() != s.before }

// spared reports, of a request that failed, that the server cannot know of it: its kept connection had ended before.
func (s *sending) spared() bool { return s.reused && !s.twice && !s.sent() }
