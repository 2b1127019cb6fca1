// Command app is every fixture app in one binary: the first argument says which.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := newCommand(os.Getenv, os.Hostname)
	if name := filepath.Base(os.Args[0]); name == "curl" {
		cmd = newCurl() // the image links /usr/bin/curl to this program
	}
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
		os.Exit(1)
	}
}
