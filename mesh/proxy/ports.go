package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// serveAdmin opens the ports that are not traffic's: admin, readiness, metrics.
func (p *Proxy) serveAdmin(ctx context.Context, g *errgroup.Group) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", p.ready)
	mux.HandleFunc("GET /healthz/ready", p.ready)
	mux.HandleFunc("GET /stats/prometheus", p.prometheus)
	for _, addr := range []string{p.b.Admin, p.b.Status, p.b.Metrics, p.b.Merged} {
		if addr == "" {
			continue
		}
		if err := serve(ctx, g, addr, mux); err != nil {
			return err
		}
	}
	return nil
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

func (p *Proxy) ready(w http.ResponseWriter, _ *http.Request) {
	if p.draining.Load() || !p.live.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		if p.draining.Load() {
			_, _ = w.Write([]byte("DRAINING\n"))
		} else {
			_, _ = w.Write([]byte("PRE_INITIALIZING\n"))
		}
		return
	}
	_, _ = w.Write([]byte("LIVE\n"))
}

func (p *Proxy) prometheus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	p.metrics.WritePrometheus(w)
}
