package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/outlier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipes dials in-memory connections whose other end is dropped, and remembers where to.
type pipes struct {
	mu    sync.Mutex
	addrs []string
	err   error
}

func (d *pipes) dial(_ context.Context, _ netip.Addr, _ conf.Keepalive, addr string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs = append(d.addrs, addr)
	if d.err != nil {
		return nil, d.err
	}
	a, _ := net.Pipe()
	return a, nil
}

// contexts makes client configurations that only carry their name.
type contexts struct{ err error }

func (c contexts) Client(t *conf.UpstreamTLS, alpn []string) (*tls.Config, error) {
	return &tls.Config{ServerName: t.SNI, NextProtos: alpn}, c.err //nolint:gosec // never used for a handshake
}

func cluster(name string, addrs ...string) *conf.Cluster {
	l := conf.Locality{Weight: 1}
	for _, a := range addrs {
		l.Endpoints = append(l.Endpoints, conf.Endpoint{Addr: netip.MustParseAddrPort(a), Weight: 1})
	}
	return &conf.Cluster{Name: name, Discovery: conf.EDS, LB: conf.RoundRobin, Breakers: conf.DefaultBreakers, Endpoints: &conf.Endpoints{Name: name, Localities: []conf.Locality{l}}}
}

func config(list ...*conf.Cluster) *conf.Config {
	out := &conf.Config{Clusters: map[string]*conf.Cluster{}}
	for _, c := range list {
		out.Clusters[c.Name] = c
	}
	return out
}

func apply(t *testing.T, s *Set, list ...*conf.Cluster) {
	t.Helper()
	s.Apply(config(list...))
}

// picked counts picks by address.
func picked(t *testing.T, s *Set, name string, n int) map[string]int {
	t.Helper()
	out := map[string]int{}
	for range n {
		m, ok := s.View().Cluster(name).Pick(balance.Query{}, netip.AddrPort{})
		if ok {
			out[m.Addr]++
		} else {
			out["none"]++
		}
	}
	return out
}

