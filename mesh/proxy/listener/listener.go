// Package listener accepts connections and finds out what they are: where they were bound for, whether TLS or HTTP
// comes first, and which filter chain takes them.
//
// An update keeps sockets and every chain that still matches the same connections; connections of such a chain go on
// and see its new config at their next request. Only chains that are gone are drained.
package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// Options of a Manager. Serve, HTTP and TCP take over a connection and return when they are done with it.
type Options struct {
	HTTP, TCP func(context.Context, *filter.Conn)
	TLS       interface {
		Server(*conf.DownstreamTLS) (*tls.Config, error)
	}
	// LocalURI is the workload's own SPIFFE id.
	LocalURI func() string
	// Listen opens a listening socket.
	Listen func(ctx context.Context, addr netip.AddrPort) (net.Listener, error)
	// OriginalDst tells where a redirected connection was bound for.
	OriginalDst func(net.Conn) (netip.AddrPort, bool)
	// Drain is how long connections of a chain that is gone may live on.
	Drain time.Duration
	Log   *slog.Logger
}

// Manager owns the listeners.
type Manager struct {
	o      Options
	ctx    context.Context // of connections: ends when the drain is over
	cancel context.CancelFunc

	mu     sync.Mutex
	active map[string]*live
	// changes are prepared, and not current yet.
	changes map[string]*change
	slots   map[*slot]struct{} // every slot that may have connections
	closed  bool
	wg      sync.WaitGroup

	byAddr   atomic.Pointer[map[netip.AddrPort]*live]
	draining atomic.Bool
	ending   atomic.Bool
	// undecided is of connections that said nothing yet: it ends when no more are accepted.
	undecided context.Context
	decide    context.CancelFunc
	// Opened and Active count connections.
	Opened, Active atomic.Int64
}

type live struct {
	conf     atomic.Pointer[table]
	sockets  []*socket
	failed   *Failure // why there are no sockets
	retrying bool
}

// Failure is why a listener has no sockets.
type Failure struct {
	Err error
	At  time.Time // of the last attempt
}

// Pauses between attempts to open sockets.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second
)

// table is one version of a listener with the slots of its chains.
type table struct {
	*conf.Listener
	slots map[*conf.FilterChain]*slot
}

// slot is a filter chain over time.
type slot struct {
	m    *Manager
	cur  atomic.Pointer[conf.FilterChain]
	tls  *tls.Config
	gone atomic.Bool

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	onDrain map[*drainer]struct{}
	drained bool // drain was called
	last    bool // with last set
}

// drainer is one call of OnDrain.
type drainer struct{ f func(last bool) }

// Current implements filter.Chain.
func (s *slot) Current() *conf.FilterChain { return s.cur.Load() }

// Draining implements filter.Chain.
func (s *slot) Draining() bool { return s.gone.Load() || s.m.draining.Load() }

// OnDrain implements filter.Chain.
func (s *slot) OnDrain(f func(last bool)) (forget func()) {
	s.mu.Lock()
	d := &drainer{f}
	s.onDrain[d] = struct{}{}
	drained, last := s.drained || s.m.draining.Load(), s.last || s.m.ending.Load()
	s.mu.Unlock()
	if drained {
		f(last)
	}
	return func() {
		s.mu.Lock()
		delete(s.onDrain, d)
		s.mu.Unlock()
	}
}

// drain tells the connections that asked for it; last also ends those that carry plain bytes.
func (s *slot) drain(last bool) {
	s.mu.Lock()
	s.drained, s.last = true, s.last || last
	fs := make([]func(bool), 0, len(s.onDrain))
	for d := range s.onDrain {
		fs = append(fs, d.f)
	}
	s.mu.Unlock()
	for _, f := range fs {
		f(last)
	}
}

