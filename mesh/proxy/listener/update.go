package listener

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// socket is a listening socket; what it accepts is its owner's.
type socket struct {
	net.Listener
	addr  netip.AddrPort // that was asked for
	owner atomic.Pointer[live]
}

// change is the next version of a listener, with all that may fail behind it.
type change struct {
	table  *table
	opened []*socket // nobody accepts from them yet
	heir   []*socket // of listeners that go
	failed *Failure  // why there are no sockets
}

// discard closes what was opened in vain.
func (c *change) discard() {
	for _, s := range c.opened {
		_ = s.Close()
	}
}

// robs reports whether a listener that was about to go, and is in cfg, would lose a socket.
func (c *change) robs(cfg *conf.Config) bool {
	return slices.ContainsFunc(c.heir, func(s *socket) bool { return cfg.Listeners[s.owner.Load().conf.Load().Name] != nil })
}

// Prepare does all that can fail of an Update with the same cfg, and changes nothing. refused are the listeners that Update would
// leave as they are, or not make: their TLS contexts cannot be loaded, or they have sockets and cannot have those that they want
// instead. A listener that has no socket yet is not refused for the want of one: Update makes it, and opens its sockets later.
// What was prepared for another cfg is dropped.
func (m *Manager) Prepare(cfg *conf.Config) (refused map[string]error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.prepare(cfg)
}

func (m *Manager) prepare(cfg *conf.Config) (refused map[string]error) {
	if m.closed {
		return nil
	}
	for name, p := range m.changes {
		if p.table.Listener != cfg.Listeners[name] || p.robs(cfg) {
			p.discard()
			delete(m.changes, name)
		}
	}
	for name, c := range cfg.Listeners {
		l := m.active[name]
		if m.changes[name] != nil || l != nil && l.conf.Load().Listener == c {
			continue
		}
		p, err := m.change(l, c, cfg)
		if err != nil {
			if refused == nil {
				refused = map[string]error{}
			}
			refused[name] = fmt.Errorf("listener %q: %w", name, err)
			continue
		}
		m.changes[name] = p
	}
	return refused
}

// change prepares c in the place of l, which is nil for a new listener.
func (m *Manager) change(l *live, c *conf.Listener, cfg *conf.Config) (*change, error) {
	p := &change{}
	var old *table
	var have []*socket
	if l != nil {
		old, have = l.conf.Load(), l.sockets
		if old.Bind && !slices.Equal(old.Addrs, wanted(c)) {
			old = nil // as in Envoy it is another listener then, and the connections of the old one drain
		}
	}
	var err error
	if p.table, err = m.table(old, c); err != nil {
		return nil, err
	}
	p.heir = m.left(cfg, c, have)
	p.opened, err = m.open(wanted(c), slices.Concat(have, p.heir))
	if err == nil {
		return p, nil
	}
	if len(have) > 0 {
		return nil, err
	}
	p.heir, p.failed = nil, &Failure{err, time.Now()}
	return p, nil
}

// wanted are the addresses that c should have sockets at.
func wanted(c *conf.Listener) []netip.AddrPort {
	if !c.Bind {
		return nil
	}
	return c.Addrs
}

func has(list []*socket, a netip.AddrPort) bool {
	return slices.ContainsFunc(list, func(s *socket) bool { return s.addr == a })
}

