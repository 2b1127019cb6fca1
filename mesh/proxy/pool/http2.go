package pool

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/meshproof/meshproof/mesh/proxy/breaker"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
)

// HTTP2 is a pool of HTTP/2 connections to one address. Requests share a connection up to the limit of the peer; only
// beyond that another one is made.
type HTTP2 struct {
	dial  Dial
	stats *Stats
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	// pending is len(waiting), so that a stream that ends need not lock to see that nobody waits.
	pending atomic.Int64

	mu      sync.Mutex
	limits  Limits
	conns   []*shared
	waiting []*waiter2 // oldest first
	dialing bool       // at most one at a time: it serves many
	live    int        // connections that are open or being made
	closed  bool
	ended   bool // nothing may be made any more
}

// shared is a connection with its streams.
type shared struct {
	*http2.Conn
	local  string
	seen   uint64 // requests at the last sweep
	idleAt time.Time
}

type waiter2 struct{ got chan outcome2 }

type outcome2 struct {
	s   *H2
	err error
}

// NewHTTP2 returns an empty pool.
func NewHTTP2(dial Dial, l Limits, stats *Stats) *HTTP2 {
	p := &HTTP2{dial: dial, limits: l, stats: stats}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// SetLimits changes the limits from now on.
func (p *HTTP2) SetLimits(l Limits) {
	p.mu.Lock()
	p.limits = l
	p.mu.Unlock()
}

// Get returns a stream on a connection with room, or on the first that gets room or is made. breaker.ErrOverflow says that
// too many wait already.
func (p *HTTP2) Get(ctx context.Context) (*H2, error) {
	p.mu.Lock()
	if len(p.waiting) == 0 {
		if s := p.open(); s != nil {
			p.mu.Unlock()
			return s, nil
		}
		if p.closed {
			// The host went while this request was on its way to it.
			p.mu.Unlock()
			return p.openNow(ctx)
		}
	}
	if !p.limits.Pending.Take() {
		p.mu.Unlock()
		return nil, breaker.ErrOverflow
	}
	w := &waiter2{got: make(chan outcome2, 1)}
	p.waiting = append(p.waiting, w)
	p.pending.Store(int64(len(p.waiting)))
	p.dialOne()
	p.mu.Unlock()
	p.serve() // room that came while this was queued
	select {
	case o := <-w.got:
		return o.s, o.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, w)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
		p.limits.Pending.Give()
		p.pending.Store(int64(len(p.waiting)))
	}
	p.mu.Unlock()
	if i < 0 {
		if o := <-w.got; o.s != nil {
			o.s.Discard()
		}
	}
	return nil, context.Cause(ctx)
}

// open takes a stream from the first connection with room, and forgets those that take no more. The lock is held.
func (p *HTTP2) open() *H2 {
	for i := 0; i < len(p.conns); {
		c := p.conns[i]
		if limit := p.limits.MaxRequests; limit > 0 && c.Opened() >= uint64(limit) {
			c.Shutdown()
		}
		if s := c.Open(p.limits.MaxStreams); s != nil {
			return newH2(s, c)
		}
		if c.Usable() {
			i++ // full for now
			continue
		}
		p.conns = slices.Delete(p.conns, i, i+1)
	}
	return nil
}

// openNow makes a connection for one stream, beyond every bound, for a request that was let in already.
func (p *HTTP2) openNow(ctx context.Context) (*H2, error) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return nil, net.ErrClosed
	}
	p.live++
	p.limits.Connections.Force()
	l := p.limits
	p.mu.Unlock()
	nc, err := Connect(ctx, p.dial, l.ConnectTimeout)
	if err != nil {
		p.stats.Failed.Add(1)
		p.mu.Lock()
		p.lost()
		p.mu.Unlock()
		return nil, err
	}
	p.mu.Lock()
	if p.ended {
		p.lost()
		p.mu.Unlock()
		_ = nc.Close()
		return nil, net.ErrClosed
	}
	c := p.begin(nc, l)
	s := c.Open(0)
	c.Shutdown() // it ends with its stream
	p.keep(c)
	p.mu.Unlock()
	if s == nil {
		return nil, http2.ErrClosed // it was lost at once
	}
	return newH2(s, c), nil
}

// serve gives room to those who wait.
func (p *HTTP2) serve() {
	if p.pending.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.waiting) > 0 {
		s := p.open()
		if s == nil {
			p.dialOne()
			return
		}
		p.next().got <- outcome2{s: s}
	}
}

func (p *HTTP2) next() *waiter2 {
	w := p.waiting[0]
	p.waiting[0] = nil
	p.waiting = p.waiting[1:]
	p.limits.Pending.Give()
	p.pending.Store(int64(len(p.waiting)))
	if p.closed && len(p.waiting) == 0 {
		p.stop()
	}
	return w
}

