// Package pool keeps upstream connections: HTTP/1.1 connections that are used again, and plain dials for TCP.
package pool

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// Dial makes one connection, TLS handshake included.
type Dial func(context.Context) (net.Conn, error)

// Limits of a pool.
type Limits struct {
	ConnectTimeout time.Duration
	IdleTimeout    time.Duration // 0 never
	MaxRequests    uint32        // per connection; 0 no limit
}

// Stats are counted by a pool; several pools may share one.
type Stats struct {
	Opened, Failed, Active, Destroyed atomic.Int64
}

// Conn is one HTTP/1.1 connection. It belongs to whoever got it until Put or Discard.
type Conn struct {
	net.Conn
	R     *http1.Reader
	W     *http1.Writer
	Local string // our address
	// Reused says that a request was answered on it before: if it fails before the first byte of an answer, the
	// upstream may simply have closed it.
	Reused bool
	// Deadline says that a read deadline was set, which Put clears.
	Deadline bool

	raw      syscall.RawConn
	alive    bool
	peek     func(fd uintptr) bool
	requests uint32
	idleAt   time.Time
	stats    *Stats
	gone     bool
}

// HTTP is a pool of HTTP/1.1 connections to one address. The zero value is not ready: use NewHTTP.
type HTTP struct {
	dial  Dial
	stats *Stats

	mu     sync.Mutex
	limits Limits
	idle   []*Conn // the last is the youngest
	closed bool
}

// NewHTTP returns an empty pool.
func NewHTTP(dial Dial, l Limits, stats *Stats) *HTTP {
	return &HTTP{dial: dial, limits: l, stats: stats}
}

// SetLimits changes the limits of connections from now on.
func (p *HTTP) SetLimits(l Limits) {
	p.mu.Lock()
	p.limits = l
	p.mu.Unlock()
}

// Get returns an idle connection that is alive, or a new one. fresh asks for a new one.
func (p *HTTP) Get(ctx context.Context, fresh bool) (*Conn, error) {
	for !fresh {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.healthy() {
			return c, nil
		}
		c.Discard()
	}
	p.mu.Lock()
	limit := p.limits.ConnectTimeout
	p.mu.Unlock()
	nc, err := Connect(ctx, p.dial, limit)
	if err != nil {
		p.stats.Failed.Add(1)
		return nil, err
	}
	p.stats.Opened.Add(1)
	p.stats.Active.Add(1)
	c := &Conn{Conn: nc, Local: nc.LocalAddr().String(), R: http1.NewReader(nc), W: http1.NewWriter(nc), stats: p.stats}
	c.raw = rawConn(nc)
	c.peek = func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		// Anything but "nothing there yet" is an end, an error, or bytes that nobody asked for.
		c.alive = err == syscall.EAGAIN
		return true
	}
	return c, nil
}

// Connect dials with a limit; 0 is none. A timeout is reported as such, also inside the TLS handshake.
func Connect(ctx context.Context, dial Dial, limit time.Duration) (net.Conn, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("connect timeout of %v: %w", limit, context.DeadlineExceeded))
		defer cancel()
	}
	nc, err := dial(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nc, err
}

func rawConn(nc net.Conn) syscall.RawConn {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = t.NetConn()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// healthy asks the kernel whether the peer has closed or sent something in the meantime.
func (c *Conn) healthy() bool {
	if c.raw == nil {
		return true
	}
	c.alive = false
	return c.raw.Read(c.peek) == nil && c.alive
}

// Put gives a connection back after a complete exchange that both sides want to follow with another.
func (p *HTTP) Put(c *Conn) {
	if c.R.Buffered() != 0 || !c.R.BodyDone() || c.W.Err() != nil {
		c.Discard()
		return
	}
	c.requests++
	c.R.Release()
	if c.Deadline {
		if c.SetDeadline(time.Time{}) != nil {
			c.Discard()
			return
		}
		c.Deadline = false
	}
	p.mu.Lock()
	if p.closed || p.limits.MaxRequests > 0 && c.requests >= p.limits.MaxRequests {
		p.mu.Unlock()
		c.Discard()
		return
	}
	c.Reused = true
	if p.limits.IdleTimeout > 0 {
		c.idleAt = time.Now()
	}
	p.idle = append(p.idle, c)
	p.mu.Unlock()
}

// Discard closes a connection that cannot be used again. Calling it twice is harmless.
func (c *Conn) Discard() {
	if c.gone {
		return
	}
	c.gone = true
	c.stats.Active.Add(-1)
	c.stats.Destroyed.Add(1)
	_ = c.Close() // nothing waits for what a lost connection has to say
}

// Sweep closes connections that were idle for longer than the limit.
func (p *HTTP) Sweep(now time.Time) {
	p.mu.Lock()
	var old []*Conn
	if p.limits.IdleTimeout > 0 {
		n := 0
		for n < len(p.idle) && now.Sub(p.idle[n].idleAt) >= p.limits.IdleTimeout {
			n++
		}
		old = append(old, p.idle[:n]...)
		p.idle = append(p.idle[:0], p.idle[n:]...)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.Discard()
	}
}

// Close closes what is idle now and everything else when it comes back. Exchanges under way are not touched.
func (p *HTTP) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, c := range idle {
		c.Discard()
	}
}

// Idle is how many connections wait for use.
func (p *HTTP) Idle() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}
