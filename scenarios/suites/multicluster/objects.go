package multicluster

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// spread says which Deployments stand in the first and in the second cluster. What keeps carts and what recommends stands in both;
// the copies in the first cluster stand by.
func spread() (first, second []string) {
	first = []string{
		frontendApp, "productcatalogservice", "currencyservice", "shippingservice", "paymentservice", "emailservice", "checkoutservice", "adservice",
		cartApp, storeApp, recommendApp,
	}
	return first, []string{cartApp, storeApp, recommendApp}
}

// door lets the gateway in to the shop.
func door(namespace string) []byte {
	return fmt.Appendf(nil, `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: boutique, namespace: %s}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: boutique, namespace: %[1]s}
spec:
  hosts: ["*"]
  gateways: [boutique]
  http:
  - route:
    - destination: {host: frontend, port: {number: 80}}
`, namespace)
}

// policies say that carts and recommendations come from the second cluster as long as it answers, else from the first; each
// cluster's carts lie in its own store.
func policies(namespace, second string, pl plan) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  host: %[2]s
  trafficPolicy:
    loadBalancer:
      localityLbSetting:
        failoverPriority: ["topology.istio.io/cluster"]
%[3]s`, namespace, storeApp, outlier(pl))
	for _, host := range []string{cartApp, recommendApp} {
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  host: %[2]s
  trafficPolicy:
    connectionPool:
      tcp: {connectTimeout: %[4]s}
    loadBalancer:
      localityLbSetting:
        failoverPriority: ["topology.istio.io/cluster=%[3]s"]
%[5]s---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  hosts: [%[2]s]
  http:
  - retries: {attempts: 1, perTryTimeout: %[4]s, retryOn: connect-failure}
    route:
    - destination: {host: %[2]s}
`, namespace, host, second, pl.callTimeout, outlier(pl))
	}
	return []byte(b.String())
}

func outlier(pl plan) string {
	return fmt.Sprintf(`    outlierDetection:
      consecutiveGatewayErrors: %d
      consecutive5xxErrors: 0
      interval: %s
      baseEjectionTime: %s
      maxEjectionPercent: 100
`, pl.errors, pl.interval, pl.baseEjection)
}

// newDeployment is a workload that nothing leads to yet.
func newDeployment(namespace, tag, cluster string) []byte {
	return fmt.Appendf(nil, `apiVersion: apps/v1
kind: Deployment
metadata:
  name: %[2]s
  namespace: %[1]s
  labels: {app: %[2]s}
spec:
  replicas: 1
  selector:
    matchLabels: {app: %[2]s}
  template:
    metadata:
      labels: {app: %[2]s, version: v1}
    spec:
      containers:
      - name: server
        image: meshproof.dev/app:%[3]s
        imagePullPolicy: IfNotPresent
        args: [hello, --version=v1, "--listen=:8080", --cluster=%[4]s]
        env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        ports:
        - {containerPort: 8080, name: http}
        readinessProbe:
          httpGet: {path: /health, port: 8080}
          periodSeconds: 1
        securityContext: {runAsUser: 1000, runAsNonRoot: true, allowPrivilegeEscalation: false}
`, namespace, newService, tag, cluster)
}

// probedService is a Service that nobody in the shop calls, in the first cluster alone.
const probedService = "probed"

// serviceObject is a Service that leads to that workload. Every cluster needs one that is called by its name, so that it resolves there.
func serviceObject(namespace, name string, kind corev1.ServiceType) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Service
metadata:
  name: %[2]s
  namespace: %[1]s
spec:
  type: %[3]s
  ports: [{port: 8080, name: http}]
  selector: {app: %[4]s}
`, namespace, name, kind, newService)
}
