package translate

import (
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// l4Target is where connections go that are passed on as bytes.
type l4Target struct {
	stat     string
	clusters []*tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight
	bySource bool // hosts are chosen by the caller's address
	idle     *durationpb.Duration
}

func (t l4Target) filter(m model.Mesh) *listenerv3.Filter {
	p := &tcpproxyv3.TcpProxy{StatPrefix: t.stat, IdleTimeout: t.idle, AccessLog: accessLog(m)}
	if len(t.clusters) == 1 {
		p.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: t.clusters[0].Name}
	} else {
		p.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: &tcpproxyv3.TcpProxy_WeightedCluster{Clusters: t.clusters}}
	}
	if t.bySource {
		p.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	return filter("envoy.filters.network.tcp_proxy", p)
}

// text stands for a target in keys.
func (t l4Target) text() string {
	var b strings.Builder
	b.WriteString(t.stat)
	for _, c := range t.clusters {
		fmt.Fprintf(&b, "\n%s %d", c.Name, c.Weight)
	}
	if t.bySource || t.idle != nil {
		fmt.Fprintf(&b, "\n%t %t %v", t.bySource, t.idle != nil, t.idle.AsDuration())
	}
	return b.String()
}

func singleCluster(name string) l4Target {
	return l4Target{stat: name, clusters: []*tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{{Name: name}}}
}

// withPolicy adds what the rule of a destination says of connections to it.
func (o *outbound) withPolicy(t l4Target, host, subset string, port uint32) l4Target {
	if svc := o.service(host); svc != nil {
		p := policyOf(o.s.DestinationRule(o.scope.namespace, host, svc.Namespace), subset, port)
		t.bySource = p.GetLoadBalancer().GetConsistentHash().GetUseSourceIp()
		t.idle = p.GetConnectionPool().GetTcp().GetIdleTimeout()
	}
	return t
}

// l4Service is a port of a service as a target.
func (o *outbound) l4Service(svc *model.Service, p model.Port) l4Target {
	return o.withPolicy(singleCluster(clusterName(p.Number, "", svc.Hostname)), svc.Hostname, "", p.Number)
}

// l4Route is the destinations of a rule as a target. What holds for all connections of several is what the first one's rule says.
func (o *outbound) l4Route(vs *model.VirtualService, routes []*networking.RouteDestination, port uint32) l4Target {
	first := routes[0].Destination
	t := singleCluster(o.destination(vs, first, port))
	if len(routes) > 1 {
		t.stat, t.clusters = vs.Key.Name+"."+vs.Key.Namespace, nil
		for _, r := range routes {
			if r.Weight > 0 {
				t.clusters = append(t.clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{
					Name: o.destination(vs, r.Destination, port), Weight: uint32(r.Weight),
				})
			}
		}
	}
	return o.withPolicy(t, o.s.Mesh.Resolve(first.Host, vs.Key.Namespace), first.Subset, o.destinationPort(vs, first, port))
}

// covers tells whether a rule is for a host.
func covers(vs *model.VirtualService, host string) bool {
	return slices.ContainsFunc(vs.Hosts, func(h string) bool { return hostMatches(h, host) })
}

// tcpTarget is where connections to a port go: to the destinations of the first tcp rule that holds for it, else to the service.
func (o *outbound) tcpTarget(svc *model.Service, p model.Port) l4Target {
	for _, vs := range o.l4 {
		if !covers(vs, svc.Hostname) {
			continue
		}
		for _, r := range vs.Spec.Spec.Tcp {
			if len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m *networking.L4MatchAttributes) bool {
				return (m.Port == 0 || m.Port == p.Number) && o.sourceMatches(vs, m.SourceLabels, m.SourceNamespace, m.Gateways, "mesh")
			}) {
				return o.l4Route(vs, r.Route, p.Number)
			}
		}
	}
	return o.l4Service(svc, p)
}

// tlsChains are the filter chains of a TLS port whose connections rules tell apart by SNI; nil without such a rule.
func (o *outbound) tlsChains(svc *model.Service, p model.Port) []*listenerv3.FilterChain {
	var out []*listenerv3.FilterChain
	seen := map[string]bool{}
	for _, vs := range o.l4 {
		if !covers(vs, svc.Hostname) {
			continue
		}
		for _, r := range vs.Spec.Spec.Tls {
			for _, m := range r.Match {
				if m.Port != 0 && m.Port != p.Number || !o.sourceMatches(vs, m.SourceLabels, m.SourceNamespace, m.Gateways, "mesh") {
					continue
				}
				names := unseen(m.SniHosts, seen)
				if len(names) == 0 {
					continue // an older match has them all
				}
				out = append(out, &listenerv3.FilterChain{
					FilterChainMatch: sniMatch(names, nil), Filters: []*listenerv3.Filter{o.l4Route(vs, r.Route, p.Number).filter(o.s.Mesh)},
				})
			}
		}
	}
	return out
}

// unseen gives the names that are not in seen, and puts them there. "*" stands for every name.
func unseen(names []string, seen map[string]bool) []string {
	if slices.Contains(names, "*") {
		names = []string{"*"}
	}
	var out []string
	for _, n := range names {
		n = strings.ToLower(n)
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// sniMatch takes connections with one of the names, or any when "*" is among them.
func sniMatch(names, alpn []string) *listenerv3.FilterChainMatch {
	m := &listenerv3.FilterChainMatch{ApplicationProtocols: alpn}
	if !slices.Contains(names, "*") {
		m.ServerNames = slices.Sorted(slices.Values(names))
	}
	return m
}
