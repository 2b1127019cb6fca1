// Command kube-apiserver is upstream's kube-apiserver, built from its published module.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"

	"github.com/meshproof/meshproof/clusters/local/node/internal/trim"
)

func main() {
	trim.Start(0)
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