// dialOne starts a dial when somebody waits and none is under way, as far as the cluster may have another connection; one
// without which nobody would be served is made all the same. The lock is held.
func (p *HTTP2) dialOne() {
	if p.dialing || len(p.waiting) == 0 {
		return
	}
	if !p.limits.Connections.Take() {
		if p.live > 0 {
			return
		}
		p.limits.Connections.Force() // nothing else would ever serve those who wait
	}
	p.live++
	p.dialing = true
	p.wg.Go(p.connect)
}

// connect makes one connection; its failure is told to everyone who waits, as each of them would only try the same.
func (p *HTTP2) connect() {
	p.mu.Lock()
	l := p.limits
	p.mu.Unlock()
	nc, err := Connect(p.ctx, p.dial, l.ConnectTimeout)
	if err != nil {
		p.stats.Failed.Add(1)
		p.mu.Lock()
		p.dialing = false
		p.lost()
		for len(p.waiting) > 0 {
			p.next().got <- outcome2{err: err}
		}
		p.mu.Unlock()
		return
	}
	c := p.begin(nc, l)
	p.mu.Lock()
	p.dialing = false
	p.keep(c)
	closed := p.closed
	p.mu.Unlock()
	p.serve()
	if closed {
		c.Shutdown()
	}
}

// begin makes a shared connection of a dialed one.
func (p *HTTP2) begin(nc net.Conn, l Limits) *shared {
	p.stats.Opened.Add(1)
	p.stats.Active.Add(1)
	c := &shared{local: nc.LocalAddr().String(), idleAt: time.Now()}
	c.Conn = http2.NewClient(nc, http2.Options{Changed: p.serve, Window: l.Window, ConnWindow: l.ConnWindow, KeepAlive: l.KeepAlive, KeepAliveTimeout: l.KeepAliveTimeout})
	return c
}

// keep holds a connection until it ends. The lock is held.
func (p *HTTP2) keep(c *shared) {
	p.conns = append(p.conns, c)
	p.wg.Go(func() {
		c.Wait()
		p.stats.Active.Add(-1)
		p.stats.Destroyed.Add(1)
		p.mu.Lock()
		p.conns = slices.DeleteFunc(p.conns, func(o *shared) bool { return o == c })
		p.lost()
		p.mu.Unlock()
		p.serve()
	})
}

// lost is told of a connection that is no more, or was never made. The lock is held.
func (p *HTTP2) lost() {
	p.live--
	p.limits.Connections.Give()
}

// Sweep ends connections that carried nothing for longer than the limit.
func (p *HTTP2) Sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limits.IdleTimeout == 0 {
		return
	}
	for _, c := range p.conns {
		if n := c.Opened(); n != c.seen || c.Active() > 0 {
			c.seen, c.idleAt = n, now
		} else if now.Sub(c.idleAt) >= p.limits.IdleTimeout {
			c.Shutdown()
		}
	}
}

// Close ends each connection when its streams have ended. Requests that wait are still served.
func (p *HTTP2) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if len(p.waiting) == 0 {
		p.stop()
	}
	for _, c := range p.conns {
		c.Shutdown()
	}
}

// End ends every connection at once, and returns when nothing of the pool runs any more.
func (p *HTTP2) End() {
	p.Close()
	p.stop()
	p.mu.Lock()
	p.ended = true
	conns := slices.Clone(p.conns)
	p.mu.Unlock()
	for _, c := range conns {
		_ = c.Conn.Close() // its streams hear of it
	}
	p.wg.Wait()
}

// Connections is how many connections there are.
func (p *HTTP2) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// H2 is an exchange on an HTTP/2 connection. It is a Stream.
type H2 struct {
	*http2.Stream
	local string
}

var h2s = sync.Pool{New: func() any { return new(H2) }}

func newH2(s *http2.Stream, c *shared) *H2 {
	h := h2s.Get().(*H2)
	h.Stream, h.local = s, c.local
	return h
}

// Local implements Stream.
func (s *H2) Local() string { return s.local }

// Unsent implements Stream.
func (s *H2) Unsent(err error) bool { return errors.Is(err, http2.ErrUnprocessed) }

// CutWrites implements Stream.
func (s *H2) CutWrites() { s.Cancel(xhttp2.ErrCodeCancel) }

// Put implements Stream.
func (s *H2) Put() { s.Discard() }

// Discard implements Stream.
func (s *H2) Discard() {
	if s.Stream == nil {
		return
	}
	s.Close()
	s.Stream = nil
}
