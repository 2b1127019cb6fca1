package balancing

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/reports/verdict"
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
	gateway, err := only(ctx, e, atGateway, env.MeshNamespace, "istio=ingressgateway")
	if err != nil {
		return nil, err
	}
	agent, err := only(ctx, e, atAgent, e.Namespace("loadagent"), "app=loadagent")
	if err != nil {
		return nil, err
	}
	return []proxy{gateway, agent}, nil
}

// only is the one pod that a selector picks.
func only(ctx context.Context, e *env.Env, name, namespace, selector string) (proxy, error) {
	pods, err := e.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return proxy{}, fmt.Errorf("pods of %s with %s: %w", namespace, selector, err)
	}
	if len(pods.Items) != 1 {
		return proxy{}, fmt.Errorf("%d pods of %s have %s; the scenario counts at one", len(pods.Items), namespace, selector)
	}
	return proxy{name: name, namespace: namespace, pod: pods.Items[0].Name, ip: pods.Items[0].Status.PodIP}, nil
}

// agents waits until there are n Ready load agents, and returns them by where they stand.
func agents(ctx context.Context, e *env.Env, n int) ([]proxy, error) {
	namespace := e.Namespace("loadagent")
	return expect.Converge(ctx, expect.Budget{Within: settleWithin}, func(ctx context.Context) ([]proxy, error) {
		pods, err := e.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=loadagent"})
		if err != nil {
			return nil, fmt.Errorf("pods of %s: %w", namespace, err)
		}
		var out []proxy
		for _, p := range pods.Items {
			if ready(p) {
				out = append(out, proxy{name: agentAt(len(out)), namespace: namespace, pod: p.Name, ip: p.Status.PodIP})
			}
		}
		if len(out) != n {
			return out, fmt.Errorf("%d load agents are Ready, not %d", len(out), n)
		}
		return out, nil
	})
}

// agentAt names the place of an agent, from 0.
func agentAt(i int) string {
	if i == 0 {
		return atAgent
	}
	return fmt.Sprintf("%s %d", atAgent, i+1)
}

func ready(p corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.PodIP != "" && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
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

// podsOf returns the addresses of hello's Ready pods with their names, and their versions.
func podsOf(ctx context.Context, e *env.Env, namespace string) (map[string]string, map[string]string, error) {
	pods, err := e.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=svc-hello"})
	if err != nil {
		return nil, nil, fmt.Errorf("pods of %s: %w", namespace, err)
	}
	names, versions := map[string]string{}, map[string]string{}
	for _, p := range pods.Items {
		if ready(p) {
			addr := p.Status.PodIP + ":8080"
			names[addr], versions[addr] = p.Name, p.Labels["version"]
		}
	}
	return names, versions, nil
}

// settled is what every proxy knows once all know the same pods, or, where they do not in time, as far as they do.
type settled struct {
	at       time.Time // when the last proxy was seen to know; zero if one was not
	ready    time.Time // when just as many pods as are wanted were seen Ready; zero if they were not
	pods     map[string]string
	versions map[string]string       // of addresses
	proxies  map[string]clusterHosts // by where the proxy stands
	known    map[string]time.Time    // when a proxy was first seen to know all of these pods, by where it stands
}

// part is one cluster of a Service: of all its hosts, or of those of a version.
type part struct{ service, version string }

func (p part) cluster(namespace string) string { return clusterName(namespace, p.service, p.version) }

// wholes are the clusters of all hosts of the Services.
func wholes(services []string) []part {
	var out []part
	for _, s := range services {
		out = append(out, part{service: s})
	}
	return out
}

// behindError says that a proxy does not know the hosts that there are.
type behindError struct {
	proxy, cluster string
	got, want      []string
}

func (e *behindError) Error() string {
	return fmt.Sprintf("the %s's proxy has %v in %s, not %v", e.proxy, e.got, e.cluster, e.want)
}

// settleWithin is how long pods may take to be Ready and known. Seen: three seconds.
const settleWithin = 60 * time.Second

// settle waits until there are that many Ready pods and every proxy's cluster of every Service has just those, and returns them.
func settle(ctx context.Context, e *env.Env, namespace string, proxies []proxy, services []string, pods int) (settled, error) {
	return settleParts(ctx, e, namespace, proxies, wholes(services), pods)
}

// settleParts is settle for clusters of versions, too. What is known when the time is over comes with the error.
func settleParts(ctx context.Context, e *env.Env, namespace string, proxies []proxy, parts []part, pods int) (settled, error) {
	s := settled{proxies: map[string]clusterHosts{}, known: map[string]time.Time{}}
	_, err := expect.Converge(ctx, expect.Budget{Within: settleWithin, Every: 100 * time.Millisecond}, func(ctx context.Context) (struct{}, error) {
		names, versions, err := podsOf(ctx, e, namespace)
		if err != nil {
			return struct{}{}, err
		}
		if err := s.see(names, versions, pods, time.Now()); err != nil {
			return struct{}{}, err
		}
		var behind error
		for _, p := range proxies {
			data, err := e.Client.Admin(ctx, p.namespace, p.pod, "/clusters")
			if err != nil {
				return struct{}{}, err
			}
			behind = errors.Join(behind, s.hear(namespace, p.name, parseClusters(data), parts, time.Now()))
		}
		if behind == nil {
			s.at = time.Now()
		}
		return struct{}{}, behind
	})
	return s, err
}

// see notes which pods are Ready; others than before are new to every proxy.
func (s *settled) see(pods, versions map[string]string, want int, at time.Time) error {
	if !maps.Equal(pods, s.pods) {
		s.pods, s.versions, s.ready = pods, versions, time.Time{}
		clear(s.known)
	}
	if len(pods) != want {
		return fmt.Errorf("%d pods are Ready, not %d", len(pods), want)
	}
	if s.ready.IsZero() {
		s.ready = at
	}
	return nil
}

// hear notes which hosts a proxy has; a behindError says that they are not the Ready pods.
func (s *settled) hear(namespace, name string, hosts clusterHosts, parts []part, at time.Time) error {
	s.proxies[name] = hosts
	for _, p := range parts {
		var addresses []string
		for addr, version := range s.versions {
			if p.version == "" || p.version == version {
				addresses = append(addresses, addr)
			}
		}
		if want, got := ips(addresses), ips(hosts[p.cluster(namespace)]); !slices.Equal(got, want) {
			delete(s.known, name)
			return &behindError{proxy: name, cluster: p.cluster(namespace), got: got, want: want}
		}
	}
	if s.known[name].IsZero() {
		s.known[name] = at
	}
	return nil
}

// acks are when each proxy was seen to know the pods.
func (s *settled) acks() []verdict.ProxyAck {
	var out []verdict.ProxyAck
	for _, name := range slices.Sorted(maps.Keys(s.proxies)) {
		at, ok := s.known[name]
		out = append(out, verdict.ProxyAck{Proxy: name, Acked: ok, At: at})
	}
	return out
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
