package traffic

import (
	"fmt"
	"strings"
)

// helloHost is the host that hello has at the gateway.
const helloHost = "hello.example.com"

// Names of the objects that the steps change.
const (
	helloRoute   = "svc-hello"
	reviewsRoute = "reviews"
)

// helloGatewayObject lets hello through the ingress gateway; Bookinfo has a gateway of its own in its manifests.
func helloGatewayObject(namespace string) []byte {
	return fmt.Appendf(nil, `apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: hello-gateway
  namespace: %s
spec:
  selector:
    istio: ingressgateway
  servers:
  - port:
      number: 8080
      name: http
      protocol: HTTP
    hosts:
    - %s
`, namespace, helloHost)
}

// helloWeights is one rule for sidecars and gateway alike, so that one change moves both.
func helloWeights(namespace string, s step) []byte {
	return fmt.Appendf(nil, `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: %s
  namespace: %s
spec:
  hosts:
  - svc-hello
  - %s
  gateways:
  - mesh
  - hello-gateway
  http:
  - route:
%s`, helloRoute, namespace, helloHost, routes("svc-hello", s, "v1", "v2"))
}

// reviewsWeights sends the user jason to v2, whatever the weights of the others are.
func reviewsWeights(namespace string, s step) []byte {
	return fmt.Appendf(nil, `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: %s
  namespace: %s
spec:
  hosts:
  - reviews
  http:
  - match:
    - headers:
        end-user:
          exact: %s
    route:
    - destination:
        host: reviews
        subset: v2
  - route:
%s`, reviewsRoute, namespace, theUser, routes("reviews", s, "v1", "v3"))
}

func routes(host string, s step, old, new string) string {
	var b strings.Builder
	for _, r := range []struct {
		subset string
		weight int
	}{{old, s.old}, {new, s.new}} {
		fmt.Fprintf(&b, "    - destination:\n        host: %s\n        subset: %s\n      weight: %d\n", host, r.subset, r.weight)
	}
	return b.String()
}