// left are the sockets that c wants, does not have, and listeners have that are not in cfg.
func (m *Manager) left(cfg *conf.Config, c *conf.Listener, have []*socket) (out []*socket) {
	for name, l := range m.active {
		if cfg.Listeners[name] != nil {
			continue
		}
		for _, s := range l.sockets {
			if slices.Contains(wanted(c), s.addr) && !has(have, s.addr) && !m.claimed(s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// claimed reports whether a change gets s already.
func (m *Manager) claimed(s *socket) bool {
	for _, p := range m.changes {
		if slices.Contains(p.heir, s) {
			return true
		}
	}
	return false
}

// open opens the sockets that are missing in have, or none.
func (m *Manager) open(addrs []netip.AddrPort, have []*socket) (out []*socket, err error) {
	for _, a := range addrs {
		if has(have, a) {
			continue
		}
		ln, err := m.o.Listen(m.ctx, a)
		if err != nil {
			(&change{opened: out}).discard()
			return nil, err
		}
		out = append(out, &socket{Listener: ln, addr: a})
	}
	return out, nil
}

// Update makes the listeners those of cfg, but for those that Prepare refuses, which stay what they are. Sockets that cannot be
// opened for a listener that has none are tried again for as long as it is wanted; see Failures.
func (m *Manager) Update(cfg *conf.Config) (refused map[string]error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	refused = m.prepare(cfg)
	for name, p := range m.changes {
		m.take(name, p)
	}
	clear(m.changes)
	for name, l := range m.active {
		if cfg.Listeners[name] == nil {
			delete(m.active, name)
			l.keep(nil)
			m.retire(l.conf.Load(), nil)
		}
	}
	byAddr := make(map[netip.AddrPort]*live, len(m.active))
	for _, l := range m.active {
		for _, a := range l.conf.Load().Addrs {
			byAddr[a] = l
		}
	}
	m.byAddr.Store(&byAddr)
	return refused
}

// take makes a change current. The lock is held.
func (m *Manager) take(name string, p *change) {
	l := m.active[name]
	if l == nil {
		l = &live{}
		m.active[name] = l
	}
	for fc, s := range p.table.slots {
		s.cur.Store(fc)
		m.slots[s] = struct{}{}
	}
	old := l.conf.Swap(p.table)
	m.retire(old, p.table)
	for _, s := range p.heir {
		was := s.owner.Swap(l)
		was.sockets = slices.DeleteFunc(was.sockets, func(o *socket) bool { return o == s })
	}
	l.sockets = append(l.sockets, p.heir...)
	m.listen(l, p.opened)
	l.keep(wanted(p.table.Listener))
	l.failed = nil
	if p.failed == nil || l.whole() {
		return
	}
	l.failed = p.failed
	m.o.Log.Error("listener not open", "listener", name, "err", p.failed.Err)
	if !l.retrying {
		l.retrying = true
		m.wg.Go(func() { m.retry(name, l) })
	}
}

// listen accepts from new sockets. The lock is held.
func (m *Manager) listen(l *live, opened []*socket) {
	l.sockets = append(l.sockets, opened...)
	for _, s := range opened {
		s.owner.Store(l)
		m.wg.Go(func() { m.accept(s) })
	}
}

// keep closes the sockets at other addresses.
func (l *live) keep(addrs []netip.AddrPort) {
	l.sockets = slices.DeleteFunc(l.sockets, func(s *socket) bool {
		if slices.Contains(addrs, s.addr) {
			return false
		}
		_ = s.Close()
		return true
	})
}

// whole reports whether the listener has every socket that it wants.
func (l *live) whole() bool {
	for _, a := range wanted(l.conf.Load().Listener) {
		if !has(l.sockets, a) {
			return false
		}
	}
	return true
}

// retry opens the sockets of l once whoever has its address lets go: often that is an older process on its way out.
func (m *Manager) retry(name string, l *live) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-m.ctx.Done():
			t.Stop()
			return
		}
		if m.reopen(name, l) {
			return
		}
	}
}

// reopen is one attempt; it reports that no other is needed.
func (m *Manager) reopen(name string, l *live) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.active[name] != l || l.whole() {
		l.retrying = false
		return true
	}
	opened, err := m.open(wanted(l.conf.Load().Listener), l.sockets)
	if err != nil {
		l.failed = &Failure{err, time.Now()}
		m.o.Log.Debug("listener still not open", "listener", name, "err", err)
		return false
	}
	m.listen(l, opened)
	l.failed, l.retrying = nil, false
	m.o.Log.Info("listener open after all", "listener", name)
	return true
}
