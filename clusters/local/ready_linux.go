package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/meshproof/meshproof/clusters"
)

// waitReady returns once every cluster serves its API, has all nodes Ready, can make pods and answers DNS.
func (l *lab) waitReady(ctx context.Context, progress clusters.Progress) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range l.Clusters() {
		g.Go(func() error {
			if err := c.(*cluster).waitReady(ctx, progress); err != nil {
				return fmt.Errorf("cluster %q: %w", c.Name(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (c *cluster) waitReady(ctx context.Context, progress clusters.Progress) error {
	cfg, err := c.RESTConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	start := time.Now()
	for _, step := range []struct {
		name  string
		probe func(context.Context) error
	}{
		{"API server", func(ctx context.Context) error {
			return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		}},
		{"DNS service", func(ctx context.Context) error { return c.ensureDNS(ctx, client) }},
		{"nodes", func(ctx context.Context) error { return c.nodesReady(ctx, client) }},
		{"default service account", func(ctx context.Context) error {
			_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
			return err
		}},
		{"cluster DNS", c.dnsAnswers},
	} {
		if err := c.lab.until(ctx, step.probe); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		report(progress, "cluster", "%s: %s ready after %s", c.Name(), step.name, time.Since(start).Round(10*time.Millisecond))
	}
	return nil
}

// until tries probe until it succeeds, the lab breaks or ctx ends; the error then tells the last answer too.
func (l *lab) until(ctx context.Context, probe func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := probe(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if why := l.Broken(); why != nil {
			return why
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// ensureDNS makes the Service by which pods find CoreDNS, a process of the first node, and the slice that points there.
func (c *cluster) ensureDNS(ctx context.Context, client kubernetes.Interface) error {
	// The slice is made last: where it is, all is there.
	_, err := client.DiscoveryV1().EndpointSlices("kube-system").Get(ctx, dnsService, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	meta := metav1.ObjectMeta{Name: dnsService, Namespace: "kube-system", Labels: map[string]string{"k8s-app": dnsService, "kubernetes.io/name": "CoreDNS"}}
	var ports []corev1.ServicePort
	var endpoints []discoveryv1.EndpointPort
	for name, proto := range map[string]corev1.Protocol{"dns": corev1.ProtocolUDP, "dns-tcp": corev1.ProtocolTCP} {
		port := int32(53)
		ports = append(ports, corev1.ServicePort{Name: name, Protocol: proto, Port: port, TargetPort: intstr.FromInt32(port)})
		endpoints = append(endpoints, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port})
	}
	services := client.CoreV1().Services("kube-system")
	if _, err = services.Get(ctx, dnsService, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		_, err = services.Create(ctx, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: c.DNSIP, Ports: ports}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: dnsService, discoveryv1.LabelManagedBy: "meshproof"}
	_, err = client.DiscoveryV1().EndpointSlices("kube-system").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Ports: endpoints,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{c.Nodes[0].IP}}},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (c *cluster) nodesReady(ctx context.Context, client kubernetes.Interface) error {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	ready := map[string]bool{}
	for _, n := range list.Items {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				ready[n.Name] = true
			}
		}
	}
	for _, n := range c.Nodes {
		if !ready[n.Name] {
			return fmt.Errorf("node %s is not Ready", n.Name)
		}
	}
	return nil
}

// dnsAnswers asks through the Service, so that kube-proxy's rules are proven too.
func (c *cluster) dnsAnswers(ctx context.Context) error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.lab.DialContext(ctx, network, net.JoinHostPort(c.DNSIP, "53"))
	}}
	ctx, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	got, err := r.LookupHost(ctx, "kubernetes.default.svc."+clusterZone+".")
	if err == nil && (len(got) != 1 || got[0] != c.ServiceIP) {
		err = fmt.Errorf("kubernetes.default is %v, want %s", got, c.ServiceIP)
	}
	return err
}
