// Package proxy is the data plane: a sidecar or a gateway that takes its configuration from a control plane by xDS.
// Run wires the packages below it; each of them can be read alone.
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/decode"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/filter/hcm"
	"github.com/meshproof/meshproof/mesh/proxy/filter/peer"
	"github.com/meshproof/meshproof/mesh/proxy/filter/tcpproxy"
	"github.com/meshproof/meshproof/mesh/proxy/listener"
	"github.com/meshproof/meshproof/mesh/proxy/router"
	"github.com/meshproof/meshproof/mesh/proxy/secrets"
	"github.com/meshproof/meshproof/mesh/proxy/state"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

// Bootstrap is everything a proxy must know before it asks the control plane.
type Bootstrap struct {
	// NodeID is Istio's: sidecar~IP~POD.NS~NS.svc.cluster.local.
	NodeID   string
	Cluster  string // service cluster, for the node
	Metadata map[string]any
	Workload conf.Workload // the workload behind the proxy; Principal is its SPIFFE id

	Discovery client.DialOptions // the control plane; also the certificate authority
	Sotw      bool
	// CertTTL is the life asked for the workload certificate; 0 means no certificate at all, for plaintext meshes.
	CertTTL time.Duration

	Admin     string // host:port of the admin port; "" none
	Status    string // host:port of /healthz/ready; "" none
	Metrics   string // host:port of /stats/prometheus; "" none
	Merged    string // host:port of the merged metrics; "" none
	AppTarget string // URL of the application's own metrics, for Merged; "" none

	// DrainTime is for connections of filter chains that a push took away.
	DrainTime time.Duration
	// Stop is how connections end with the proxy.
	Stop listener.Drain

	// Listen, OriginalDst and Dial replace the kernel's where they are not nil, for meshes without redirect rules.
	Listen      func(ctx context.Context, addr netip.AddrPort) (net.Listener, error)
	OriginalDst func(net.Conn) (netip.AddrPort, bool)
	Dial        upstream.Dialer

	Version string
	Level   *slog.LevelVar // changed by the admin port; may be nil
	Log     *slog.Logger
	// Ready is called once, when the first configuration serves; may be nil.
	Ready func()
}

// Proxy is a running proxy's parts, as the admin port shows them.
type Proxy struct {
	b         *Bootstrap
	store     *secrets.Store
	upstreams *upstream.Set
	listeners *listener.Manager
	http      *hcm.Manager
	state     *state.State
	client    *client.Client
	metrics   *telemetry.Metrics
	logs      *telemetry.Logs
	started   time.Time
	draining  atomic.Bool
	live      atomic.Bool
}

// Run serves until ctx ends, then drains as Stop says: readiness goes first, connections are asked to end, new ones are
// accepted for a while, and what is left after the limit is closed. An error means that the proxy could not start or lost a part that it cannot do without.
func Run(ctx context.Context, b Bootstrap) error {
	if b.Log == nil {
		b.Log = slog.New(slog.DiscardHandler)
	}
	node, err := decode.Node(b.NodeID, b.Cluster, b.Metadata)
	if err != nil {
		return err
	}
	conn, err := client.Dial(b.Discovery)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	p := &Proxy{b: &b, store: &secrets.Store{}, metrics: telemetry.NewMetrics(b.Workload, b.Version), logs: &telemetry.Logs{Open: telemetry.OpenFile}, started: time.Now()}
	p.upstreams = upstream.NewSet(p.store, b.Dial)
	p.upstreams.Log = b.Log
	metadata, err := decode.EncodePeer(b.Workload)
	if err != nil {
		return err
	}
	p.listeners = p.newListeners(peer.New(b.NodeID, metadata, decode.Peer))
	p.state = state.New(state.Options{
		Subscribe: func(t string, names []string) { p.client.Subscribe(t, names) },
		Prepare:   p.listeners.Prepare,
		Publish:   p.publish,
		Log:       b.Log,
	})
	p.client = client.New(client.Options{Conn: conn, Node: node, Sotw: b.Sotw, Handler: p.state, Log: b.Log})

	// Parts live longer than ctx: they serve through the drain.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	if err := p.serveAdmin(parts, g, node); err != nil {
		stop()
		return errors.Join(err, g.Wait())
	}
	g.Go(func() error { return p.upstreams.Run(parts) })
	g.Go(func() error { return p.http.Run(parts) })
	g.Go(func() error { return p.logs.Run(parts) })
	g.Go(func() error { return p.metrics.Run(parts) })
	g.Go(func() error { return p.state.Run(parts) })
	g.Go(func() error {
		if b.CertTTL > 0 {
			i := &secrets.Issuer{Conn: conn, Store: p.store, Identity: b.Workload.Principal, TTL: b.CertTTL, RootFile: b.Discovery.RootFile, Log: b.Log}
			if !p.firstCertificate(parts, i) {
				return nil
			}
			g.Go(func() error { return i.Run(parts) })
		}
		return p.client.Run(parts)
	})
	select {
	case <-ctx.Done():
	case <-parts.Done():
	}
	p.draining.Store(true)
	b.Log.Info("draining", "connections", p.listeners.Active.Load(), "grace", b.Stop.Grace, "limit", b.Stop.Limit)
	p.listeners.Drain(b.Stop)
	stop()
	return g.Wait()
}

