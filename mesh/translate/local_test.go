package translate

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/model"
)

// A pod that calls the API server must reach that of its own cluster: the other would not know its token.
func TestClusterLocalService(t *testing.T) {
	b := model.NewBuilder(model.Mesh{DomainSuffix: "cluster.local", RootNamespace: "istio-system", ClusterID: "control"}, time.Now)
	for cluster, ips := range map[string][2]string{"control": {"10.96.0.1", "10.30.0.11"}, "remote": {"10.97.0.1", "10.30.1.11"}} {
		for _, name := range []string{"kubernetes", "hello"} {
			m := metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: name}}
			b.SetIn(cluster, &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{ClusterIP: ips[0], Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}})
			b.SetIn(cluster, &discoveryv1.EndpointSlice{
				ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ips[1]}}},
				Ports: []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(6443))}},
			})
		}
	}
	s := b.Build()
	for _, tt := range []struct {
		cluster, service string
		want             []string
	}{
		{"control", "kubernetes", []string{"10.30.0.11"}},
		{"remote", "kubernetes", []string{"10.30.1.11"}},
		{"", "kubernetes", []string{"10.30.0.11"}},
		{"control", "hello", []string{"10.30.0.11", "10.30.1.11"}},
		{"remote", "hello", []string{"10.30.0.11", "10.30.1.11"}},
	} {
		set, err := Translate(s, model.ProxyView{Type: model.Sidecar, ID: "p.default", Pod: "p", IP: "10.0.0.9", Namespace: "default", ClusterID: tt.cluster})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, cla := range set.Endpoints {
			if cla.ClusterName != "outbound|443||"+tt.service+".default.svc.cluster.local" {
				continue
			}
			for _, l := range cla.Endpoints {
				for _, e := range l.LbEndpoints {
					got = append(got, e.GetEndpoint().Address.GetSocketAddress().Address)
				}
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s from %q (-want +got):\n%s", tt.service, tt.cluster, d)
		}
	}
}
