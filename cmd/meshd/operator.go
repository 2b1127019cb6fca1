package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/mesh/operator"
)

func operatorCommand() *cobra.Command {
	var c config
	var hub, tag string
	cmd := &cobra.Command{
		Use: "operator", Short: "Carry out the IstioOperator objects of a revision", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runOperator(cmd.Context(), c, hub, tag) },
	}
	f := cmd.Flags()
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; empty inside a pod")
	f.StringVar(&c.context, "context", "", "context of the kubeconfig")
	f.StringVar(&c.revision, "revision", "default", "revision whose objects are carried out")
	f.StringVar(&hub, "hub", "meshproof.dev", "registry prefix of the images, where an object names none")
	f.StringVar(&tag, "tag", version.Version, "tag of the images, where an object names none")
	f.StringVar(&c.monitoring, "monitoring-addr", ":8383", "readiness")
	return cmd
}

// runOperator runs until ctx ends.
func runOperator(ctx context.Context, c config, hub, tag string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cluster, err := clusterConfig(c)
	if err != nil {
		return err
	}
	var ready atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "the objects have not been read yet", http.StatusServiceUnavailable)
		}
	})
	l, err := net.Listen("tcp", c.monitoring)
	if err != nil {
		return fmt.Errorf("readiness: %w", err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	g.Go(func() error {
		return operator.Run(ctx, operator.Config{Cluster: cluster, Revision: c.revision, Hub: hub, Tag: tag, Log: log, Ready: func() { ready.Store(true) }})
	})
	return g.Wait()
}
