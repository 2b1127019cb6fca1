package balancing

import (
	"fmt"
	"strings"

	"github.com/meshproof/meshproof/scenarios/drive"
)

// stickyDomain is where the Services are found at the gateway.
const stickyDomain = "sticky.example.com"

// stickyServices are the Services, all over the same pods, and the gateway's door to them.
func stickyServices(namespace string, services []stickyService) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: sticky
  namespace: %s
spec:
  selector:
    istio: ingressgateway
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*.%s"]
`, namespace, stickyDomain)
	for _, s := range services {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: %s
spec:
  ports: [{port: 8080, name: http}]
  selector: {app: svc-hello}
`, s.name, namespace)
	}
	return []byte(b.String())
}

// stickyRoutes leads each Service's requests, from the gateway where its load enters there.
func stickyRoutes(namespace string, services []stickyService, weights [2]int) []byte {
	var b strings.Builder
	for i, s := range services {
		if i > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n", s.name, namespace)
		switch first := s.streams[0]; {
		case first.through:
			fmt.Fprintf(&b, "  hosts: [%s.%s]\n  gateways: [sticky]\n", s.name, stickyDomain)
		case first.source == drive.Runner:
			fmt.Fprintf(&b, "  hosts: [%s, %s.%s]\n  gateways: [mesh, sticky]\n", s.name, s.name, stickyDomain)
		default:
			fmt.Fprintf(&b, "  hosts: [%s]\n", s.name)
		}
		b.WriteString("  http:\n  - route:\n")
		if !s.weighted {
			fmt.Fprintf(&b, "    - destination: {host: %s}\n", s.name)
			continue
		}
		for v, w := range weights {
			fmt.Fprintf(&b, "    - destination: {host: %s, subset: v%d}\n      weight: %d\n", s.name, v+1, w)
		}
	}
	return []byte(b.String())
}

// stickyPolicies are the policies that the scenario proves; as a control, the same without what makes sessions stay.
func stickyPolicies(namespace string, services []stickyService, control bool) []byte {
	var b strings.Builder
	for i, s := range services {
		if i > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n  host: %s\n  trafficPolicy:\n    loadBalancer:\n",
			s.name, namespace, s.name)
		if control {
			b.WriteString("      simple: ROUND_ROBIN\n")
		} else {
			b.WriteString("      consistentHash:\n")
			switch s.by {
			case byCookie:
				fmt.Fprintf(&b, "        httpCookie:\n          name: %s\n", s.cookie)
				if s.path != "" {
					fmt.Fprintf(&b, "          path: %s\n", s.path)
				}
				fmt.Fprintf(&b, "          ttl: %ds\n", int(s.ttl.Seconds()))
			case byHeader:
				fmt.Fprintf(&b, "        httpHeaderName: %s\n", sessionHeader)
			case byQuery:
				fmt.Fprintf(&b, "        httpQueryParameterName: %s\n", sessionQuery)
			case bySource:
				b.WriteString("        useSourceIp: true\n")
			}
			if s.ring > 0 {
				fmt.Fprintf(&b, "        ringHash: {minimumRingSize: %d}\n", s.ring)
			}
			if s.table == maglev {
				fmt.Fprintf(&b, "        maglev: {tableSize: %d}\n", maglevSize)
			}
		}
		if s.weighted {
			b.WriteString("  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n")
		}
	}
	return []byte(b.String())
}
