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
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/meshproof/meshproof/fixtures/apps/boutique"
	"github.com/meshproof/meshproof/fixtures/apps/boutique/kv"
	"github.com/meshproof/meshproof/fixtures/apps/boutique/pb"
	"github.com/meshproof/meshproof/fixtures/apps/rpc"
	"github.com/meshproof/meshproof/fixtures/apps/service"
)

// backend is a service that others call: its flag, the variable of the same meaning, and where it is in a cluster.
type backend struct {
	flag, env, address string
	set                func(*boutique.Backends, grpc.ClientConnInterface)
}

func backends() []backend {
	type b = boutique.Backends
	type c = grpc.ClientConnInterface
	return []backend{
		{"ads", "AD_SERVICE_ADDR", "adservice:9555", func(b *b, c c) { b.Ads = c }},
		{"cart", "CART_SERVICE_ADDR", "cartservice:7070", func(b *b, c c) { b.Cart = c }},
		{"catalog", "PRODUCT_CATALOG_SERVICE_ADDR", "productcatalogservice:3550", func(b *b, c c) { b.Catalog = c }},
		{"checkout", "CHECKOUT_SERVICE_ADDR", "checkoutservice:5050", func(b *b, c c) { b.Checkout = c }},
		{"currency", "CURRENCY_SERVICE_ADDR", "currencyservice:7000", func(b *b, c c) { b.Currency = c }},
		{"email", "EMAIL_SERVICE_ADDR", "emailservice:5000", func(b *b, c c) { b.Email = c }},
		{"payment", "PAYMENT_SERVICE_ADDR", "paymentservice:50051", func(b *b, c c) { b.Payment = c }},
		{"recommendations", "RECOMMENDATION_SERVICE_ADDR", "recommendationservice:8080", func(b *b, c c) { b.Recommendations = c }},
		{"shipping", "SHIPPING_SERVICE_ADDR", "shippingservice:50051", func(b *b, c c) { b.Shipping = c }},
	}
}

// boutiqueRole is one service of the boutique. register is nil for those that do not speak gRPC.
type boutiqueRole struct {
	name, short string
	calls       []string // flags of the backends it calls
	register    func(grpc.ServiceRegistrar, boutique.Backends, *slog.Logger)
}

func boutiqueRoles() []boutiqueRole {
	return []boutiqueRole{
		{"adservice", "Boutique: a text for every shopper", nil, func(s grpc.ServiceRegistrar, _ boutique.Backends, _ *slog.Logger) {
			pb.RegisterAdServiceServer(s, boutique.Ads())
		}},
		{
			"checkoutservice", "Boutique: turns a cart into an order", []string{"cart", "catalog", "currency", "email", "payment", "shipping"},
			func(s grpc.ServiceRegistrar, b boutique.Backends, log *slog.Logger) {
				pb.RegisterCheckoutServiceServer(s, boutique.Checkout(b, log))
			},
		},
		{"currencyservice", "Boutique: converts prices", nil, func(s grpc.ServiceRegistrar, _ boutique.Backends, _ *slog.Logger) {
			pb.RegisterCurrencyServiceServer(s, boutique.Currency())
		}},
		{"emailservice", "Boutique: writes confirmations, to its log", nil, func(s grpc.ServiceRegistrar, _ boutique.Backends, log *slog.Logger) {
			pb.RegisterEmailServiceServer(s, boutique.Email(log))
		}},
		{"paymentservice", "Boutique: charges cards, none of which is real", nil, func(s grpc.ServiceRegistrar, _ boutique.Backends, _ *slog.Logger) {
			pb.RegisterPaymentServiceServer(s, boutique.Payment(time.Now))
		}},
		{"productcatalogservice", "Boutique: what is for sale", nil, func(s grpc.ServiceRegistrar, _ boutique.Backends, _ *slog.Logger) {
			pb.RegisterProductCatalogServiceServer(s, boutique.Catalog())
		}},
		{
			"recommendationservice", "Boutique: suggests other products", []string{"catalog"},
			func(s grpc.ServiceRegistrar, b boutique.Backends, _ *slog.Logger) {
				pb.RegisterRecommendationServiceServer(s, boutique.Recommendation(b))
			},
		},
		{"shippingservice", "Boutique: quotes and ships", nil, func(s grpc.ServiceRegistrar, _ boutique.Backends, _ *slog.Logger) {
			pb.RegisterShippingServiceServer(s, boutique.Shipping())
		}},
	}
}

