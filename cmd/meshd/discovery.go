package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/identity"
	"github.com/meshproof/meshproof/mesh/ingest"
	"github.com/meshproof/meshproof/mesh/inject"
	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/multicluster"
	"github.com/meshproof/meshproof/mesh/translate"
	"github.com/meshproof/meshproof/mesh/xds/server"
)

// config is what the flags say.
type config struct {
	kubeconfig, context                             string
	namespace, revision                             string
	clusterID, meshID, network, trustDomain, suffix string
	secure, plaintext, webhook, monitoring, debug   string
	accessLog, image, discovery, logLevel           string
	quiet, limit                                    time.Duration
	webhooks                                        bool
	grace                                           time.Duration
}

func discoveryCommand() *cobra.Command {
	var c config
	cmd := &cobra.Command{
		Use: "discovery", Short: "Serve xDS, certificates and injection", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return discovery(cmd.Context(), c) },
	}
	f := cmd.Flags()
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; empty inside a pod")
	f.StringVar(&c.context, "context", "", "context of the kubeconfig")
	f.StringVar(&c.namespace, "namespace", "istio-system", "the mesh's own namespace")
	f.StringVar(&c.revision, "revision", "default", "revision of this control plane")
	f.StringVar(&c.clusterID, "cluster-id", "Kubernetes", "name of the cluster in the mesh")
	f.StringVar(&c.meshID, "mesh-id", "", "name of the mesh; empty for the trust domain")
	f.StringVar(&c.network, "network", "", "network of the cluster")
	f.StringVar(&c.trustDomain, "trust-domain", identity.DefaultTrustDomain, "trust domain of all identities")
	f.StringVar(&c.suffix, "domain", "cluster.local", "DNS suffix of the cluster's services")
	f.StringVar(&c.secure, "secure-addr", ":15012", "xDS and certificates over TLS")
	f.StringVar(&c.plaintext, "plaintext-addr", "", "xDS without TLS and without authentication; empty for none")
	f.StringVar(&c.webhook, "webhook-addr", ":15017", "injection webhook")
	f.StringVar(&c.monitoring, "monitoring-addr", ":15014", "metrics, readiness and debug endpoints")
	f.StringVar(&c.debug, "debug-addr", ":8080", "debug endpoints once more; empty for none")
	f.StringVar(&c.accessLog, "access-log-file", "/dev/stdout", "where proxies log requests; empty for nowhere")
	f.StringVar(&c.image, "proxy-image", "meshproof.dev/meshproxy:"+version.Version, "image of the injected sidecar")
	f.StringVar(&c.discovery, "discovery-address", "", "address that sidecars call; empty for istiod[-REVISION].NAMESPACE.svc:15012")
	f.DurationVar(&c.quiet, "debounce", ingest.DefaultQuiet, "quiet time before a change of configuration is pushed")
	f.DurationVar(&c.limit, "debounce-max", ingest.DefaultMax, "longest wait before a change of configuration is pushed")
	f.BoolVar(&c.webhooks, "injection", true, "serve injection and keep the injector configurations' caBundle")
	f.DurationVar(&c.grace, "shutdown-grace", 5*time.Second, "time for open requests at shutdown")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// service is the name of the control plane's Service.
func (c config) service() string {
	if c.revision == "default" || c.revision == "" {
		return "istiod"
	}
	return "istiod-" + c.revision
}

func (c config) serviceNames() []string {
	var out []string
	for _, s := range []string{c.service(), "istiod"} {
		out = append(out, s+"."+c.namespace+".svc", s+"."+c.namespace+".svc."+c.suffix, s+"."+c.namespace)
		if s == "istiod" && c.service() == "istiod" {
			break
		}
	}
	return append(out, "localhost")
}

// discovery runs the control plane until ctx ends or a part of it fails.
func discovery(ctx context.Context, c config) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	started := time.Now()
	restCfg, err := clusterConfig(c)
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(restCfg)
	if err != nil {
		return fmt.Errorf("kubernetes client: %w", err)
	}
	istio, err := istioclient.NewForConfig(restCfg)
	if err != nil {
		return fmt.Errorf("istio client: %w", err)
	}
	loaded, err := ca.Load(ctx, kube, c.namespace, c.trustDomain)
	if err != nil {
		return err
	}
	authority := ca.NewAuthority(loaded)
	if c.meshID == "" {
		c.meshID = c.trustDomain
	}
	if c.discovery == "" {
		c.discovery = c.service() + "." + c.namespace + ".svc:15012"
	}
	serving, err := newServing(loaded, c)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("name of this pod: %w", err)
	}
	ads := server.New(server.Options{Source: translate.New(), Log: log, Identifier: host})
	mesh := model.Mesh{
		TrustDomain: c.trustDomain, DomainSuffix: c.suffix, ClusterID: c.clusterID, MeshID: c.meshID, Network: c.network,
		RootNamespace: c.namespace, AccessLogFile: c.accessLog,
	}
	r := &remotes{c: c, authority: authority, log: log}
	set := multicluster.New(multicluster.Options{
		Kube: kube, Namespace: c.namespace, Own: c.clusterID, UserAgent: "meshd/" + version.Version, Log: log,
		Serve: r.serve, Gone: func(id string) { r.in.Forget(id) },
	})
	r.in = ingest.New(ingest.Options{Kube: kube, Istio: istio, Mesh: mesh, Log: log, Settled: set.Settled(), Quiet: c.quiet, Max: c.limit})
	peers := &ca.Peers{Kube: kube, ClusterID: c.clusterID, TrustDomain: c.trustDomain, Remote: set.Kube}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		problems := newProblemLog(log)
		return r.in.Run(ctx, func(s *model.Snapshot) {
			ads.Publish(s)
			problems.report(s)
			if s.Sequence == 1 {
				log.Info("ready", "services", len(s.Services), "clusters", len(s.Clusters()), "after", time.Since(started).Round(time.Millisecond))
			}
		})
	})
	g.Go(func() error { return set.Run(ctx) })
	g.Go(func() error { return authority.Follow(ctx, kube, c.namespace, log) })
	g.Go(func() error {
		return authority.Each(ctx, func(ctx context.Context, a *ca.CA) error { return serving.keep(ctx, a, log) })
	})
	g.Go(func() error { return keepTrust(ctx, c, kube, authority, log) })
	g.Go(func() error { return serveXDS(ctx, c, serving, authority, ads, peers, log) })
	g.Go(func() error { return serveMonitoring(ctx, c, ads, set, log) })
	if c.webhooks {
		cfg := inject.Config{
			Image: c.image, Revision: c.revision, DiscoveryAddress: c.discovery, ClusterID: c.clusterID, MeshID: c.meshID,
			Network: c.network, TrustDomain: c.trustDomain,
		}
		g.Go(func() error { return serveWebhook(ctx, c, serving, cfg, log) })
	}
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func clusterConfig(c config) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if c.kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.kubeconfig}, &clientcmd.ConfigOverrides{CurrentContext: c.context}).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("cluster configuration: %w", err)
	}
	cfg.UserAgent = "meshd/" + version.Version
	cfg.QPS, cfg.Burst = 200, 400 // token reviews of many proxies at once
	return cfg, nil
}
