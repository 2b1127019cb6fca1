package balancer

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPool(t *testing.T) {
	p := pool{prefix: netip.MustParsePrefix("10.64.0.0/29"), last: netip.MustParseAddr("10.64.0.0")}
	for _, s := range []struct {
		service, wanted string
		got             string // address, or words of the error
	}{
		{"a", "", "10.64.0.1"},
		{"b", "", "10.64.0.2"},
		{"a", "", "10.64.0.1"},
		{"c", "10.64.0.6", "10.64.0.6"},
		{"d", "10.64.0.6", "10.64.0.6 belongs to Service ns/c"},
		{"d", "10.64.0.7", "is not one of 10.64.0.0/29"}, // broadcast
		{"d", "10.64.0.0", "is not one of"},
		{"d", "10.64.1.1", "is not one of"},
		{"d", "elsewhere", `"elsewhere" is not one of`},
		{"d", "", "10.64.0.3"},
		{"-b", "", ""},
		{"e", "", "10.64.0.4"}, // b's rests
		{"f", "", "10.64.0.5"},
		{"g", "", "10.64.0.2"},
		{"h", "", "all addresses of 10.64.0.0/29 are taken"},
		{"a", "10.64.0.2", "belongs to Service ns/g"},
		{"a", "10.64.0.1", "10.64.0.1"},
	} {
		if name, gone := strings.CutPrefix(s.service, "-"); gone {
			keep := map[key]bool{}
			for k := range p.given {
				keep[k] = k.name != name
			}
			p.retain(keep)
			continue
		}
		ip, err := p.address(key{"ns", s.service}, s.wanted)
		if err != nil && !strings.Contains(err.Error(), s.got) || err == nil && ip.String() != s.got {
			t.Errorf("address of %s, wanted %q: %s, %v; want %s", s.service, s.wanted, ip, err, s.got)
		}
	}
}

func TestTargets(t *testing.T) {
	yes, no := true, false
	end := func(node string, ready, serving *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving}}
	}
	for name, c := range map[string]struct {
		policy    corev1.ServiceExternalTrafficPolicy
		endpoints []discoveryv1.Endpoint
		want      []int
	}{
		"cluster, without endpoints": {corev1.ServiceExternalTrafficPolicyCluster, nil, []int{0, 1, 2}},
		"local, without endpoints":   {corev1.ServiceExternalTrafficPolicyLocal, nil, nil},
		"local":                      {corev1.ServiceExternalTrafficPolicyLocal, []discoveryv1.Endpoint{end("n-3", &yes, &yes), end("n-1", nil, nil), end("n-1", &yes, nil)}, []int{0, 2}},
		"local, none ready":          {corev1.ServiceExternalTrafficPolicyLocal, []discoveryv1.Endpoint{end("n-2", &no, &no)}, nil},
		"local, ending":              {corev1.ServiceExternalTrafficPolicyLocal, []discoveryv1.Endpoint{end("n-2", &no, &yes)}, []int{1}},
		"local, ending and ready":    {corev1.ServiceExternalTrafficPolicyLocal, []discoveryv1.Endpoint{end("n-2", &no, &yes), end("n-1", &yes, &yes)}, []int{0}},
		"local, of another cluster":  {corev1.ServiceExternalTrafficPolicyLocal, []discoveryv1.Endpoint{end("west-1", &yes, &yes), {}}, nil},
	} {
		s := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: c.policy}}
		got := targets(s, []*discoveryv1.EndpointSlice{{Endpoints: c.endpoints}}, []string{"n-1", "n-2", "n-3"})
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestOurs(t *testing.T) {
	class, now := "example.org/other", metav1.Now()
	for name, c := range map[string]struct {
		s    corev1.Service
		want bool
	}{
		"load balancer": {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}, true},
		"cluster IP":    {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP}}, false},
		"other class":   {corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class}}, false},
		"going":         {corev1.Service{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}, false},
	} {
		if got := ours(&c.s); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
