package clustertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/e2e-framework/klient/wait"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/kube"
)

const balancedManifest = `
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

// balancer makes a Service of type LoadBalancer of the echo pods and reaches it from all sides.
func (s *suite) balancer(t *testing.T) {
	if s.cluster.LoadBalancerIPs() == "" {
		t.Log("this provider has no load balancers")
		return
	}
	ip := s.balanced(t)
	// From a host beside the nodes, and from a pod, for whom kube-proxy shortens the way.
	s.everyPod(t, "load balancer "+ip, func(ctx context.Context) (string, error) { return httpGet(ctx, "http://"+ip, s.lab.DialContext) })
	s.everyPod(t, "load balancer from a pod", func(ctx context.Context) (string, error) { return s.run(ctx, "get", "http://"+ip) })
	if conn, err := s.dial(t, ip+":81"); err == nil {
		_ = conn.Close()
		t.Error("a port that the Service does not have accepts connections")
	}
	s.local(t, ip)
	if b, ok := s.cluster.(clusters.Balanced); ok {
		s.host(t, b, ip)
	}
	other := s.release(t, ip)
	if other == ip {
		t.Errorf("the address %s is given out again at once", ip)
	}
}

// balanced applies the Service and returns its address once it has one.
func (s *suite) balanced(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	if _, err := s.kube.Apply(ctx, namespace, kube.Manifest{Name: "balanced.yaml", YAML: []byte(balancedManifest)}); err != nil {
		t.Fatal(err)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "balanced"}}
	err := s.match(ctx, svc, func() bool {
		in := svc.Status.LoadBalancer.Ingress
		return len(in) > 0 && in[0].IP != ""
	}, func() any { return svc.Status })
	if err != nil {
		t.Fatalf("the Service gets no address: %v", err)
	}
	ip := svc.Status.LoadBalancer.Ingress[0].IP
	addr, err := netip.ParseAddr(ip)
	if err != nil || !netip.MustParsePrefix(s.cluster.LoadBalancerIPs()).Contains(addr) {
		t.Fatalf("address %q is not in %s", ip, s.cluster.LoadBalancerIPs())
	}
	return ip
}

func (s *suite) dial(t *testing.T, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	return s.lab.DialContext(ctx, "tcp", addr)
}

// local narrows the Service to the pod of one node: with externalTrafficPolicy Local it still answers every time, from there.
func (s *suite) local(t *testing.T, ip string) {
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	api := s.kube.Typed.CoreV1()
	pod := s.podNames[0]
	for _, p := range s.podNames[1:] {
		if _, err := api.Pods(namespace).Patch(ctx, p, types.MergePatchType, []byte(`{"metadata":{"labels":{"picked":"no"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.Pods(namespace).Patch(ctx, pod, types.MergePatchType, []byte(`{"metadata":{"labels":{"picked":"yes"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"spec":{"externalTrafficPolicy":"Local","selector":{"app":"echo","picked":"yes"}}}`)
	if _, err := api.Services(namespace).Patch(ctx, "balanced", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	// Until controller and kube-proxies have taken note, others may answer, or nobody; then it is this pod alone.
	const settled = 20
	row, last := 0, ""
	err := wait.For(func(ctx context.Context) (bool, error) {
		got, err := httpGet(ctx, "http://"+ip, s.lab.DialContext)
		if err != nil || got != pod {
			row, last = 0, fmt.Sprintf("%s (%v)", got, err)
			return false, nil
		}
		row++
		return row == settled, nil
	}, often(ctx, budget)...)
	if err != nil {
		t.Fatalf("with externalTrafficPolicy Local %s answers last, want %s %d times in a row: %v", last, pod, settled, err)
	}
}

// host reaches the Service at its port of 127.0.0.1.
func (s *suite) host(t *testing.T, b clusters.Balanced, ip string) {
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	var got clusters.LoadBalancer
	Eventually(t, budget, func() error {
		list, err := b.LoadBalancers()
		i := slices.IndexFunc(list, func(lb clusters.LoadBalancer) bool { return lb.Namespace == namespace && lb.Service == "balanced" })
		if err != nil {
			return err
		}
		if i < 0 {
			return fmt.Errorf("load balancers of this host: %+v; want clustertest/balanced", list)
		}
		got = list[i]
		return nil
	})
	if got.IP != ip || len(got.Ports) != 1 || got.Ports[0].Port != 80 || got.Ports[0].Local == "" {
		t.Fatalf("load balancer %+v, want address %s and port 80 with an address on this host", got, ip)
	}
	if name, err := httpGet(ctx, "http://"+got.Ports[0].Local, nil); err != nil || name != s.podNames[0] {
		t.Errorf("%s: %q, %v; want %s", got.Ports[0].Local, name, err, s.podNames[0])
	}
}

// release deletes the Service, finds that its address is unreachable then, and returns the address of the next one.
func (s *suite) release(t *testing.T, ip string) string {
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	gone := kube.Manifest{Name: "balanced.yaml", YAML: []byte(balancedManifest)}
	if err := s.kube.Delete(ctx, namespace, gone); err != nil {
		t.Fatal(err)
	}
	Eventually(t, budget, func() error {
		conn, err := s.dial(t, ip+":80")
		if err != nil {
			return nil
		}
		return errors.Join(fmt.Errorf("%s accepts connections although its Service is gone", ip), conn.Close())
	})
	next := s.balanced(t)
	if err := s.kube.Delete(ctx, namespace, gone); err != nil {
		t.Error(err)
	}
	return next
}
