package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/identity"
	"github.com/meshproof/meshproof/mesh/inject"
	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/multicluster"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/mesh/xds/server"
)

// servingTTL is the life of the control plane's own certificate; it is made anew after half of it.
const servingTTL = 24 * time.Hour

// serving holds the control plane's own certificate, and whom its ports trust.
type serving struct {
	names   []string
	id      identity.ID
	current atomic.Pointer[servingState]
}

type servingState struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

func newServing(authority *ca.CA, c config) (*serving, error) {
	s := &serving{names: c.serviceNames(), id: identity.ID{TrustDomain: c.trustDomain, Namespace: c.namespace, ServiceAccount: c.service()}}
	return s, s.make(authority)
}

func (s *serving) make(authority *ca.CA) error {
	cert, err := authority.Serving(s.names, s.id, servingTTL)
	if err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	s.current.Store(&servingState{cert, authority.Roots().Pool()})
	return nil
}

// keep makes the certificate anew with this CA, at once and each time that half of its life has passed, until ctx ends.
func (s *serving) keep(ctx context.Context, authority *ca.CA, log *slog.Logger) error {
	t := time.NewTicker(servingTTL / 2)
	defer t.Stop()
	for {
		if err := s.make(authority); err != nil {
			return err
		}
		log.Info("serving certificate made")
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// config is the TLS configuration of a port; clients tells what to ask of client certificates.
func (s *serving) config(clients tls.ClientAuthType, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			now := s.current.Load()
			return &tls.Config{
				MinVersion: tls.VersionTLS12, ClientAuth: clients, ClientCAs: now.roots, Certificates: []tls.Certificate{*now.cert}, NextProtos: protocols,
			}, nil
		},
	}
}

func grpcOptions(extra ...grpc.ServerOption) []grpc.ServerOption {
	return append([]grpc.ServerOption{
		grpc.MaxConcurrentStreams(100_000),
		grpc.MaxRecvMsgSize(64 << 20), // a state-of-the-world subscription names every cluster
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(1 << 20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second, PermitWithoutStream: true}),
	}, extra...)
}

// serveXDS serves discovery and certificates, and discovery without TLS if asked to.
func serveXDS(ctx context.Context, c config, s *serving, authority *ca.Authority, ads *server.Server, peers *ca.Peers, log *slog.Logger) error {
	secure := grpc.NewServer(grpcOptions(grpc.Creds(credentials.NewTLS(s.config(tls.VerifyClientCertIfGiven, "h2"))))...)
	ads.Register(secure, peers)
	ca.Register(secure, authority, peers, log)
	servers := map[string]*grpc.Server{c.secure: secure}
	if c.plaintext != "" {
		plain := grpc.NewServer(grpcOptions()...)
		ads.Register(plain, nil)
		servers[c.plaintext] = plain
	}
	g, ctx := errgroup.WithContext(ctx)
	for addr, srv := range servers {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("xDS: %w", err)
		}
		log.Info("serving xDS", "address", l.Addr().String(), "tls", srv == secure)
		g.Go(func() error { return srv.Serve(l) })
	}
	g.Go(func() error {
		<-ctx.Done()
		ads.Close()
		for _, srv := range servers {
			srv.Stop()
		}
		return nil
	})
	return g.Wait()
}

func serveWebhook(ctx context.Context, c config, s *serving, cfg inject.Config, log *slog.Logger) error {
	mux := http.NewServeMux()
	h := inject.Handler(cfg, log)
	mux.Handle("POST /inject", h)
	mux.Handle("POST /inject/", h)
	return serveHTTP(ctx, c, c.webhook, mux, s.config(tls.NoClientCert, "h2", "http/1.1"), log)
}

func serveMonitoring(ctx context.Context, c config, ads *server.Server, remotes *multicluster.Set, log *slog.Logger) error {
	mux := http.NewServeMux()
	status.Register(mux, ads)
	status.RegisterClusters(mux, remotes.Status)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry(ads), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if ads.Current() == nil {
			http.Error(w, "the cluster has not been read yet", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "{\"version\":%q,\"revision\":%q}\n", version.Version, c.revision)
	})
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range []string{c.monitoring, c.debug} {
		if addr != "" {
			g.Go(func() error { return serveHTTP(ctx, c, addr, mux, nil, log) })
		}
	}
	return g.Wait()
}

func registry(ads *server.Server) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	st := ads.Stats()
	counter := func(name, help string, f func() uint64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(f()) }))
	}
	counter("pilot_xds_pushes", "Discovery responses sent.", st.Responses.Load)
	counter("pilot_xds_resources_total", "Resources sent.", st.Resources.Load)
	counter("pilot_xds_bytes_total", "Bytes of resources sent.", st.Bytes.Load)
	counter("pilot_total_xds_rejects", "Discovery responses that proxies refused.", st.Nacks.Load)
	counter("pilot_snapshots_total", "Snapshots published.", st.Snapshots.Load)
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Connected proxies."},
		func() float64 { return float64(len(ads.Proxies())) }))
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pilot_services", Help: "Known services."}, func() float64 {
		if s := ads.Current(); s != nil {
			return float64(len(s.Services))
		}
		return 0
	}))
	return r
}

func serveHTTP(ctx context.Context, c config, addr string, h http.Handler, t *tls.Config, log *slog.Logger) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	if t != nil {
		l = tls.NewListener(l, t)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done() // over, or serving failed
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.grace)
		defer cancel()
		return srv.Shutdown(grace)
	})
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return g.Wait()
}

// problemLog logs what is wrong with objects, once for each generation.
type problemLog struct {
	log  *slog.Logger
	seen map[string]bool
}

func newProblemLog(log *slog.Logger) *problemLog {
	return &problemLog{log: log, seen: map[string]bool{}}
}

func (p *problemLog) report(s *model.Snapshot) {
	now := map[string]bool{}
	for _, x := range s.Problems {
		k := fmt.Sprintf("%v/%d/%s", x.Object, x.Generation, x.Problem.String())
		now[k] = true
		if !p.seen[k] {
			p.log.Warn("object problem", "kind", x.Object.Kind, "namespace", x.Object.Namespace, "name", x.Object.Name,
				"severity", x.Problem.Severity, "field", x.Problem.Field, "problem", x.Problem.Message, "fix", x.Problem.Fix, "inForce", x.InForce)
		}
	}
	p.seen = now
}