// firstCertificate asks until it gets one; contexts that need it cannot be served before.
func (p *Proxy) firstCertificate(ctx context.Context, i *secrets.Issuer) bool {
	pause := 200 * time.Millisecond
	for {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := i.Fetch(call)
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		p.b.Log.Warn("no certificate yet", "err", err, "again_in", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// publish makes cfg current: clusters first, so that no listener can lead to one that is not there.
func (p *Proxy) publish(cfg *conf.Config) {
	p.upstreams.Apply(cfg)
	p.metrics.Forget()
	for _, err := range p.listeners.Update(cfg) {
		p.b.Log.Error("listener not updated", "err", err) // Prepare would have said so before
	}
	if !p.live.Swap(true) && p.b.Ready != nil {
		p.b.Ready()
	}
}

func (p *Proxy) newListeners(filters ...filter.HTTP) *listener.Manager {
	rec := recorder{p}
	m := &hcm.Manager{Router: router.New(p.upstreams), Recorder: rec, Filters: filters}
	p.http = m
	t := &tcpproxy.Proxy{Set: p.upstreams, Recorder: rec}
	listen := p.b.Listen
	if listen == nil {
		listen = func(ctx context.Context, a netip.AddrPort) (net.Listener, error) {
			var lc net.ListenConfig
			return lc.Listen(ctx, "tcp", a.String())
		}
	}
	dst := p.b.OriginalDst
	if dst == nil {
		dst = listener.OriginalDst
	}
	return listener.New(listener.Options{
		HTTP: m.Serve, TCP: t.Serve, TLS: p.store, Listen: listen, OriginalDst: dst, Drain: p.b.DrainTime, Log: p.b.Log,
		LocalURI: func() string {
			if i := p.store.Info(); i != nil {
				return i.URI
			}
			return ""
		},
	})
}

// recorder spreads what the data path reports.
type recorder struct{ p *Proxy }

// HTTP implements hcm.Recorder.
func (r recorder) HTTP(h *conf.HTTP, rec *telemetry.Record) {
	r.p.metrics.HTTP(rec)
	if h.AccessLog != nil {
		r.p.logs.Write(h.AccessLog, rec)
	}
}

// Messages implements hcm.Recorder.
func (r recorder) Messages(rec *telemetry.Record, in, out uint64) { r.p.metrics.Messages(rec, in, out) }

// TCPOpened implements tcpproxy.Recorder.
func (r recorder) TCPOpened(_ *conf.TCP, rec *telemetry.Record) { r.p.metrics.TCPOpened(rec) }

// TCPClosed implements tcpproxy.Recorder.
func (r recorder) TCPClosed(t *conf.TCP, rec *telemetry.Record) {
	r.p.metrics.TCPClosed(rec)
	if t.AccessLog != nil {
		r.p.logs.Write(t.AccessLog, rec)
	}
}
