// Package pool keeps upstream connections: HTTP/1.1 connections that are used again, HTTP/2 connections that carry many
// requests at a time, and plain dials for TCP.
package pool

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/breaker"
	"github.com/meshproof/meshproof/mesh/proxy/hangup"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/peek"
)

// Dial makes one connection, TLS handshake included.
type Dial func(context.Context) (net.Conn, error)

// Limits of a pool.
type Limits struct {
	ConnectTimeout time.Duration
	IdleTimeout    time.Duration // 0 never
	MaxRequests    uint32        // per connection; 0 no limit
	// Connections and Pending bound connections and requests that wait for one, over every pool of a cluster; nil is no bound.
	Connections, Pending *breaker.Resource
	// Of HTTP/2: streams on a connection, beside the peer's own limit (0 none), windows (0 the codec's), and pings (0 none).
	MaxStreams                  uint32
	Window, ConnWindow          int32
	KeepAlive, KeepAliveTimeout time.Duration
}

// Stats are counted by a pool; several pools may share one.
type Stats struct {
	Opened, Failed, Active, Destroyed atomic.Int64
}

// Conn is one HTTP/1.1 connection. It belongs to whoever got it until Put or Discard. It is a Stream.
type Conn struct {
	net.Conn
	*http1.Reader
	*http1.Writer

	pool     *HTTP
	local    string
	reused   bool
	deadline bool  // one was set, which Put clears
	cutting  bool  // so was that of CutWrites
	mark     int64 // Written when it was given out

	socket   *peek.Socket
	requests uint32
	idleAt   time.Time
	stats    *Stats
	gone     bool
}

// Stream is one exchange with an upstream, whatever the protocol. It belongs to whoever got it until Put or Discard.
type Stream interface {
	// Request takes the head, Body pieces of the body, End the end with its trailers. Errors stick and show at Flush.
	Request(*http1.Request)
	Body([]byte) error
	End(trailers *http1.Header) error
	Flush() error
	// ReadResponse waits for the next head, interim ones included.
	ReadResponse(p *http1.Response, lim http1.Limits, toHead bool) error
	// NextBody returns the next piece of the answer, valid until the next call; io.EOF is the end.
	NextBody() ([]byte, error)
	BodyDone() bool
	BodyBuffered() bool
	// Buffered is how many bytes of the answer are here and were not taken.
	Buffered() int
	// SetReadDeadline bounds waits for the answer, also one under way, and those for the upstream to take the request.
	SetReadDeadline(time.Time) error
	// CutWrites ends a Body, End or Flush under way in another goroutine, and fails what comes after. An exchange that was complete
	// all the same may still be Put.
	CutWrites()
	Local() string // our address
	// Reused says that the connection had carried a request before: if this one fails before the first byte of an
	// answer, the upstream may simply have closed it.
	Reused() bool
	// Unsent says, of an exchange that failed with err, that the upstream cannot have seen anything of it.
	Unsent(err error) bool
	// Put ends a complete exchange that may be followed by others on the same connection.
	Put()
	// Discard ends an exchange that is not complete. Calling it again is harmless.
	Discard()
}

// maxDialing bounds the connections of a pool that are being made at a time. Requests beyond wait for one of them or for one
// that comes back, whichever is first: after a stall, a handshake for every waiting request would only prolong it.
const maxDialing = 64

// HTTP is a pool of HTTP/1.1 connections to one address. The zero value is not ready: use NewHTTP.
type HTTP struct {
	dial  Dial
	stats *Stats
	// stop ends dials that nobody waits for any more.
	ctx  context.Context
	stop context.CancelFunc

	mu      sync.Mutex
	limits  Limits
	idle    []*Conn   // the last is the youngest
	waiting []*waiter // oldest first; never while something is idle
	dialing int       // goroutines in connect
	conns   int       // connections that are open or being made
	closed  bool
}

// waiter is a request without a connection. It hears once.
type waiter struct{ got chan outcome }

type outcome struct {
	conn *Conn
	err  error
}

