// Command coredns is upstream's CoreDNS with the plugins that a lab's Corefile names and no others.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"

	"github.com/meshproof/meshproof/clusters/local/node/internal/trim"
)

// Directives order the handlers of a server block; upstream's list also names plugins that are not linked here.
func main() {
	trim.Start(20)
	dnsserver.Directives = []string{"reload", "errors", "health", "ready", "loop", "cache", "kubernetes"}
	coremain.Run()
}
