package cli

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]forwardTarget{
		"api":                       {},
		"gateway":                   {service: "istio-ingressgateway", namespace: "istio-system", port: 80},
		"productpage.bookinfo":      {service: "productpage", namespace: "bookinfo"},
		"productpage.bookinfo:9080": {service: "productpage", namespace: "bookinfo", port: 9080},
		"a.b.svc.cluster.local:1":   {service: "a", namespace: "b", port: 1},
		"east-2:31080":              {node: "east-2", port: 31080},
		"10.30.0.12:31080":          {node: "10.30.0.12", port: 31080},
	} {
		want.text = text
		if got, err := parseTarget(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "productpage", ":80", "east-2:", "east-2:http", ".b", "a."} {
		if got, err := parseTarget(text); err == nil {
			t.Errorf("%q is taken as %+v", text, got)
		}
	}
}

func TestNodeAddress(t *testing.T) {
	k := fake.NewClientset(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "east-2"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "east-2"}, {Type: corev1.NodeInternalIP, Address: "10.30.0.12"},
		}},
	})
	for _, node := range []string{"east-2", "10.30.0.12"} {
		if got, err := nodeAddress(t.Context(), k, node); err != nil || got != "10.30.0.12" {
			t.Errorf("%s: %q, %v", node, got, err)
		}
	}
	if _, err := nodeAddress(t.Context(), k, "east-9"); err == nil || !strings.Contains(err.Error(), "there are east-2") {
		t.Errorf("a node that is not there: %v", err)
	}
}
