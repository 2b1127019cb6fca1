package translate

import (
	"cmp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// endpointKey is all that the endpoints of a service's clusters depend on.
type endpointKey struct {
	svc  *model.Service
	rule *model.DestinationRule
	eps  *model.Endpoints
	from place
	dnat bool
}

var noEndpoints = &model.Endpoints{}

// assigner makes the endpoints of one service as a caller at a place sees them.
type assigner struct {
	mesh   model.Mesh
	nets   *networks
	from   place
	labels map[string]string // of the caller
	local  bool              // only the caller's own cluster counts
	dnat   bool              // for the clusters that mutual TLS is passed on to by SNI
}

// assignments gives the endpoints of every cluster of a service.
func (a *assigner) assignments(svc *model.Service, rule *model.DestinationRule, eps *model.Endpoints) []*endpointv3.ClusterLoadAssignment {
	var out []*endpointv3.ClusterLoadAssignment
	name := clusterName
	if a.dnat {
		name = sniOf
	}
	a.local = svc.ClusterLocal
	for _, p := range svc.Ports {
		if p.Protocol == model.UDP {
			continue
		}
		out = append(out, a.assignment(name(p.Number, "", svc.Hostname), eps.ByPort[p.Name], policyOf(rule, "", p.Number)))
		if rule == nil {
			continue
		}
		for _, sub := range rule.Spec.Spec.Subsets {
			of := slices.DeleteFunc(slices.Clone(eps.ByPort[p.Name]), func(e *model.Endpoint) bool {
				return e.Pod == nil || !hasLabels(e, sub.Labels)
			})
			out = append(out, a.assignment(name(p.Number, sub.Name, svc.Hostname), of, policyOf(rule, sub.Name, p.Number)))
		}
	}
	return out
}

// group is the endpoints of one locality that have one priority.
type group struct {
	region, zone, subZone string
	of                    []*model.Endpoint // what each of lb is, at the same index
	lb                    []*endpointv3.LbEndpoint
	weight                uint32
	priority              uint32
}

func (a *assigner) assignment(name string, eps []*model.Endpoint, policy *networking.TrafficPolicy) *endpointv3.ClusterLoadAssignment {
	groups := a.groups(eps, policy.GetTls())
	if s := localitySetting(policy); s != nil {
		groups = a.prefer(groups, s, policy.GetOutlierDetection() != nil)
	}
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for _, g := range groups {
		cla.Endpoints = append(cla.Endpoints, &endpointv3.LocalityLbEndpoints{
			Locality:            &corev3.Locality{Region: g.region, Zone: g.zone, SubZone: g.subZone},
			LbEndpoints:         g.lb,
			LoadBalancingWeight: wrapperspb.UInt32(g.weight),
			Priority:            g.priority,
		})
	}
	return cla
}

// groups sorts endpoints by locality, with those of networks that the caller does not reach replaced by their gateways.
func (a *assigner) groups(eps []*model.Endpoint, tls *networking.ClientTLSSettings) []*group {
	var out []*group
	for _, e := range eps {
		if a.local && e.Cluster != a.from.cluster || !a.from.sees(e.Network) || a.dnat && !takesMutualTLS(e, tls) {
			continue
		}
		i, found := slices.BinarySearchFunc(out, e, func(g *group, e *model.Endpoint) int {
			return cmp.Or(cmp.Compare(g.region, e.Region), cmp.Compare(g.zone, e.Zone), cmp.Compare(g.subZone, e.SubZone))
		})
		if !found {
			out = slices.Insert(out, i, &group{region: e.Region, zone: e.Zone, subZone: e.SubZone})
		}
		out[i].of = append(out[i].of, e)
	}
	out = slices.DeleteFunc(out, func(g *group) bool {
		a.fill(g, tls)
		return len(g.lb) == 0
	})
	return out
}

// fill makes a group's endpoints out of what it holds.
func (a *assigner) fill(g *group, tls *networking.ClientTLSSettings) {
	eps := g.of
	g.of = make([]*model.Endpoint, 0, len(eps))
	add := func(e *model.Endpoint, lb *endpointv3.LbEndpoint) {
		g.of, g.lb = append(g.of, e), append(g.lb, lb)
		g.weight += lb.LoadBalancingWeight.Value
	}
	through := map[model.NetworkGateway]uint32{}
	for _, e := range eps {
		if !a.nets.behindGateway(e, a.from.network) {
			add(e, lbEndpoint(a.mesh, e, a.nets.scale))
			continue
		}
		if !takesMutualTLS(e, tls) {
			continue // only mutual TLS carries the name by which a gateway passes on
		}
		gws := a.nets.to(e.Network, e.Cluster)
		for _, gw := range gws {
			through[gw] += a.nets.scale / uint32(len(gws))
		}
	}
	for _, gw := range sortedGateways(through) {
		add(&model.Endpoint{Cluster: gw.Cluster, Network: gw.Network}, gatewayEndpoint(gw, through[gw]))
	}
}

// takesMutualTLS tells whether callers talk mutual TLS to an endpoint: as the rule says, or as the workload does.
func takesMutualTLS(e *model.Endpoint, tls *networking.ClientTLSSettings) bool {
	if tls != nil {
		return tls.Mode == networking.ClientTLSSettings_ISTIO_MUTUAL
	}
	return e.Pod != nil && e.Pod.TLSMode
}

func lbEndpoint(m model.Mesh, e *model.Endpoint, weight uint32) *endpointv3.LbEndpoint {
	out := &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(e.Address, e.Port)}},
		HealthStatus:        corev3.HealthStatus_HEALTHY,
		LoadBalancingWeight: wrapperspb.UInt32(weight),
	}
	if e.Pod == nil {
		return out
	}
	md := map[string]*structpb.Struct{"istio": stringStruct("workload", strings.Join([]string{
		e.Pod.Workload, e.Pod.Namespace, canonicalName(e.Pod), canonicalRevision(e.Pod), cmp.Or(e.Cluster, e.Pod.Cluster, m.ClusterID),
	}, ";"))}
	if e.Pod.TLSMode {
		md["envoy.transport_socket_match"] = stringStruct("tlsMode", "istio")
	}
	out.Metadata = &corev3.Metadata{FilterMetadata: md}
	return out
}

// gatewayEndpoint stands for the workloads behind a gateway. Of them only the cluster is known.
func gatewayEndpoint(gw model.NetworkGateway, weight uint32) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(gw.Address, gw.Port)}},
		HealthStatus:        corev3.HealthStatus_HEALTHY,
		LoadBalancingWeight: wrapperspb.UInt32(weight),
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"istio":                        stringStruct("workload", ";;;;"+gw.Cluster),
			"envoy.transport_socket_match": stringStruct("tlsMode", "istio"),
		}},
	}
}

func canonicalName(p *model.Pod) string {
	for _, k := range []string{"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"} {
		if v := p.Labels[k]; v != "" {
			return v
		}
	}
	return p.Workload
}

func canonicalRevision(p *model.Pod) string {
	for _, k := range []string{"service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"} {
		if v := p.Labels[k]; v != "" {
			return v
		}
	}
	return "latest"
}

func address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