// NewHTTP returns an empty pool.
func NewHTTP(dial Dial, l Limits, stats *Stats) *HTTP {
	p := &HTTP{dial: dial, limits: l, stats: stats}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// SetLimits changes the limits of connections from now on.
func (p *HTTP) SetLimits(l Limits) {
	p.mu.Lock()
	p.limits = l
	p.mu.Unlock()
}

// Get returns an idle connection that is alive, or else the first that is made or comes back. fresh asks for a new one, in
// the place of one that was lost. breaker.ErrOverflow says that too many wait already.
func (p *HTTP) Get(ctx context.Context, fresh bool) (*Conn, error) {
	if fresh {
		return p.openNow(ctx)
	}
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
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
	if p.closed {
		// The host went while this request was on its way to it.
		p.mu.Unlock()
		return p.openNow(ctx)
	}
	if !p.limits.Pending.Take() {
		p.mu.Unlock()
		return nil, breaker.ErrOverflow
	}
	w := &waiter{got: make(chan outcome, 1)}
	p.waiting = append(p.waiting, w)
	p.dialMore()
	p.mu.Unlock()
	select {
	case o := <-w.got:
		return o.conn, o.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
		p.limits.Pending.Give()
		p.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	if o := <-w.got; o.conn != nil { // it came at the same moment; whoever took w off the queue has sent already
		p.give(o.conn)
	}
	p.mu.Unlock()
	return nil, context.Cause(ctx)
}

// openNow makes a connection beyond every bound, for a request that was let in already.
func (p *HTTP) openNow(ctx context.Context) (*Conn, error) {
	p.mu.Lock()
	p.conns++
	p.limits.Connections.Force()
	p.mu.Unlock()
	return p.open(ctx)
}

// dialMore starts a dial for each waiter that has none yet, up to maxDialing and to what the cluster may have. A pool without
// any connection may always make one: nothing else would ever serve its waiters. The lock is held.
func (p *HTTP) dialMore() {
	for p.dialing < min(len(p.waiting), maxDialing) {
		if !p.limits.Connections.Take() {
			if p.conns > 0 {
				return
			}
			p.limits.Connections.Force()
		}
		p.conns++
		p.dialing++
		go p.connect()
	}
}

// connect makes one connection for the oldest waiter, who also hears of a failure. It ends within the connect timeout, or
// when the pool is closed and nobody waits.
func (p *HTTP) connect() {
	c, err := p.open(p.ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing--
	switch {
	case err == nil:
		p.give(c)
	case len(p.waiting) > 0:
		p.next().got <- outcome{err: err}
	}
	p.dialMore()
}

// next takes the oldest waiter off the queue. The lock is held.
func (p *HTTP) next() *waiter {
	w := p.waiting[0]
	p.waiting[0] = nil
	p.waiting = p.waiting[1:]
	p.limits.Pending.Give()
	return w
}

// give hands a connection that can be used at once to the oldest waiter, or keeps it. The lock is held.
func (p *HTTP) give(c *Conn) {
	switch {
	case len(p.waiting) > 0:
		p.next().got <- outcome{conn: c}
		if p.closed && len(p.waiting) == 0 {
			p.stop()
		}
	case p.closed:
		c.close()
	default:
		if p.limits.IdleTimeout > 0 {
			c.idleAt = time.Now()
		}
		p.idle = append(p.idle, c)
	}
}

// lost is told of a connection that is no more, or was never made. The lock is held.
func (p *HTTP) lost() {
	p.conns--
	p.limits.Connections.Give()
	p.dialMore() // one that waits may now have its own
}

// open makes a connection, which was counted in conns.
func (p *HTTP) open(ctx context.Context) (*Conn, error) {
	p.mu.Lock()
	limit := p.limits.ConnectTimeout
	p.mu.Unlock()
	nc, err := Connect(ctx, p.dial, limit)
	if err != nil {
		p.stats.Failed.Add(1)
		p.mu.Lock()
		p.lost()
		p.mu.Unlock()
		return nil, err
	}
	p.stats.Opened.Add(1)
	p.stats.Active.Add(1)
	c := &Conn{Conn: nc, pool: p, local: nc.LocalAddr().String(), Reader: http1.NewReader(nc), Writer: http1.NewWriter(nc), socket: peek.New(nc), stats: p.stats}
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

// healthy reports whether the peer has neither closed nor sent something in the meantime.
func (c *Conn) healthy() bool {
	state := c.socket.State()
	return state == peek.Quiet || state == peek.Unknown
}

// SetReadDeadline implements Stream.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadline = true
	return c.SetDeadline(t)
}

// CutWrites implements Stream.
func (c *Conn) CutWrites() {
	c.cutting = true
	_ = c.SetWriteDeadline(time.Unix(1, 0))
}

// Buffered implements Stream.
func (c *Conn) Buffered() int { return c.Reader.Buffered() }

// Local implements Stream.
func (c *Conn) Local() string { return c.local }

// Reused implements Stream.
func (c *Conn) Reused() bool { return c.reused }

// Unsent implements Stream.
func (c *Conn) Unsent(error) bool { return c.Written == c.mark }

// Put implements Stream.
func (c *Conn) Put() {
	p := c.pool
	if c.Buffered() != 0 || !c.BodyDone() || c.Err() != nil {
		c.Discard()
		return
	}
	c.requests++
	c.Release()
	if c.deadline || c.cutting {
		if c.SetDeadline(time.Time{}) != nil {
			c.Discard()
			return
		}
		c.deadline, c.cutting = false, false
	}
	c.mark = c.Written
	p.mu.Lock()
	defer p.mu.Unlock()
	if limit := p.limits.MaxRequests; limit > 0 && c.requests >= limit {
		c.close()
		return
	}
	c.reused = true
	p.give(c)
}

// Discard implements Stream.
func (c *Conn) Discard() {
	c.pool.mu.Lock()
	first := c.leave()
	c.pool.mu.Unlock()
	if !first {
		return
	}
	if c.Buffered() == 0 && c.BodyDone() && c.Err() == nil && !c.cutting {
		_ = c.Close()
	} else {
		_ = hangup.Now(c.Conn) // the peer may not read
	}
}

// close is Discard with the pool's lock held.
func (c *Conn) close() {
	if c.leave() {
		_ = c.Close()
	}
}

// leave takes the connection out of the pool's counts, once. The lock is held.
func (c *Conn) leave() bool {
	if c.gone {
		return false
	}
	c.gone = true
	c.stats.Active.Add(-1)
	c.stats.Destroyed.Add(1)
	c.pool.lost()
	return true
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

// Close closes what is idle now and everything else when it comes back. Exchanges under way, and requests that wait for a
// connection, are not touched.
func (p *HTTP) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	if len(p.waiting) == 0 {
		p.stop()
	}
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
