// Command meshproof brings up labs, runs scenarios in them and reports what a mesh does.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/meshproof/meshproof/clusters/local"
	"github.com/meshproof/meshproof/cmd/internal/cli"
)

func main() {
	if local.Main() {
		return
	}
	os.Exit(run())
}

// interruptible returns a context that the first SIGINT or SIGTERM ends; a second one ends the program at once, whoever else
// listens to it: ginkgo does, while scenarios run.
func interruptible() (ctx context.Context, stop func()) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	ctx, cancel := signal.NotifyContext(context.Background(), signals...)
	left := context.AfterFunc(ctx, func() { signal.Reset(signals...) })
	return ctx, func() {
		left()
		cancel()
	}
}

func run() int {
	ctx, stop := interruptible()
	defer stop()
	s := cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv}
	if fd := int(os.Stderr.Fd()); term.IsTerminal(fd) {
		s.Terminal = true
		if w, _, err := term.GetSize(fd); err == nil {
			s.Width = w
		}
	}
	if self, err := os.Executable(); err == nil {
		s.Self = self
	}
	return cli.Run(ctx, os.Args[1:], s)
}
