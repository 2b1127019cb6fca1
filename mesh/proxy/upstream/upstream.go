// Package upstream is the live side of clusters: endpoints with their connections and counters, which outlive the
// configs that name them.
//
// A View pairs one Config with the live state behind it. State is kept by cluster, address and TLS identity: an endpoint
// that is in the old and the new Config keeps its connections, one that moved between clusters does not share them.
package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/mesh/proxy/breaker"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/outlier"
	"github.com/meshproof/meshproof/mesh/proxy/pool"
)

// TLSBuilder makes client TLS configurations. An error need not last: a file may be mounted later.
type TLSBuilder interface {
	Client(c *conf.UpstreamTLS, alpn []string) (*tls.Config, error)
}

// Dialer makes plain TCP connections; source is invalid when the kernel chooses it.
type Dialer func(ctx context.Context, source netip.Addr, k conf.Keepalive, addr string) (net.Conn, error)

// Set owns the live state of every cluster.
type Set struct {
	// Log hears of ejections and of TLS contexts that cannot be made; nil is silence. It is set before the first Apply.
	Log *slog.Logger

	tls    TLSBuilder
	dial   Dialer
	view   atomic.Pointer[View]
	events outlier.Events
	wake   chan struct{} // says that the next sweep may have moved

	mu        sync.Mutex
	hosts     map[hostKey]*Host
	stats     map[string]*Stats
	limits    map[string]*breaker.Breakers
	detectors map[string]*outlier.Detector
}

type hostKey struct{ cluster, addr, tls string }

// View is one Config with its live clusters. It is immutable.
type View struct {
	Config   *conf.Config
	clusters map[string]*Cluster
}

// Cluster returns the live cluster of that name, or nil.
func (v *View) Cluster(name string) *Cluster { return v.clusters[name] }

// Clusters is every live cluster by name. Do not change the map.
func (v *View) Clusters() map[string]*Cluster { return v.clusters }

// Cluster is a live cluster: one version of its endpoints with the picker over them.
type Cluster struct {
	Conf     *conf.Cluster
	Stats    *Stats
	Breakers *breaker.Breakers // live as long as Stats
	Members  []Member
	// Outlier detects the cluster's outliers; nil where it has no outlier detection.
	Outlier *outlier.Detector

	entries []balance.Entry // of Members; Healthy is what the control plane says
	options balance.Options
	picker  atomic.Pointer[balance.Set]
	set     *Set
	mu      sync.Mutex // one rebuild of picker at a time
}

// Member is an endpoint of a cluster. The Host is shared between versions, the Endpoint belongs to this one.
type Member struct {
	*Host
	Endpoint *conf.Endpoint
}

// Host is one upstream address with its pool.
type Host struct {
	Addr   string // host:port
	Active atomic.Int64
	// Counters of this endpoint.
	Requests, Errors, Success, Timeouts atomic.Int64
	HTTP                                *pool.HTTP
	HTTP2                               *pool.HTTP2
	TLS                                 *conf.UpstreamTLS      // nil is plaintext
	Mesh                                bool                   // mutual TLS with another proxy of the mesh
	PeerURI                             atomic.Pointer[string] // SPIFFE id that the endpoint last showed; nil unknown
	Outlier                             outlier.Host
	found                               bool  // by an original destination, no member of its cluster
	uses                                int64 // of a found host, as of the last look
	dialTCP                             pool.Dial
	cx                                  pool.Stats
}

// Connections returns the host's connection counters.
func (h *Host) Connections() *pool.Stats { return &h.cx }

