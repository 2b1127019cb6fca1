// Command containerd is upstream's containerd with its built-in plugins.
package main

import (
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/cmd/containerd/command"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"

	"github.com/meshproof/meshproof/clusters/local/node/internal/trim"
)

func main() {
	trim.Start(0)
	if err := command.App().Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}
