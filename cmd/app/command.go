package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/fixtures/apps/bookinfo"
	"github.com/meshproof/meshproof/fixtures/apps/hello"
	"github.com/meshproof/meshproof/fixtures/apps/service"
)

// options are the flags of every role; each may come from the environment variable named in its help.
type options struct {
	id                        service.Identity
	listen                    string
	cluster                   string
	details, reviews, ratings string
	shutdown                  service.Shutdown
	control, second           string
}

// newCommand returns the command tree. getenv and hostname give the defaults of flags.
func newCommand(getenv func(string) string, hostname func() (string, error)) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "app",
		Short:         "Fixture apps: Bookinfo, the boutique and hello",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	env := func(key, otherwise string) string {
		if v := getenv(key); v != "" {
			return v
		}
		return otherwise
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.id.Version, "version", env("APP_VERSION", "v1"), "version that answers carry (APP_VERSION)")
	flags.StringVar(&o.id.Pod, "pod", getenv("POD_NAME"), "name that answers carry; the host's name if empty (POD_NAME)")
	flags.StringVar(&o.listen, "listen", env("LISTEN", ":9080"), "address to serve on (LISTEN)")
	flags.StringVar(&o.cluster, "cluster", getenv("CLUSTER_NAME"), "cluster that answers carry (CLUSTER_NAME)")
	flags.StringVar(&o.details, "details", env("DETAILS_URL", "http://details:9080"), "base address of details (DETAILS_URL)")
	flags.StringVar(&o.reviews, "reviews", env("REVIEWS_URL", "http://reviews:9080"), "base address of reviews (REVIEWS_URL)")
	flags.StringVar(&o.ratings, "ratings", env("RATINGS_URL", "http://ratings:9080"), "base address of ratings (RATINGS_URL)")
	flags.StringVar(&o.control, "control", getenv("CONTROL"), "address to be told on how to fail, none if empty (CONTROL)")
	flags.StringVar(&o.second, "second", getenv("SECOND"), "second address to serve on, which can be told to refuse; needs --control (SECOND)")
	flags.DurationVar(&o.shutdown.Drain, "drain", 3*time.Second, "how long to serve on after SIGTERM, unready")
	flags.DurationVar(&o.shutdown.Finish, "finish", 15*time.Second, "how long requests in flight may take after that")

	identify := func(app string) (options, error) {
		o := o
		o.id.App, o.id.Cluster = app, o.cluster
		if o.id.Pod == "" {
			name, err := hostname()
			if err != nil {
				return o, fmt.Errorf("no --pod given and the host has no name: %w", err)
			}
			o.id.Pod = name
		}
		return o, nil
	}
	addBoutique(root, env, identify)
	for _, role := range []struct {
		name, short string
		build       func(options) (http.Handler, error)
	}{
		{"productpage", "the Bookinfo page and its API", func(o options) (http.Handler, error) {
			return bookinfo.ProductPage(bookinfo.ProductPageConfig{
				DetailsURL: o.details, ReviewsURL: o.reviews, RatingsURL: o.ratings, Client: service.NewClient(),
			})
		}},
		{"details", "the facts of a book", func(options) (http.Handler, error) { return bookinfo.Details(), nil }},
		{"ratings", "the stars that readers gave", func(options) (http.Handler, error) { return bookinfo.Ratings(), nil }},
		{"reviews", "what readers say: v1 without stars, v2 black, v3 red", func(o options) (http.Handler, error) {
			stars, err := bookinfo.StarsOf(o.id.Version)
			if err != nil {
				return nil, err
			}
			return bookinfo.Reviews(bookinfo.ReviewsConfig{
				Pod: o.id.Pod, Cluster: o.cluster, Stars: stars, RatingsURL: o.ratings, Client: service.NewClient(),
			}), nil
		}},
		{"hello", "a greeting with version and pod", func(o options) (http.Handler, error) { return hello.New(o.id), nil }},
	} {
		root.AddCommand(&cobra.Command{
			Use:   role.name,
			Short: role.short,
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				o, err := identify(role.name)
				if err != nil {
					return err
				}
				app, err := role.build(o)
				if err != nil {
					return err
				}
				return serve(cmd, o, app)
			},
		})
	}
	return root
}

func serve(cmd *cobra.Command, o options, app http.Handler) error {
	ln, err := new(net.ListenConfig).Listen(cmd.Context(), "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", o.listen, err)
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	log.Info("serving", "app", o.id.App, "version", o.id.Version, "pod", o.id.Pod, "address", ln.Addr().String())
	lifecycle := new(service.Lifecycle)
	if o.control == "" {
		err = service.Serve(cmd.Context(), ln, service.Handler(o.id, lifecycle, app), lifecycle, o.shutdown)
	} else {
		err = serveControlled(cmd.Context(), log, ln, o, lifecycle, app)
	}
	if err != nil {
		return err
	}
	log.Info("ended", "app", o.id.App)
	return nil
}

// serveControlled serves the app, and beside it the address that tells it how to fail and the second one, which end after it.
func serveControlled(ctx context.Context, log *slog.Logger, ln net.Listener, o options, lifecycle *service.Lifecycle, app http.Handler) error {
	control, err := new(net.ListenConfig).Listen(ctx, "tcp", o.control)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on %s: %w", o.control, err), ln.Close())
	}
	log.Info("controlled", "app", o.id.App, "address", control.Addr().String())
	faults := new(service.Faults)
	handler := service.Handler(o.id, lifecycle, faults.Wrap(app))
	beside, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 2)
	go func() {
		ended <- service.Serve(beside, control, faults.Handler(o.id), new(service.Lifecycle), service.Shutdown{Finish: time.Second})
	}()
	go func() {
		if o.second == "" {
			ended <- nil
			return
		}
		ended <- faults.Listen(beside, o.second, handler)
	}()
	err = service.Serve(ctx, ln, handler, lifecycle, o.shutdown)
	end()
	return errors.Join(err, <-ended, <-ended)
}
