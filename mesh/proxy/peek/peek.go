// Package peek asks the kernel what has come on a connection that nobody reads at the moment, without taking it. It looks
// below TLS, where a record is bytes like any other.
package peek

import (
	"net"
	"syscall"
)

// State is what a look finds.
type State uint8

// The states of a connection.
const (
	Unknown State = iota // this connection is no socket
	Quiet                // nothing has come, and the peer has not ended
	Bytes                // something lies unread
	Ended                // the peer has closed its side, or the connection is broken, and all was read
)

// Socket looks at one connection. It is not for concurrent use, but may be used beside reads and writes; none of them waits
// for it.
type Socket struct {
	raw   syscall.RawConn
	look  func(fd uintptr)
	state State
}

// New finds the socket below c. The connection stays the caller's.
func New(c net.Conn) *Socket {
	s := &Socket{raw: Raw(c)}
	s.look = func(fd uintptr) { // made once: a look allocates nothing
		var b [1]byte
		switch n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT); {
		case err == syscall.EAGAIN || err == syscall.EINTR:
			s.state = Quiet
		case err == nil && n > 0:
			s.state = Bytes
		default:
			s.state = Ended
		}
	}
	return s
}

// State looks. Deadlines do not matter to it; a connection that is closed here has ended.
func (s *Socket) State() State {
	if s.raw == nil {
		return Unknown
	}
	s.state = Ended
	_ = s.raw.Control(s.look) // fails for a closed connection
	return s.state
}

// Raw returns the socket below TLS and whatever else wraps it, or nil.
func Raw(c net.Conn) syscall.RawConn {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = t.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