// Open returns an exchange with the host: on an idle connection, beside others on one that HTTP/2 shares, or on a new one.
// fresh asks for an HTTP/1.1 connection that carried nothing yet.
func (h *Host) Open(ctx context.Context, fresh, http2 bool) (pool.Stream, error) {
	if http2 {
		s, err := h.HTTP2.Get(ctx)
		if err != nil {
			return nil, err // not a nil in an interface
		}
		return s, nil
	}
	c, err := h.HTTP.Get(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (h *Host) close() {
	h.HTTP.Close()
	h.HTTP2.Close()
}

// DialTCP makes a connection for bytes, not HTTP: it offers the ALPN list of the TLS context as it is.
func (h *Host) DialTCP(ctx context.Context, limit time.Duration) (net.Conn, error) {
	c, err := pool.Connect(ctx, h.dialTCP, limit)
	if err != nil {
		h.cx.Failed.Add(1)
		return nil, err
	}
	h.cx.Opened.Add(1)
	return c, nil
}

// Stats are a cluster's counters. They live as long as configs name it one after the other, or it is in use.
type Stats struct {
	Requests, Timeouts, Retries, RetrySuccess, RetryExhausted, Resets atomic.Int64
	ConnectFail, NoHealthy, ActiveRequests, CxTotal, PerTryTimeouts   atomic.Int64
	PendingOverflow                                                   atomic.Int64    // requests refused by a breaker
	Class                                                             [6]atomic.Int64 // 1xx to 5xx by index
	SentBytes, ReceivedBytes                                          atomic.Int64
}

// NewSet returns an empty Set whose first View has no config. A nil dial is the kernel's.
func NewSet(tls TLSBuilder, dial Dialer) *Set {
	if dial == nil {
		dial = dialTCP
	}
	s := &Set{tls: tls, dial: dial, wake: make(chan struct{}, 1), hosts: map[hostKey]*Host{}, stats: map[string]*Stats{},
		limits: map[string]*breaker.Breakers{}, detectors: map[string]*outlier.Detector{}}
	s.view.Store(&View{Config: &conf.Config{}})
	return s
}

// View returns the current View.
func (s *Set) View() *View { return s.view.Load() }

// Apply makes cfg current: from its return on, new requests see it and nothing but it. State that no cluster of cfg
// uses any more is dropped; exchanges under way keep theirs until they end. A cluster whose TLS context cannot be made is there
// as well: its connections fail with the reason until it can.
func (s *Set) Apply(cfg *conf.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load()
	next := &View{Config: cfg, clusters: make(map[string]*Cluster, len(cfg.Clusters))}
	used := make(map[hostKey]bool, len(s.hosts))
	same := map[string]bool{} // clusters that did not change: also keep hosts that are no members
	var made []*Cluster
	for name, c := range cfg.Clusters {
		if live := old.clusters[name]; live != nil && live.Conf == c {
			next.clusters[name] = live
			same[name] = true
			for i := range live.Members {
				m := &live.Members[i]
				used[hostKey{name, m.Addr, tlsID(m.TLS)}] = true
			}
			continue
		}
		live := s.build(c, used)
		next.clusters[name] = live
		made = append(made, live)
	}
	for _, live := range made {
		s.watch(live)
	}
	s.view.Store(next)
	s.dropDetectors(next)
	s.dropCounters(next)
	for k, h := range s.hosts {
		if !used[k] && !(same[k.cluster] && h.found) {
			delete(s.hosts, k)
			h.close()
		}
	}
}

// dropCounters forgets the counters and breakers of clusters that are gone. What is under way still gives back to its own,
// which must be found if the cluster returns: those wait for a later Apply.
func (s *Set) dropCounters(v *View) {
	for name, b := range s.limits {
		if v.clusters[name] != nil || s.stats[name].ActiveRequests.Load() > 0 || b.Used() {
			continue
		}
		delete(s.limits, name)
		delete(s.stats, name)
	}
}

func (s *Set) build(c *conf.Cluster, used map[hostKey]bool) *Cluster {
	st := s.stats[c.Name]
	if st == nil {
		st = &Stats{}
		s.stats[c.Name] = st
	}
	live := &Cluster{Conf: c, Stats: st, Breakers: s.breakers(c), set: s}
	if c.Endpoints == nil {
		return live
	}
	var weights []uint32
	var failed error
	for li := range c.Endpoints.Localities {
		l := &c.Endpoints.Localities[li]
		weights = append(weights, l.Weight)
		for ei := range l.Endpoints {
			ep := &l.Endpoints[ei]
			h, err := s.host(c, live.Breakers, ep, used)
			failed = cmp.Or(failed, err)
			live.Members = append(live.Members, Member{h, ep})
			live.entries = append(live.entries, balance.Entry{Weight: ep.Weight, Priority: l.Priority, Locality: li, Healthy: live.Members[len(live.Members)-1].servable(), Active: &h.Active, Key: hashKey(c, ep, h)})
		}
	}
	if failed != nil && s.Log != nil {
		s.Log.Warn("no TLS context: connections fail until there is one", "cluster", c.Name, "err", failed)
	}
	live.options = options(c)
	if c.LocalityLB {
		live.options.LocalityWeights = weights
	}
	return live
}

func options(c *conf.Cluster) balance.Options {
	out := balance.Options{Panic: c.PanicThreshold}
	switch c.LB {
	case conf.LeastRequest:
		out.Build = balance.LeastRequest(c.ChoiceCount)
	case conf.RingHash:
		out.Hash = balance.Ring(c.Hash.MinRing, c.Hash.MaxRing)
	case conf.Maglev:
		out.Hash = balance.Maglev(c.Hash.MaglevSize)
	case conf.Random:
		out.Build = balance.Random
	default:
		out.Build = balance.RoundRobin
	}
	return out
}

// hashKey names an endpoint in tables of hashes: by its metadata, its hostname where the cluster says so, else its address.
func hashKey(c *conf.Cluster, ep *conf.Endpoint, h *Host) string {
	switch {
	case ep.HashKey != "":
		return ep.HashKey
	case c.Hash.UseHostname && ep.Hostname != "":
		return ep.Hostname
	case c.Hash.UseHostname && ep.Host != "":
		return ep.Host
	}
	return h.Addr
}

func tlsID(t *conf.UpstreamTLS) string {
	if t == nil {
		return ""
	}
	return t.ID
}

// transport is the first TLS match whose every pair the endpoint's metadata holds.
func transport(c *conf.Cluster, ep *conf.Endpoint) *conf.UpstreamTLS {
next:
	for i := range c.TLSMatches {
		for k, v := range c.TLSMatches[i].Match {
			if got, ok := ep.TLSMode[k]; !ok || got != v {
				continue next
			}
		}
		return c.TLSMatches[i].TLS
	}
	return c.TLS
}

// breakers are the cluster's, with the bounds of its config.
func (s *Set) breakers(c *conf.Cluster) *breaker.Breakers {
	b := s.limits[c.Name]
	if b == nil {
		b = &breaker.Breakers{}
		s.limits[c.Name] = b
	}
	b.Connections.Set(c.Breakers.Connections)
	b.Pending.Set(c.Breakers.Pending)
	b.Requests.Set(c.Breakers.Requests)
	b.Retries.Set(c.Breakers.Retries)
	return b
}

// host finds or makes the host of an endpoint. An error is newHost's.
func (s *Set) host(c *conf.Cluster, b *breaker.Breakers, ep *conf.Endpoint, used map[hostKey]bool) (*Host, error) {
	addr := ep.Addr.String()
	if ep.Host != "" {
		addr = net.JoinHostPort(ep.Host, fmt.Sprint(ep.Port))
	}
	t := transport(c, ep)
	key := hostKey{c.Name, addr, tlsID(t)}
	used[key] = true
	if h := s.hosts[key]; h != nil {
		h.HTTP.SetLimits(poolLimits(c, b))
		h.HTTP2.SetLimits(poolLimits(c, b))
		return h, nil
	}
	h, err := s.newHost(c, b, addr, t)
	s.hosts[key] = h
	return h, err
}

func poolLimits(c *conf.Cluster, b *breaker.Breakers) pool.Limits {
	return pool.Limits{ConnectTimeout: c.ConnectTimeout, IdleTimeout: c.IdleTimeout, MaxRequests: c.MaxRequests, MaxStreams: c.HTTP2.MaxStreams, Window: c.HTTP2.Window, ConnWindow: c.HTTP2.ConnWindow,
		KeepAlive: c.HTTP2.KeepAlive, KeepAliveTimeout: c.HTTP2.KeepAliveTimeout, Connections: &b.Connections, Pending: &b.Pending}
}

func dialTCP(ctx context.Context, source netip.Addr, k conf.Keepalive, addr string) (net.Conn, error) {
	d := &net.Dialer{KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{Enable: k.On, Idle: k.Idle, Interval: k.Interval, Count: k.Probes}}
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return d.DialContext(ctx, "tcp", addr)
}

// newHost makes a host. An error says why its TLS context cannot be made now; the host is there all the same.
func (s *Set) newHost(c *conf.Cluster, b *breaker.Breakers, addr string, t *conf.UpstreamTLS) (*Host, error) {
	plain := func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, c.BindSource, c.Keepalive, addr) }
	h := &Host{Addr: addr, TLS: t, dialTCP: plain, Outlier: outlier.Host{Addr: addr}}
	dialHTTP, dialHTTP2 := pool.Dial(plain), pool.Dial(plain)
	var err error
	if t != nil {
		h.Mesh = slices.Contains(t.ALPN, "istio")
		dialHTTP, err = s.dialTLS(h, plain, t, httpALPN(t.ALPN))
		dialHTTP2, _ = s.dialTLS(h, plain, t, http2ALPN(t.ALPN))
		h.dialTCP, _ = s.dialTLS(h, plain, t, t.ALPN)
	}
	h.HTTP = pool.NewHTTP(dialHTTP, poolLimits(c, b), &h.cx)
	h.HTTP2 = pool.NewHTTP2(dialHTTP2, poolLimits(c, b), &h.cx)
	return h, err
}

