package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// network has the sockets of a Manager in memory.
type network struct {
	mu   sync.Mutex
	open map[netip.AddrPort]*socketInMemory
	busy map[netip.AddrPort]bool // somebody else has it
}

type socketInMemory struct {
	n     *network
	addr  netip.AddrPort
	conns chan net.Conn
	gone  chan struct{}
}

func (n *network) listen(_ context.Context, a netip.AddrPort) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[a] || n.open[a] != nil {
		return nil, errors.New("address already in use")
	}
	s := &socketInMemory{n, a, make(chan net.Conn), make(chan struct{})}
	n.open[a] = s
	return s, nil
}

func (s *socketInMemory) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.gone:
		return nil, net.ErrClosed
	}
}

func (s *socketInMemory) Close() error {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	delete(s.n.open, s.addr)
	close(s.gone)
	return nil
}

func (s *socketInMemory) Addr() net.Addr { return net.TCPAddrFromAddrPort(s.addr) }

// addrs are those with a socket.
func (n *network) addrs() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for a := range n.open {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// connect makes a connection and returns what the peer reads of it: the name of the chain that has it, until it ends.
func (n *network) connect(t *testing.T, a netip.AddrPort) net.Conn {
	t.Helper()
	n.mu.Lock()
	s := n.open[a]
	n.mu.Unlock()
	if s == nil {
		t.Fatalf("nobody listens at %v", a)
	}
	c, peer := net.Pipe()
	s.conns <- peer
	return c
}

// wantsName reads the name of the chain that took the connection.
func wantsName(t *testing.T, c net.Conn, name string) {
	t.Helper()
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || string(b[:n]) != name {
		t.Errorf("the connection is of %q, %v; want %q", b[:n], err, name)
	}
}

// badTLS refuses contexts with that id.
const badTLS = "bad"

type contexts struct{}

func (contexts) Server(c *conf.DownstreamTLS) (*tls.Config, error) {
	if c.ID == badTLS {
		return nil, errors.New("no such file")
	}
	return &tls.Config{}, nil
}

func newNetwork(t *testing.T) (*network, *Manager) {
	n := &network{open: map[netip.AddrPort]*socketInMemory{}, busy: map[netip.AddrPort]bool{}}
	m := New(Options{Log: slog.New(slog.DiscardHandler), Listen: n.listen, TLS: contexts{}, Drain: 10 * time.Second,
		TCP: func(_ context.Context, c *filter.Conn) {
			_, _ = c.Write([]byte(c.Chain.Current().Name))
			_, _ = c.Read(make([]byte, 1)) // until it is cut
		}})
	t.Cleanup(func() { m.Drain(Drain{}) })
	return n, m
}

var (
	at80 = netip.MustParseAddrPort("10.0.0.1:80")
	at81 = netip.MustParseAddrPort("10.0.0.1:81")
	at82 = netip.MustParseAddrPort("10.0.0.1:82")
)

// bound is a listener with one chain.
func bound(name, chain string, addrs ...netip.AddrPort) *conf.Listener {
	return &conf.Listener{Name: name, Bind: true, Addrs: addrs, Chains: []*conf.FilterChain{{Name: chain, TCP: &conf.TCP{}}}}
}

func config(ls ...*conf.Listener) *conf.Config {
	cfg := &conf.Config{Listeners: map[string]*conf.Listener{}}
	for _, l := range ls {
		cfg.Listeners[l.Name] = l
	}
	return cfg
}

// TestMove: a listener whose address changes under its name listens at the new one, and its connections drain.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, m := newNetwork(t)
		m.Update(config(bound("a", "one", at80, at81)))
		if got := n.addrs(); got != at80.String()+" "+at81.String() {
			t.Fatalf("sockets at %s", got)
		}
		c := n.connect(t, at80)
		wantsName(t, c, "one")
		if refused := m.Update(config(bound("a", "one", at81, at82))); refused != nil {
			t.Fatalf("refused: %v", refused)
		}
		if got := n.addrs(); got != at81.String()+" "+at82.String() {
			t.Errorf("sockets at %s, want the new ones alone", got)
		}
		moved := time.Now()
		for _, a := range []netip.AddrPort{at81, at82} {
			other := n.connect(t, a)
			wantsName(t, other, "one")
			_ = other.Close()
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(moved) != 10*time.Second {
			t.Errorf("the old connection ended after %v, want the drain time", time.Since(moved))
		}
		// One that only takes over connections has none.
		m.Update(config(&conf.Listener{Name: "a", Addrs: []netip.AddrPort{at82}, Chains: bound("a", "one").Chains}))
		if got := n.addrs(); got != "" {
			t.Errorf("sockets at %s of a listener that is not bound", got)
		}
	})
}

