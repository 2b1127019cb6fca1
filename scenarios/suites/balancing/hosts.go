package balancing

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// proxy is one whose choices are watched: through its admin port it tells which hosts it knows.
type proxy struct {
	name           string // "gateway" or "agent": where load meets it
	namespace, pod string
	ip             string
}

// The proxies that load meets first, by where they stand.
const (
	atGateway = "gateway"
	atAgent   = "agent"
)

// findProxies returns the gateway's pod and the agent's. Without a mesh there are none.
func findProxies(ctx context.Context, e *env.Env) ([]proxy, error) {
	if e.Mesh.Driver() == "none" {
		return nil, nil
	}
	var out []proxy
	for _, p := range []struct{ name, namespace, selector string }{
		{atGateway, env.MeshNamespace, "istio=ingressgateway"}, {atAgent, e.Namespace("loadagent"), "app=loadagent"},
	} {
		pods, err := e.Client.Typed.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{LabelSelector: p.selector})
		if err != nil {
			return nil, fmt.Errorf("pods of %s with %s: %w", p.namespace, p.selector, err)
		}
		if len(pods.Items) != 1 {
			return nil, fmt.Errorf("%d pods of %s have %s; the scenario counts at one", len(pods.Items), p.namespace, p.selector)
		}
		out = append(out, proxy{name: p.name, namespace: p.namespace, pod: pods.Items[0].Name, ip: pods.Items[0].Status.PodIP})
	}
	return out, nil
}

// clusterHosts are the hosts of each cluster that a proxy may send to, in the order in which it has them.
type clusterHosts map[string][]string

// parseClusters reads what an admin port answers at /clusters: lines of "cluster::host::what::value". Hosts that discovery calls
// unwell are left out.
func parseClusters(data []byte) clusterHosts {
	out := clusterHosts{}
	for line := range bytes.Lines(data) {
		f := strings.SplitN(strings.TrimSpace(string(line)), "::", 4)
		if len(f) != 4 || f[2] != "health_flags" {
			continue
		}
		if flags := f[3]; strings.Contains(flags, "/failed_eds_health") || strings.Contains(flags, "/eds_status_draining") || strings.Contains(flags, "/pending_dynamic_removal") {
			continue
		}
		out[f[0]] = append(out[f[0]], f[1])
	}
	return out
}

// podsOf returns the addresses of hello's Ready pods with their names, optionally of one version.
func podsOf(ctx context.Context, e *env.Env, namespace string) (map[string]string, map[string]string, error) {
	pods, err := e.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=svc-hello"})
	if err != nil {
		return nil, nil, fmt.Errorf("pods of %s: %w", namespace, err)
	}
	names, versions := map[string]string{}, map[string]string{}
	for _, p := range pods.Items {
		if p.DeletionTimestamp != nil || p.Status.PodIP == "" {
			continue
		}
		for _, c := range p.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				addr := p.Status.PodIP + ":8080"
				names[addr], versions[addr] = p.Name, p.Labels["version"]
			}
		}
	}
	return names, versions, nil
}

// settled is what every proxy knows once all know the same pods.
type settled struct {
	at       time.Time // when the last proxy was seen to know
	pods     map[string]string
	versions map[string]string       // of addresses
	proxies  map[string]clusterHosts // by where the proxy stands
}

// settle waits until there are that many Ready pods and every proxy's cluster of every Service has just those, and returns them.
func settle(ctx context.Context, e *env.Env, namespace string, proxies []proxy, services []string, pods int) (settled, error) {
	return expect.Converge(ctx, expect.Budget{Within: 60 * time.Second, Every: 100 * time.Millisecond}, func(ctx context.Context) (settled, error) {
		s := settled{proxies: map[string]clusterHosts{}}
		var err error
		if s.pods, s.versions, err = podsOf(ctx, e, namespace); err != nil {
			return s, err
		}
		if len(s.pods) != pods {
			return s, fmt.Errorf("%d pods are Ready, not %d", len(s.pods), pods)
		}
		want := ips(slices.Collect(maps.Keys(s.pods)))
		for _, p := range proxies {
			data, err := e.Client.Admin(ctx, p.namespace, p.pod, "/clusters")
			if err != nil {
				return s, err
			}
			hosts := parseClusters(data)
			s.proxies[p.name] = hosts
			for _, svc := range services {
				name := clusterName(namespace, svc, "")
				if got := ips(hosts[name]); !slices.Equal(got, want) {
					return s, fmt.Errorf("the %s's proxy has %v in %s, not %v", p.name, got, name, want)
				}
			}
		}
		s.at = time.Now()
		return s, nil
	})
}

// ips are the addresses without their ports, sorted: Services may lead to different ports of the same pods.
func ips(addresses []string) []string {
	var out []string
	for _, a := range addresses {
		ip, _, _ := net.SplitHostPort(a)
		out = append(out, ip)
	}
	slices.Sort(out)
	return out
}

// clusterName is what Istio calls the cluster of a Service's port 8080.
func clusterName(namespace, service, subset string) string {
	return fmt.Sprintf("outbound|8080|%s|%s.%s.svc.cluster.local", subset, service, namespace)
}

// podSet names pods, sorted, for texts.
func podSet(m map[string]string) string {
	names := slices.SortedFunc(maps.Values(m), cmp.Compare)
	return strings.Join(names, ", ")
}