func is(t *testing.T, what string, got, want map[string]int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestStateOutlivesConfigs: a host is the same for as long as its cluster, address and TLS context are.
func TestStateOutlivesConfigs(t *testing.T) {
	s := NewSet(contexts{}, (&pipes{}).dial)
	apply(t, s, cluster("a", "10.0.0.1:80", "10.0.0.2:80"), cluster("b", "10.0.0.1:80"))
	v := s.View()
	first := v.Cluster("a").Members[0].Host
	if v.Cluster("b").Members[0].Host == first {
		t.Error("two clusters share a host")
	}
	first.Requests.Add(7)
	v.Cluster("a").Stats.Requests.Add(9)
	apply(t, s, cluster("a", "10.0.0.3:80", "10.0.0.1:80"))
	now := s.View()
	if m := now.Cluster("a").Members[1]; m.Host != first || m.Requests.Load() != 7 || now.Cluster("a").Stats.Requests.Load() != 9 {
		t.Errorf("the host is another one: %+v", m)
	}
	if now.Cluster("b") != nil || len(s.hosts) != 2 {
		t.Errorf("%d hosts are kept", len(s.hosts))
	}
	// The old view still works for exchanges under way.
	if m, ok := v.Cluster("a").Pick(balance.Query{}, netip.AddrPort{}); !ok || m.Host == nil {
		t.Error("the old view has no endpoints")
	}
	secured := cluster("a", "10.0.0.1:80")
	secured.TLS = &conf.UpstreamTLS{TLSCommon: conf.TLSCommon{ID: "x", ALPN: []string{"istio"}}}
	apply(t, s, secured)
	if m := s.View().Cluster("a").Members[0]; m.Host == first || !m.Mesh {
		t.Error("a host in plaintext serves a cluster with TLS")
	}
}

// TestContextsThatCannotBeMade: a cluster without its TLS context costs its own connections only, and until there is one.
func TestContextsThatCannotBeMade(t *testing.T) {
	tlsOf := &contexts{err: errors.New("no certificate")}
	dialed := &pipes{err: errors.New("dialed")}
	var log bytes.Buffer
	s := NewSet(tlsOf, dialed.dial)
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	bad := cluster("bad", "10.0.0.1:80", "10.0.0.2:80")
	bad.TLS = &conf.UpstreamTLS{TLSCommon: conf.TLSCommon{ID: "x"}}
	apply(t, s, cluster("a", "10.0.0.3:80"), bad)
	is(t, "the other cluster", picked(t, s, "a", 1), map[string]int{"10.0.0.3:80": 1})
	h := s.View().Cluster("bad").Members[0]
	for name, open := range map[string]func() error{
		"bytes":  func() error { _, err := h.DialTCP(t.Context(), time.Second); return err },
		"http/1": func() error { _, err := h.Open(t.Context(), false, false); return err },
		"http/2": func() error { _, err := h.Open(t.Context(), false, true); return err },
	} {
		tlsOf.err = errors.New("no certificate")
		if err := open(); err == nil || !strings.Contains(err.Error(), "no certificate") || len(dialed.addrs) != 0 {
			t.Errorf("%s: %v, dialed %q", name, err, dialed.addrs)
		}
		tlsOf.err = nil
		if err := open(); err == nil || !strings.Contains(err.Error(), "dialed") {
			t.Errorf("%s, when there is a certificate: %v", name, err)
		}
		dialed.addrs = nil
	}
	if n := strings.Count(log.String(), `cluster=bad err="no certificate"`); n != 1 {
		t.Errorf("log, want one line of the cluster:\n%s", &log)
	}
}

// TestTransport: the first match whose every pair the endpoint's metadata holds.
func TestTransport(t *testing.T) {
	mesh, other, fallback := &conf.UpstreamTLS{SNI: "mesh"}, &conf.UpstreamTLS{SNI: "other"}, &conf.UpstreamTLS{SNI: "fallback"}
	c := &conf.Cluster{TLS: fallback, TLSMatches: []conf.TLSMatch{
		{Match: map[string]string{"tlsMode": "istio", "x": "y"}, TLS: other}, {Match: map[string]string{"tlsMode": "istio"}, TLS: mesh}, {Match: map[string]string{"plain": "yes"}}}}
	for _, x := range []struct {
		meta map[string]string
		want *conf.UpstreamTLS
	}{
		{map[string]string{"tlsMode": "istio"}, mesh}, {map[string]string{"tlsMode": "istio", "x": "y"}, other}, {map[string]string{"plain": "yes"}, nil},
		{map[string]string{"tlsMode": "other"}, fallback}, {nil, fallback},
	} {
		if got := transport(c, &conf.Endpoint{TLSMode: x.meta}); got != x.want {
			t.Errorf("%v: %+v", x.meta, got)
		}
	}
}

func TestALPN(t *testing.T) {
	for _, x := range []struct{ in, http1, http2 []string }{
		{[]string{"istio-peer-exchange", "istio", "h2"}, []string{"istio-http/1.1", "istio", "http/1.1"}, []string{"istio-h2", "istio", "h2"}},
		{[]string{"h2", "http/1.1"}, []string{"http/1.1"}, []string{"h2"}},
		{nil, nil, []string{"h2"}},
	} {
		if a, b := httpALPN(x.in), http2ALPN(x.in); fmt.Sprint(a) != fmt.Sprint(x.http1) || fmt.Sprint(b) != fmt.Sprint(x.http2) {
			t.Errorf("%v: %v and %v", x.in, a, b)
		}
	}
}

// TestHashKey: metadata before hostname before address.
func TestHashKey(t *testing.T) {
	h := &Host{Addr: "10.0.0.1:80"}
	for _, x := range []struct {
		names bool
		ep    conf.Endpoint
		want  string
	}{
		{false, conf.Endpoint{Hostname: "h"}, "10.0.0.1:80"}, {true, conf.Endpoint{Hostname: "h"}, "h"}, {true, conf.Endpoint{}, "10.0.0.1:80"},
		{true, conf.Endpoint{Host: "dns"}, "dns"}, {false, conf.Endpoint{HashKey: "k"}, "k"}, {true, conf.Endpoint{Hostname: "h", HashKey: "k"}, "k"},
	} {
		if got := hashKey(&conf.Cluster{Hash: conf.HashTable{UseHostname: x.names}}, &x.ep, h); got != x.want {
			t.Errorf("%+v: %q", x, got)
		}
	}
}

func detected(c *conf.Cluster, change func(*conf.Outlier)) *conf.Cluster {
	o := conf.DefaultOutlier
	o.Consecutive5xx, o.MaxPercent, o.Interval, o.BaseEjection = 1, 100, time.Second, 10*time.Second
	if change != nil {
		change(&o)
	}
	c.Outlier = &o
	return c
}

// TestEjection: an ejected host leaves the picker at once, stays out over pushes, and returns in a sweep that Run does.
func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(contexts{}, (&pipes{}).dial)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		synctest.Wait() // nothing to sweep yet
		apply(t, s, detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80"), nil))
		is(t, "both", picked(t, s, "a", 10), map[string]int{"10.0.0.1:80": 5, "10.0.0.2:80": 5})
		m := s.View().Cluster("a").Members[0]
		m.Report(outlier.Answered, 500)
		if m.Healthy() {
			t.Error("the ejected host counts as healthy")
		}
		is(t, "ejected", picked(t, s, "a", 10), map[string]int{"10.0.0.2:80": 10})
		time.Sleep(4 * time.Second)
		apply(t, s, detected(cluster("a", "10.0.0.3:80", "10.0.0.1:80", "10.0.0.2:80"), nil))
		is(t, "after a push", picked(t, s, "a", 10), map[string]int{"10.0.0.2:80": 5, "10.0.0.3:80": 5})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		is(t, "a second early", picked(t, s, "a", 10), map[string]int{"10.0.0.2:80": 5, "10.0.0.3:80": 5})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		is(t, "back", picked(t, s, "a", 9), map[string]int{"10.0.0.1:80": 3, "10.0.0.2:80": 3, "10.0.0.3:80": 3})
		if e := s.OutlierEvents().All(); len(e) != 2 || e[1].Action != "UNEJECT" || e[1].Timestamp.Sub(e[0].Timestamp) != 10*time.Second {
			t.Errorf("%+v", e)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// TestDetectionEnds: without outlier detection every host is used again; a host that left and came back starts anew.
func TestDetectionEnds(t *testing.T) {
	s := NewSet(contexts{}, (&pipes{}).dial)
	apply(t, s, detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80"), nil))
	s.View().Cluster("a").Members[0].Report(outlier.Answered, 500)
	apply(t, s, cluster("a", "10.0.0.1:80", "10.0.0.2:80"))
	is(t, "no detection", picked(t, s, "a", 10), map[string]int{"10.0.0.1:80": 5, "10.0.0.2:80": 5})
	if m := s.View().Cluster("a").Members[0]; m.Outlier.Watched() || len(s.detectors) != 0 {
		t.Error("still watched")
	}
	apply(t, s, detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80"), nil))
	s.View().Cluster("a").Members[0].Report(outlier.Answered, 500)
	apply(t, s, detected(cluster("a", "10.0.0.2:80"), nil))
	apply(t, s, detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80"), nil))
	is(t, "came back", picked(t, s, "a", 10), map[string]int{"10.0.0.1:80": 5, "10.0.0.2:80": 5})
}

// TestNoneLeft: with all ejected there is nobody, or everybody in panic.
func TestNoneLeft(t *testing.T) {
	for threshold, want := range map[float64]map[string]int{0: {"none": 10}, 50: {"10.0.0.1:80": 5, "10.0.0.2:80": 5}} {
		s := NewSet(contexts{}, (&pipes{}).dial)
		c := detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80"), nil)
		c.PanicThreshold = threshold
		apply(t, s, c)
		for _, m := range s.View().Cluster("a").Members {
			m.Report(outlier.ConnectFailed, 0)
		}
		is(t, fmt.Sprint("panic ", threshold), picked(t, s, "a", 10), want)
	}
}

// TestPanicBeyondHalf: with just as many well as the threshold asks for there is no panic; with one more out there is, and with it back none.
func TestPanicBeyondHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(contexts{}, (&pipes{}).dial)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- s.Run(ctx) }()
		c := detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"), nil)
		c.PanicThreshold = 50
		apply(t, s, c)
		fail := func(i int) { s.View().Cluster("a").Members[i].Report(outlier.Answered, 503) }
		fail(2)
		time.Sleep(5 * time.Second)
		fail(0)
		is(t, "half of four", picked(t, s, "a", 8), map[string]int{"10.0.0.2:80": 4, "10.0.0.4:80": 4})
		fail(3)
		is(t, "three of four", picked(t, s, "a", 8), map[string]int{"10.0.0.1:80": 2, "10.0.0.2:80": 2, "10.0.0.3:80": 2, "10.0.0.4:80": 2})
		time.Sleep(7 * time.Second)
		synctest.Wait()
		is(t, "one is back", picked(t, s, "a", 8), map[string]int{"10.0.0.2:80": 4, "10.0.0.3:80": 4})
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// TestEjectionUnderPushes: ejections and pushes at the same time leave no host out of use that is not ejected, nor the other
// way round.
func TestEjectionUnderPushes(t *testing.T) {
	s := NewSet(contexts{}, (&pipes{}).dial)
	apply(t, s, detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"), func(o *conf.Outlier) { o.MaxPercent = 67 }))
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 200 {
			apply(t, s, detected(cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"), func(o *conf.Outlier) { o.MaxPercent = 67 }))
		}
	})
	for i := range 2 {
		wg.Go(func() { s.View().Cluster("a").Members[i].Report(outlier.Answered, 500) })
	}
	wg.Wait()
	is(t, "two are out", picked(t, s, "a", 10), map[string]int{"10.0.0.3:80": 10})
}

// TestOriginalDestination: hosts of original destinations live over pushes that do not change their cluster, until they idle.
func TestOriginalDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(contexts{}, (&pipes{}).dial)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		c := &conf.Cluster{Name: "inbound|80||", Discovery: conf.OriginalDstDiscovery, LB: conf.OriginalDst, Breakers: conf.DefaultBreakers}
		apply(t, s, c)
		to := netip.MustParseAddrPort("10.0.0.9:80")
		pick := func() *Host {
			m, ok := s.View().Cluster(c.Name).Pick(balance.Query{}, to)
			if !ok || m.Addr != "10.0.0.9:80" {
				t.Fatalf("%+v, %v", m, ok)
			}
			return m.Host
		}
		h := pick()
		apply(t, s, c, cluster("other", "10.0.0.1:80"))
		if pick() != h {
			t.Error("a push of another cluster made a new host")
		}
		h.Requests.Add(1)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if pick() != h {
			t.Error("a host in use was dropped")
		}
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if pick() == h {
			t.Error("an idle host was kept")
		}
		if _, ok := s.View().Cluster(c.Name).Pick(balance.Query{}, netip.AddrPort{}); ok || s.View().Cluster(c.Name).Stats.NoHealthy.Load() != 1 {
			t.Error("a connection without a destination got a host")
		}
		gone := s.View().Cluster(c.Name)
		apply(t, s)
		if _, ok := gone.Pick(balance.Query{}, to); !ok {
			t.Error("a request under way finds no host in a cluster that left")
		}
		cancel()
		<-ran
	})
}

// TestBreakerBounds: bounds follow the config, what is in use stays counted.
func TestBreakerBounds(t *testing.T) {
	s := NewSet(contexts{}, (&pipes{}).dial)
	c := cluster("a", "10.0.0.1:80")
	apply(t, s, c)
	b := s.View().Cluster("a").Breakers
	b.Requests.Take()
	next := cluster("a", "10.0.0.1:80")
	next.Breakers = conf.Breakers{Connections: 1, Pending: 2, Requests: 1, Retries: 4}
	apply(t, s, next)
	if now := s.View().Cluster("a").Breakers; now != b || b.Requests.Take() || b.Pending.Limit() != 2 || b.Retries.Limit() != 4 || b.Connections.Limit() != 1 {
		t.Errorf("%+v", now)
	}
}

// TestClustersThatLeave: counters and bounds go with their cluster, unless something of it is in use.
func TestClustersThatLeave(t *testing.T) {
	s := NewSet(contexts{}, (&pipes{}).dial)
	apply(t, s, cluster("stays", "10.0.0.1:80"))
	s.View().Cluster("stays").Stats.Requests.Add(3)
	for i := range 100 {
		apply(t, s, cluster("stays", "10.0.0.1:80"), cluster(fmt.Sprint("c", i), "10.0.0.2:80"))
	}
	busy := s.View().Cluster("c99")
	busy.Breakers.Requests.Take()
	apply(t, s, cluster("stays", "10.0.0.1:80"))
	if len(s.stats) != 2 || len(s.limits) != 2 {
		t.Errorf("%d counters and %d breakers are kept, want those of the cluster and of the one in use", len(s.stats), len(s.limits))
	}
	apply(t, s, cluster("stays", "10.0.0.1:80"), cluster("c99", "10.0.0.2:80"))
	if c := s.View().Cluster("c99"); c.Breakers != busy.Breakers || c.Stats != busy.Stats {
		t.Error("a cluster that came back does not count what is under way")
	}
	busy.Breakers.Requests.Give()
	apply(t, s, cluster("stays", "10.0.0.1:80"))
	if len(s.stats) != 1 || len(s.limits) != 1 || s.View().Cluster("stays").Stats.Requests.Load() != 3 {
		t.Errorf("%d counters and %d breakers are kept, want those of one cluster", len(s.stats), len(s.limits))
	}
}
