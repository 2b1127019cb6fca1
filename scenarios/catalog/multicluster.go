package catalog

import (
	"time"

	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/suites/multicluster"
)

// twoClusters is the shop over two clusters, in a lab of one network or of two.
func twoClusters(id, title, file string) Scenario {
	return Scenario{
		ID: id, Title: title, Lab: file,
		Proves: "A shop of ten services whose parts stand in two clusters works as one: calls find the other cluster by mutual TLS, fail over " +
			"when the link is cut and return when it is healed, and go on without a control plane.",
		Area:      "multicluster",
		Features:  []Feature{MultiCluster, LocalityFailover, MutualTLS, IngressGateway},
		Isolation: Exclusive,
		Budget:    map[lab.Profile]time.Duration{lab.Quick: 4 * time.Minute, lab.Nightly: 10 * time.Minute, lab.Soak: time.Hour},
		Claims: []string{
			"visits of browse, cart and checkout work end to end, with parts in both clusters",
			"calls are answered in the cluster that is preferred",
			"a service that is made in one cluster answers from the other in time",
			"with the link cut the copies in the other cluster take over, in time and with few failures, and hand back after it is healed",
			"every byte on the link is TLS, by a capture; between networks only gateways and API servers are called",
			"the proxies that are called saw mutual TLS from the right identities",
			"nothing is lost without a control plane",
		},
		Key: "failover/time",
		Run: multicluster.Boutique,
	}
}