// httpALPN is what Istio's alpn filter makes of a mesh context: the peer learns that HTTP follows.
func httpALPN(list []string) []string {
	if slices.Contains(list, "istio") {
		return []string{"istio-http/1.1", "istio", "http/1.1"}
	}
	var out []string
	for _, p := range list {
		if p != "h2" {
			out = append(out, p)
		}
	}
	return out
}

// http2ALPN is the same for HTTP/2.
func http2ALPN(list []string) []string {
	if slices.Contains(list, "istio") {
		return []string{"istio-h2", "istio", "h2"}
	}
	return []string{"h2"}
}

// dialTLS makes connections with a TLS context. While that cannot be made, each connection tries again, and fails with the error.
func (s *Set) dialTLS(h *Host, plain pool.Dial, t *conf.UpstreamTLS, alpn []string) (pool.Dial, error) {
	var made atomic.Pointer[tls.Config]
	config := func() (*tls.Config, error) {
		if cfg := made.Load(); cfg != nil {
			return cfg, nil
		}
		cfg, err := s.tls.Client(t, alpn)
		if err == nil {
			made.Store(cfg)
		}
		return cfg, err
	}
	_, failed := config()
	return func(ctx context.Context) (net.Conn, error) {
		cfg, err := config()
		if err != nil {
			return nil, err
		}
		raw, err := plain(ctx)
		if err != nil {
			return nil, err
		}
		c := tls.Client(raw, cfg)
		if err := c.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, fmt.Errorf("tls to %s: %w", raw.RemoteAddr(), err)
		}
		if peer := c.ConnectionState().PeerCertificates; len(peer) > 0 && len(peer[0].URIs) > 0 {
			uri := peer[0].URIs[0].String()
			if old := h.PeerURI.Load(); old == nil || *old != uri {
				h.PeerURI.Store(&uri)
			}
		}
		return c, nil
	}, failed
}

