// Command meshd is the control plane of the bundled mesh.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/cmd/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshd:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "meshd", Short: "Control plane of the bundled mesh", Version: version.Version, SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(discoveryCommand(), operatorCommand())
	return root
}
