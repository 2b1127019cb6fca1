// Command meshproxy is the data plane: a sidecar, a gateway, the redirect rules of a pod, and a client of its own admin port.
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
		fmt.Fprintln(os.Stderr, "meshproxy:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "meshproxy", Short: "Data plane of the bundled mesh", Version: version.Version, SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(
		runCommand("sidecar", "sidecar", "Serve beside a workload"),
		runCommand("gateway", "router", "Serve at the edge of the mesh"),
		initCommand(), requestCommand(),
	)
	return root
}