// Hashes reports whether the cluster picks by a hash of the request.
func (c *Cluster) Hashes() bool { return c.Conf.LB == conf.RingHash || c.Conf.LB == conf.Maglev }

// Pick returns an endpoint, or false when there is none to use. original is where the downstream connection was bound for.
func (c *Cluster) Pick(q balance.Query, original netip.AddrPort) (Member, bool) {
	if c.Conf.Discovery == conf.OriginalDstDiscovery {
		return c.original(original)
	}
	i := c.picker.Load().Pick(q)
	if i < 0 {
		c.Stats.NoHealthy.Add(1)
		return Member{}, false
	}
	return c.Members[i], true
}

// original finds or makes the host of an original destination; such hosts go when the cluster's config goes or changes, or
// when they are idle.
func (c *Cluster) original(addr netip.AddrPort) (Member, bool) {
	if !addr.IsValid() {
		c.Stats.NoHealthy.Add(1)
		return Member{}, false
	}
	s := c.set
	key := hostKey{c.Conf.Name, addr.String(), tlsID(c.Conf.TLS)}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hosts[key]
	if h == nil {
		h, _ = s.newHost(c.Conf, c.Breakers, key.addr, c.Conf.TLS) // without a TLS context its connections say why
		h.found = true
		s.hosts[key] = h
	}
	return Member{h, &conf.Endpoint{Addr: addr, Weight: 1}}, true
}
