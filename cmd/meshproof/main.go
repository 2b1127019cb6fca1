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

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal takes the lab down; a second one ends the program at once.
	defer context.AfterFunc(ctx, stop)()
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
