package main

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/ingest"
	"github.com/meshproof/meshproof/mesh/inject"
	"github.com/meshproof/meshproof/mesh/multicluster"
)

// remotes is what a control plane does for each other cluster of its mesh.
type remotes struct {
	c         config
	authority *ca.Authority
	in        *ingest.Ingest
	log       *slog.Logger
}

// serve reads a cluster, and where this control plane is asked to look after it, writes there what proxies trust.
func (r *remotes) serve(ctx context.Context, cl multicluster.Cluster, synced func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.in.Follow(ctx, cl.ID, cl.Kube, synced) })
	g.Go(func() error {
		err := multicluster.Controlled(ctx, cl.Kube, r.c.namespace, r.c.clusterID)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		r.log.Info("looking after the cluster", "cluster", cl.ID)
		return keepTrust(ctx, r.c, cl.Kube, r.authority, r.log.With("cluster", cl.ID))
	})
	return g.Wait()
}

// keepTrust keeps the roots of the CA in force in every namespace of a cluster, and in its injector's configuration.
func keepTrust(ctx context.Context, c config, kube kubernetes.Interface, authority *ca.Authority, log *slog.Logger) error {
	return authority.Each(ctx, func(ctx context.Context, a *ca.CA) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return ca.DistributeRoots(ctx, kube, a, log) })
		if c.webhooks {
			g.Go(func() error { return inject.KeepBundles(ctx, kube, c.revision, a.Roots().PEM(), log) })
		}
		return g.Wait()
	})
}
