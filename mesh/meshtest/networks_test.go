package meshtest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// twoNetworks is a client in the control plane's cluster and network, and reviews in another's, behind an east-west gateway.
func twoNetworks(t *testing.T) (m *Mesh, client, gateway *Workload) {
	t.Helper()
	const far = "two"
	m = New(t, services+"---"+subsets+`---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network-gateway, namespace: istio-system}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - port: {number: 15443, name: tls, protocol: TLS}
    tls: {mode: AUTO_PASSTHROUGH}
    hosts: ["*.local"]
`)
	label := func(network string) map[string]string { return map[string]string{"topology.istio.io/network": network} }
	m.Record(clusterID, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: label("network1")}})
	m.Record(far, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: label("network2")}})
	for _, v := range []string{"v1", "v2"} {
		m.Add(&Workload{Name: "reviews-" + v, Cluster: far, Labels: map[string]string{"app": "reviews", "version": v}, ServiceAccount: "reviews", Handler: echo(v)})
	}
	client = m.Add(&Workload{Name: "productpage", Labels: map[string]string{"app": "productpage"}, ServiceAccount: "productpage"})
	gateway = m.Add(&Workload{
		Name: "eastwest", Namespace: "istio-system", Cluster: far, Gateway: true, Labels: map[string]string{"istio": "eastwestgateway"},
		Metadata: map[string]any{"ROUTER_MODE": "sni-dnat", "NETWORK": "network2", "REQUESTED_NETWORK_VIEW": "network2"},
	})
	m.Record(far, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-eastwestgateway", Labels: label("network2")},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.97.0.1", Selector: map[string]string{"istio": "eastwestgateway"},
			Ports: []corev1.ServicePort{{Name: "tls", Port: 15443}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: gateway.IP}}}},
	})
	m.Acked()
	return m, client, gateway
}

// TestAcrossNetworks: requests for endpoints of another network go through its gateway, by subset and mutual TLS from end to end.
// A caller in that network still goes straight.
func TestAcrossNetworks(t *testing.T) {
	m, client, gateway := twoNetworks(t)
	m.Apply(split(50, 50))
	m.Acked()
	if got := share(t, client.Client(), 100); got["v1"] == 0 || got["v2"] == 0 { // one in 2^99
		t.Errorf("of 100 requests, half for each subset, %v", got)
	}
	m.Apply(split(0, 100))
	m.Acked()
	if got := share(t, client.Client(), 20); got["v2"] != 20 {
		t.Errorf("20 requests for subset v2 went to %v", got)
	}
	resp, _ := call(t, client.Client(), "http://reviews:9080/")
	if x := resp.Header.Get("x-xfcc"); !strings.Contains(x, "By=spiffe://cluster.local/ns/default/sa/reviews") || !strings.Contains(x, "URI=spiffe://cluster.local/ns/default/sa/productpage") {
		t.Errorf("the client's certificate did not come through: %q", x)
	}
	if n := connections(t, gateway); n == 0 {
		t.Error("no connection passed the gateway")
	}
	near := m.Add(&Workload{Name: "near", Cluster: "two", Labels: map[string]string{"app": "near"}})
	m.Acked()
	before := connections(t, gateway)
	if got := share(t, near.Client(), 20); got["v2"] != 20 {
		t.Errorf("20 requests from within the network went to %v", got)
	}
	if after := connections(t, gateway); after != before {
		t.Errorf("a caller in the network made %d connections through its gateway", after-before)
	}
}

// connections is how many a workload's proxy has accepted.
func connections(t *testing.T, w *Workload) int {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	_, body := call(t, &http.Client{Transport: tr}, "http://"+w.IP+":15000/stats")
	for line := range strings.Lines(body) {
		var n int
		if _, err := fmt.Sscanf(line, "listener_manager.downstream_cx_total: %d", &n); err == nil {
			return n
		}
	}
	t.Fatalf("no count of connections in:\n%s", body)
	return 0
}