// cut closes every connection of the slot.
func (s *slot) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// New returns a Manager without listeners.
func New(o Options) *Manager {
	m := &Manager{o: o, active: map[string]*live{}, changes: map[string]*change{}, slots: map[*slot]struct{}{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.undecided, m.decide = context.WithCancel(m.ctx)
	m.byAddr.Store(&map[netip.AddrPort]*live{})
	return m
}

// table gives each chain of c a slot: the one it had, if it still matches the same connections in the same way.
func (m *Manager) table(old *table, c *conf.Listener) (*table, error) {
	t := &table{Listener: c, slots: map[*conf.FilterChain]*slot{}}
	chains := slices.Clone(c.Chains)
	if c.Default != nil {
		chains = append(chains, c.Default)
	}
	for _, fc := range chains {
		if old != nil {
			for was, s := range old.slots {
				if same(was, fc) && !s.gone.Load() {
					t.slots[fc] = s
					break
				}
			}
		}
		if t.slots[fc] != nil {
			continue
		}
		s := &slot{m: m, conns: map[net.Conn]struct{}{}, onDrain: map[*drainer]struct{}{}}
		if fc.TLS != nil {
			var err error
			if s.tls, err = m.o.TLS.Server(fc.TLS); err != nil {
				return nil, fmt.Errorf("filter chain %q: %w", fc.Name, err)
			}
		}
		t.slots[fc] = s
	}
	return t, nil
}

func same(a, b *conf.FilterChain) bool {
	if a.Name != b.Name || (a.HTTP == nil) != (b.HTTP == nil) || (a.TLS == nil) != (b.TLS == nil) {
		return false
	}
	if a.TLS != nil && (a.TLS.ID != b.TLS.ID || a.TLS.RequireClientCert != b.TLS.RequireClientCert) {
		return false
	}
	return reflect.DeepEqual(a.Match, b.Match)
}

// retire drains the slots of old that next does not use.
func (m *Manager) retire(old, next *table) {
	if old == nil {
		return
	}
	kept := map[*slot]bool{}
	if next != nil {
		for _, s := range next.slots {
			kept[s] = true
		}
	}
	for _, s := range old.slots {
		if kept[s] || s.gone.Swap(true) {
			continue
		}
		m.wg.Go(func() {
			s.drain(false)
			t := time.NewTimer(m.o.Drain)
			defer t.Stop()
			select {
			case <-t.C:
			case <-m.ctx.Done():
			}
			if s.drain(true); s.Current().HTTP == nil {
				s.cut() // nobody knows when bytes are complete
			}
			m.drop(s)
		})
	}
}

// drop forgets a slot that is gone once it has no connections.
func (m *Manager) drop(s *slot) {
	s.mu.Lock()
	empty := len(s.conns) == 0 && s.last
	s.mu.Unlock()
	if empty {
		m.mu.Lock()
		delete(m.slots, s)
		m.mu.Unlock()
	}
}

func (m *Manager) accept(ln *socket) {
	var pause time.Duration
	for {
		c, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || m.ctx.Err() != nil {
				return
			}
			// Out of descriptors, or the peer was gone before it was accepted: the socket itself is well.
			pause = min(max(2*pause, time.Millisecond), time.Second)
			m.o.Log.Warn("accept failed", "listener", ln.owner.Load().conf.Load().Name, "err", err, "pause", pause)
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-m.ctx.Done():
				t.Stop()
				return
			}
			continue
		}
		pause = 0
		m.wg.Go(func() { m.serve(ln.owner.Load(), c) })
	}
}

// Addrs returns the addresses of a listener's sockets.
func (m *Manager) Addrs(name string) []net.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []net.Addr
	if l := m.active[name]; l != nil {
		for _, s := range l.sockets {
			out = append(out, s.Addr())
		}
	}
	return out
}

// Failures tells why listeners have no sockets, by their names.
func (m *Manager) Failures() map[string]Failure {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]Failure{}
	for name, l := range m.active {
		if l.failed != nil {
			out[name] = *l.failed
		}
	}
	return out
}

// Drain is how a Manager's end goes.
type Drain struct {
	// Grace is how long new connections are still accepted: whoever has not heard yet that this proxy goes must not be
	// refused. Connections are asked to end from its begin on.
	Grace time.Duration
	// Limit is for exchanges that are under way when Grace is over; connections without one end then. 0 is none at all,
	// below 0 there is no limit.
	Limit time.Duration
}

// Drain ends every connection in the given manner and returns when all have ended.
func (m *Manager) Drain(d Drain) {
	m.draining.Store(true)
	m.each(func(s *slot) { s.drain(false) })
	wait := time.NewTimer(d.Grace)
	<-wait.C
	m.mu.Lock()
	m.closed = true
	for _, l := range m.active {
		l.keep(nil)
	}
	for _, p := range m.changes {
		p.discard()
	}
	clear(m.changes)
	m.mu.Unlock()
	m.ending.Store(true)
	m.each(func(s *slot) { s.drain(true) })
	undecided := time.AfterFunc(time.Second, m.decide) // the first bytes of a new connection are most likely on their way
	m.quiet(d.Limit)
	undecided.Stop()
	m.cancel()
	m.each((*slot).cut)
	m.wg.Wait()
}

// each calls f for every slot, without the lock.
func (m *Manager) each(f func(*slot)) {
	m.mu.Lock()
	slots := make([]*slot, 0, len(m.slots))
	for s := range m.slots {
		slots = append(slots, s)
	}
	m.mu.Unlock()
	for _, s := range slots {
		f(s)
	}
}

// quiet waits until no connection is left, at most for limit.
func (m *Manager) quiet(limit time.Duration) {
	var over <-chan time.Time
	if limit >= 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	check := time.NewTicker(10 * time.Millisecond)
	defer check.Stop()
	for m.Active.Load() > 0 {
		select {
		case <-over:
			return
		case <-check.C:
		}
	}
}
