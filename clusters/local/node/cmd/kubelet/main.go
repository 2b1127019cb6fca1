// Command kubelet is upstream's kubelet, built from its published module.
package main

import (
	"context"
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kubelet/app"

	"github.com/meshproof/meshproof/clusters/local/node/internal/trim"
)

// The command installs its own signal handlers: a second SetupSignalContext would panic.
func main() {
	trim.Start(0)
	os.Exit(cli.Run(app.NewKubeletCommand(context.Background())))
}