// addBoutique adds the services of the boutique to root. Those that do not speak HTTP answer GET /health on a port of its own.
func addBoutique(root *cobra.Command, env func(key, otherwise string) string, identify func(app string) (options, error)) {
	addresses := map[string]*string{}
	reach := func(cmd *cobra.Command, names []string) {
		for _, b := range backends() {
			for _, name := range names {
				if b.flag == name {
					if addresses[name] == nil {
						addresses[name] = new(string)
					}
					cmd.Flags().StringVar(addresses[name], name, env(b.env, b.address), "host:port of it ("+b.env+")")
				}
			}
		}
	}
	var health string
	healthFlag := func(cmd *cobra.Command) {
		cmd.Flags().StringVar(&health, "health", env("HEALTH", ":8081"), "address for GET /health (HEALTH)")
	}

	shop := &cobra.Command{
		Use: "frontend", Short: "Boutique: the pages of the shop", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := identify("frontend")
			if err != nil {
				return err
			}
			b, closeAll, err := connect(addresses, frontendCalls())
			if err != nil {
				return err
			}
			defer closeAll()
			pages, err := boutique.Frontend(o.id, b)
			if err != nil {
				return err
			}
			return serve(cmd, o, pages)
		},
	}
	reach(shop, frontendCalls())
	root.AddCommand(shop)

	for _, role := range boutiqueRoles() {
		cmd := &cobra.Command{Use: role.name, Short: role.short, Args: cobra.NoArgs}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			o, err := identify(role.name)
			if err != nil {
				return err
			}
			b, closeAll, err := connect(addresses, role.calls)
			if err != nil {
				return err
			}
			defer closeAll()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			server := rpc.NewServer(o.id, func(s grpc.ServiceRegistrar) { role.register(s, b, log) })
			return serveBoth(cmd, o, health, server.Serve)
		}
		healthFlag(cmd)
		reach(cmd, role.calls)
		root.AddCommand(cmd)
	}

	carts := &cobra.Command{Use: "cartservice", Short: "Boutique: keeps carts, in Redis", Args: cobra.NoArgs}
	redisAddress := carts.Flags().String("redis", env("REDIS_ADDR", "redis-cart:6379"), "host:port of the store (REDIS_ADDR)")
	healthFlag(carts)
	carts.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := identify("cartservice")
		if err != nil {
			return err
		}
		store := boutique.Store(*redisAddress)
		server := rpc.NewServer(o.id, func(s grpc.ServiceRegistrar) { pb.RegisterCartServiceServer(s, boutique.Cart(store)) })
		return errors.Join(serveBoth(cmd, o, health, server.Serve), store.Close())
	}
	root.AddCommand(carts)

	store := &cobra.Command{Use: "redis-cart", Short: "Boutique: the store of carts, in Redis protocol", Args: cobra.NoArgs}
	healthFlag(store)
	store.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := identify("redis-cart")
		if err != nil {
			return err
		}
		return serveBoth(cmd, o, health, kv.Serve)
	}
	root.AddCommand(store)
}

func frontendCalls() []string {
	return []string{"ads", "cart", "catalog", "checkout", "currency", "recommendations", "shipping"}
}

// connect returns connections to the named backends, which are made when they are first used.
func connect(addresses map[string]*string, names []string) (boutique.Backends, func(), error) {
	var (
		out   boutique.Backends
		conns []*grpc.ClientConn
	)
	closeAll := func() {
		for _, c := range conns {
			_ = c.Close() // only says that it is closed already
		}
	}
	for _, b := range backends() {
		for _, name := range names {
			if b.flag != name {
				continue
			}
			cc, err := rpc.Dial(*addresses[name])
			if err != nil {
				closeAll()
				return out, nil, fmt.Errorf("--%s: %w", name, err)
			}
			conns = append(conns, cc)
			b.set(&out, cc)
		}
	}
	return out, closeAll, nil
}

// serveBoth serves what does not speak HTTP, and GET /health beside it, until the command ends.
func serveBoth(cmd *cobra.Command, o options, health string, serve func(context.Context, net.Listener, service.Shutdown) error) error {
	var listen net.ListenConfig
	ln, err := listen.Listen(cmd.Context(), "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", o.listen, err)
	}
	healthLn, err := listen.Listen(cmd.Context(), "tcp", health)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on %s: %w", health, err), ln.Close())
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	log.Info("serving", "app", o.id.App, "version", o.id.Version, "pod", o.id.Pod, "address", ln.Addr().String())
	g, ctx := errgroup.WithContext(cmd.Context())
	lifecycle := new(service.Lifecycle)
	g.Go(func() error { return serve(ctx, ln, o.shutdown) })
	g.Go(func() error {
		return service.Serve(ctx, healthLn, service.Handler(o.id, lifecycle, http.NotFoundHandler()), lifecycle, o.shutdown)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	log.Info("ended", "app", o.id.App)
	return nil
}
