package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshproof/meshproof/mesh/proxy/admin"
	"github.com/meshproof/meshproof/mesh/proxy/secrets"
	"github.com/meshproof/meshproof/mesh/proxy/state"
)

// scrapeLimit bounds what is read of the application's own metrics.
const scrapeLimit = 16 << 20

// serveAdmin opens the ports that are not traffic's: admin, readiness, metrics.
func (p *Proxy) serveAdmin(ctx context.Context, g *errgroup.Group, node *corev3.Node) error {
	src := p.source(node)
	full := admin.Handler(src)
	ready := http.NewServeMux()
	ready.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		st := p.serving()
		if st != "LIVE" {
			http.Error(w, st, http.StatusServiceUnavailable)
		}
	})
	metrics := http.NewServeMux()
	metrics.HandleFunc("GET /stats/prometheus", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		src.Prometheus(w)
	})
	merged := http.NewServeMux()
	merged.Handle("GET /healthz/ready", ready)
	merged.HandleFunc("GET /stats/prometheus", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		p.appMetrics(r.Context(), w)
		src.Prometheus(w)
	})
	for _, port := range []struct {
		addr string
		h    http.Handler
	}{{p.b.Admin, full}, {p.b.Status, ready}, {p.b.Metrics, metrics}, {p.b.Merged, merged}} {
		if port.addr == "" {
			continue
		}
		if err := serve(ctx, g, port.addr, port.h); err != nil {
			return err
		}
	}
	return nil
}

func (p *Proxy) source(node *corev3.Node) admin.Source {
	src := admin.Source{
		View: p.upstreams.View, Events: p.upstreams.OutlierEvents(), Secrets: p.store, State: p.serving, Addrs: p.listeners.Addrs, NodeID: p.b.NodeID, Version: p.b.Version,
		Started: p.started, Level: p.b.Level,
		Dump: func(eds bool, resource string) ([]byte, error) {
			return p.state.Dump(state.DumpOptions{Node: node, Version: p.b.Version, Endpoints: eds, Resource: resource, Secrets: dumped(p.store.Info()), Unbound: p.unbound()})
		},
		Counters: func() map[string]int64 {
			st := p.client.Stats()
			connected := int64(0)
			if st.Connected {
				connected = 1
			}
			return map[string]int64{
				"control_plane.connected_state": connected, "control_plane.acks": st.Acks, "control_plane.nacks": st.Nacks,
				"listener_manager.downstream_cx_total": p.listeners.Opened.Load(), "listener_manager.downstream_cx_active": p.listeners.Active.Load(),
				"server.uptime": int64(time.Since(p.started).Seconds()),
			}
		},
	}
	src.Prometheus = func(w io.Writer) {
		p.metrics.WritePrometheus(w)
		src.WriteClusterMetrics(w)
	}
	return src
}

func dumped(i *secrets.Info) []state.Secret {
	if i == nil {
		return nil
	}
	at := timestamppb.New(i.NotBefore)
	return []state.Secret{{Name: secrets.Workload, Chain: i.CertPEM, At: at}, {Name: secrets.Roots, Roots: i.RootPEM, At: at}}
}

func (p *Proxy) unbound() map[string]state.Unbound {
	out := map[string]state.Unbound{}
	for name, f := range p.listeners.Failures() {
		out[name] = state.Unbound{Reason: "cannot bind: " + f.Err.Error(), At: f.At}
	}
	return out
}

// serving is Envoy's word for the proxy's state.
func (p *Proxy) serving() string {
	switch {
	case p.draining.Load():
		return "DRAINING"
	case !p.live.Load():
		return "PRE_INITIALIZING"
	}
	return "LIVE"
}

// appMetrics copies the application's metrics in front of the proxy's. An application that does not answer must not hide
// the proxy's own.
func (p *Proxy) appMetrics(ctx context.Context, w io.Writer) {
	if p.b.AppTarget == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.b.AppTarget, nil)
	if err != nil {
		p.b.Log.Warn("application metrics", "err", err)
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.b.Log.Warn("application metrics", "err", err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		p.b.Log.Warn("application metrics", "status", resp.StatusCode)
		return
	}
	_, _ = io.Copy(w, io.LimitReader(resp.Body, scrapeLimit))
	_, _ = io.WriteString(w, "\n")
}

func serve(ctx context.Context, g *errgroup.Group, addr string, h http.Handler) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("port %s: %w", addr, err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	g.Go(func() error {
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("port %s: %w", addr, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
	return nil
}
