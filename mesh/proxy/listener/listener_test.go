package listener

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// silent is a listening socket to which nobody connects.
type silent struct{ closed chan struct{} }

func (s *silent) Accept() (net.Conn, error) {
	<-s.closed
	return nil, net.ErrClosed
}

func (s *silent) Close() error {
	close(s.closed)
	return nil
}

func (s *silent) Addr() net.Addr { return &net.TCPAddr{} }

// TestBindLater: an address that somebody else has is tried again until it is free, ever less often, and no longer than the
// listener is wanted.
func TestBindLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		var tries atomic.Int64
		m := New(Options{Log: slog.New(slog.DiscardHandler), Listen: func(context.Context, netip.AddrPort) (net.Listener, error) {
			tries.Add(1)
			if busy.Load() {
				return nil, errors.New("address already in use")
			}
			return &silent{make(chan struct{})}, nil
		}})
		defer m.Drain(Drain{})
		chain := &conf.FilterChain{Name: "c", TCP: &conf.TCP{}}
		with := &conf.Config{Listeners: map[string]*conf.Listener{"a": {
			Name: "a", Bind: true, Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}, Chains: []*conf.FilterChain{chain}}}}
		after := func(d time.Duration) int64 {
			time.Sleep(d)
			synctest.Wait()
			return tries.Swap(0)
		}
		busy.Store(true)
		if refused := m.Update(with); refused != nil {
			t.Errorf("refused: %v", refused)
		}
		if f, ok := m.Failures()["a"]; !ok || f.Err == nil || !strings.Contains(f.Err.Error(), "already in use") || !f.At.Equal(time.Now()) || len(m.Addrs("a")) != 0 {
			t.Errorf("failures %v, addresses %v", m.Failures(), m.Addrs("a"))
		}
		if n := after(3 * time.Second); n < 3 || n > 6 {
			t.Errorf("%d attempts in 3 s", n)
		}
		// Other pushes are no reason to try in more than one place.
		for range 3 {
			_ = m.Update(with)
		}
		if n := after(time.Minute); n < 9 || n > 15 {
			t.Errorf("%d attempts in a minute", n)
		}
		busy.Store(false)
		if n := after(time.Minute); n != 1 || len(m.Failures()) != 0 || len(m.Addrs("a")) != 1 {
			t.Errorf("%d attempts, failures %v, addresses %v; want one socket", n, m.Failures(), m.Addrs("a"))
		}
		if s := m.active["a"].conf.Load().slots[chain]; s.Draining() {
			t.Error("the chain of the listener is on its way out")
		}
		busy.Store(true)
		_ = m.Update(&conf.Config{})
		_ = m.Update(with)
		unbound := *with.Listeners["a"]
		unbound.Bind = false
		_ = m.Update(&conf.Config{Listeners: map[string]*conf.Listener{"a": &unbound}})
		tries.Store(0)
		if n := after(time.Minute); n != 0 || len(m.Failures()) != 0 {
			t.Errorf("%d attempts for a listener without sockets, failures %v", n, m.Failures())
		}
		for _, drop := range []bool{false, true} {
			busy.Store(drop)
			_ = m.Update(&conf.Config{})
			if drop {
				_ = m.Update(with)
				_ = m.Update(&conf.Config{})
			}
			tries.Store(0)
			if n := after(time.Minute); n != 0 || len(m.Failures()) != 0 {
				t.Errorf("%d attempts for a listener that is gone, failures %v", n, m.Failures())
			}
		}
	})
}