// TestMoveToABusyAddress: where the new address cannot be had, all of the old stays, with its connections.
func TestMoveToABusyAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, m := newNetwork(t)
		m.Update(config(bound("a", "one", at80)))
		c := n.connect(t, at80)
		wantsName(t, c, "one")
		n.busy[at82] = true
		next := config(bound("a", "two", at81, at82), bound("b", "three", at81))
		refused := m.Prepare(next)
		if len(refused) != 1 || refused["a"] == nil || !strings.Contains(refused["a"].Error(), "in use") {
			t.Errorf("refused: %v", refused)
		}
		m.Update(next)
		if got := n.addrs(); got != at80.String()+" "+at81.String() {
			t.Errorf("sockets at %s: want that of the old one and of the other listener", got)
		}
		other := n.connect(t, at80)
		wantsName(t, other, "one")
		_ = other.Close()
		if len(m.Failures()) != 0 {
			t.Errorf("failures %v: the old one is well", m.Failures())
		}
		time.Sleep(time.Minute)
		if m.forAddr(at80) == nil || m.forAddr(at82) != nil {
			t.Error("the addresses are not those of the old one")
		}
		go func() { _, _ = c.Write([]byte("x")) }()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the handler did not end at the byte")
		}
	})
}

// TestHandOver: the address of a listener that goes is had by another at once, without a moment when nobody listens.
func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, m := newNetwork(t)
		m.Update(config(bound("a", "one", at80), bound("b", "two", at81)))
		was := n.open[at81]
		if refused := m.Update(config(bound("a", "one", at81))); refused != nil {
			t.Fatalf("refused: %v", refused)
		}
		if got := n.addrs(); got != at81.String() || n.open[at81] != was {
			t.Errorf("sockets at %s, the same %v", got, n.open[at81] == was)
		}
		c := n.connect(t, at81)
		wantsName(t, c, "one")
		_ = c.Close()
	})
}

// TestPreparedInVain: what is prepared and not made current leaves nothing.
func TestPreparedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, m := newNetwork(t)
		m.Update(config(bound("a", "one", at80)))
		m.Prepare(config(bound("a", "one", at81), bound("b", "two", at82)))
		m.Update(config(bound("a", "one", at80)))
		if got := n.addrs(); got != at80.String() {
			t.Errorf("sockets at %s", got)
		}
		m.Prepare(config(bound("a", "one", at81)))
		m.Drain(Drain{})
		if got := n.addrs(); got != "" {
			t.Errorf("sockets at %s after the drain", got)
		}
	})
}

// TestBadTLS: a TLS context that cannot be loaded leaves all of the old listener, and no trace of a new one.
func TestBadTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, m := newNetwork(t)
		m.Update(config(bound("a", "one", at80)))
		bad := bound("a", "two", at81)
		bad.Chains[0].TLS = &conf.DownstreamTLS{TLSCommon: conf.TLSCommon{ID: badTLS}}
		fresh := bound("b", "three", at82)
		fresh.Chains[0].TLS = bad.Chains[0].TLS
		refused := m.Update(config(bad, fresh))
		for _, name := range []string{"a", "b"} {
			if err := refused[name]; err == nil || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("%s is refused for %v", name, err)
			}
		}
		if got := n.addrs(); got != at80.String() {
			t.Errorf("sockets at %s", got)
		}
		if l := m.forAddr(at80); l == nil || l.conf.Load().Chains[0].Name != "one" || m.forAddr(at81) != nil || m.forAddr(at82) != nil {
			t.Error("the addresses are not those of the old one")
		}
		c := n.connect(t, at80)
		wantsName(t, c, "one")
		time.Sleep(time.Minute)
		_ = c.Close()
		bad.Chains[0].TLS = nil
		if refused := m.Update(config(bound("a", "two", at80))); refused != nil {
			t.Errorf("refused: %v", refused)
		}
		c = n.connect(t, at80)
		wantsName(t, c, "two")
		_ = c.Close()
	})
}
