// Command loadagent generates load from where it runs, on the command of a lab: see package agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/agent"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listen := flag.String("listen", ":8090", "address to take commands on")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "loadagent: unexpected argument %q; only -listen ADDRESS is taken\n", flag.Arg(0))
		os.Exit(2)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err == nil {
		err = serve(ctx, ln)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadagent:", err)
		os.Exit(1)
	}
}

func generate(ctx context.Context, p loadgen.Profile, emit func(loadgen.Result)) error {
	g, err := httpgen.New(p, httpgen.Options{})
	if err != nil {
		return err
	}
	return g.Run(ctx, emit)
}

// serve takes commands on ln, which it owns, until ctx ends. Runs under way end with it: their callers get a trailer that says so.
func serve(ctx context.Context, ln net.Listener) error {
	slog.Info("taking commands", "address", ln.Addr().String())
	srv := &http.Server{
		Handler:           agent.Handler(generate),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := srv.Shutdown(end)
	if err != nil {
		err = fmt.Errorf("runs still under way after 5 s: %w", errors.Join(err, srv.Close()))
	}
	_ = <-served // ErrServerClosed, since it was shut down
	return err
}
