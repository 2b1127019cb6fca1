package hcm

import (
	"net"
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/http2"
	"github.com/meshproof/meshproof/mesh/proxy/peek"
)

// life ends a connection when its chain drains.
type life struct {
	nc     net.Conn
	socket *peek.Socket

	mu      sync.Mutex
	waiting bool // for a request: it may end at once
	served  bool // a request came before
	begun   bool
	last    bool
	two     *http2.Conn
	late    *time.Timer
}

// settle is how long an HTTP/2 connection that was made in the midst of a drain may take requests: with a GOAWAY at its
// very begin, clients that do not know better would only make one connection after the other.
const settle = time.Second

// drain is told by the chain. HTTP/1 connections end with their next answer by themselves; only idle ones need this.
func (l *life) drain(last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun, l.last = true, l.last || last
	switch {
	case l.two != nil:
		l.two.Shutdown()
	case l.last && l.waiting:
		l.hurry()
	}
}

// hurry ends a wait: at once, or soon on a new connection, whose first request is most likely on its way.
func (l *life) hurry() {
	d := time.Unix(1, 0)
	if !l.served {
		d = time.Now().Add(settle)
	}
	_ = l.nc.SetReadDeadline(d)
}

// waits notes whether the connection waits for a request.
func (l *life) waits(now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting = now; now && l.last {
		l.hurry()
	}
}

// arrived reports whether a request came in the very moment in which the wait for it timed out. It is served then: its client
// cannot tell that it was too late, and may not be one that sends again. Otherwise the peer is told at once that this is the end.
func (l *life) arrived() bool {
	if l.socket.State() == peek.Bytes {
		_ = l.nc.SetReadDeadline(time.Now().Add(settle))
		return true
	}
	if c, ok := l.nc.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	return false
}

// answered notes that the connection has carried a request.
func (l *life) answered() {
	l.mu.Lock()
	l.served = true
	l.mu.Unlock()
}

// became notes that the connection speaks HTTP/2.
func (l *life) became(c *http2.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.two = c
	switch {
	case l.last:
		c.Shutdown()
	case l.begun:
		l.late = time.AfterFunc(settle, c.Shutdown)
	}
}

// ended stops what became began.
func (l *life) ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.late != nil {
		l.late.Stop()
	}
}
