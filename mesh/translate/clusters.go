package translate

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// Names of the clusters that every proxy has.
const (
	blackHole          = "BlackHoleCluster"
	passthrough        = "PassthroughCluster"
	inboundPassthrough = "InboundPassthroughCluster"
)

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusterName is Istio's: direction|port|subset|host.
func clusterName(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, host)
}

func inboundClusterName(port uint32) string { return fmt.Sprintf("inbound|%d||", port) }

func sniOf(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound_.%d_.%s_.%s", port, subset, host)
}

type clusterKey struct {
	svc  *model.Service
	rule *model.DestinationRule
	ids  string
}

type endpointKey struct {
	svc  *model.Service
	rule *model.DestinationRule
	eps  *model.Endpoints
}

func (o *outbound) addClusters(set *xds.Set) {
	set.Clusters = append(set.Clusters, blackHoleCluster(), passthroughCluster())
	for _, svc := range o.services {
		rule := o.s.DestinationRule(o.scope.namespace, svc.Hostname, svc.Namespace)
		eps := o.s.Endpoints(svc.Hostname)
		if eps == nil {
			eps = noEndpoints
		}
		m := o.s.Mesh
		cs, _ := o.t.clusters.get(o.s.Sequence, clusterKey{svc, rule, strings.Join(eps.Identities, ",")}, func() ([]*clusterv3.Cluster, error) {
			return serviceClusters(svc, rule, eps.Identities), nil
		})
		set.Clusters = append(set.Clusters, cs...)
		es, _ := o.t.endpoints.get(o.s.Sequence, endpointKey{svc, rule, eps}, func() ([]*endpointv3.ClusterLoadAssignment, error) {
			return assignments(m, svc, rule, eps), nil
		})
		set.Endpoints = append(set.Endpoints, es...)
	}
}

var noEndpoints = &model.Endpoints{}

// serviceClusters gives a cluster for each port, and one more for each subset of the rule.
func serviceClusters(svc *model.Service, rule *model.DestinationRule, ids []string) []*clusterv3.Cluster {
	var out []*clusterv3.Cluster
	for _, p := range svc.Ports {
		if p.Protocol == model.UDP {
			continue
		}
		var base *networking.TrafficPolicy
		if rule != nil {
			base = policyOf(rule.Spec.Spec.TrafficPolicy, nil, p.Number)
		}
		out = append(out, serviceCluster(svc, p, "", base, ids))
		if rule == nil {
			continue
		}
		for _, sub := range rule.Spec.Spec.Subsets {
			out = append(out, serviceCluster(svc, p, sub.Name, policyOf(rule.Spec.Spec.TrafficPolicy, sub.TrafficPolicy, p.Number), ids))
		}
	}
	return out
}

// policyOf merges a rule's policy, its subset's and the port level's of each, as Istio does: the nearer setting replaces
// the farther one as a whole, setting by setting.
func policyOf(rule, subset *networking.TrafficPolicy, port uint32) *networking.TrafficPolicy {
	out := &networking.TrafficPolicy{}
	for _, p := range []*networking.TrafficPolicy{rule, subset} {
		if p == nil {
			continue
		}
		overlay(out, p.LoadBalancer, p.ConnectionPool, p.OutlierDetection, p.Tls)
		for _, pl := range p.PortLevelSettings {
			if pl.GetPort().GetNumber() == port {
				// A port's settings stand alone: what they leave out is the default, not the rule's.
				out = &networking.TrafficPolicy{}
				overlay(out, pl.LoadBalancer, pl.ConnectionPool, pl.OutlierDetection, pl.Tls)
			}
		}
	}
	return out
}

func overlay(p *networking.TrafficPolicy, lb *networking.LoadBalancerSettings, cp *networking.ConnectionPoolSettings,
	od *networking.OutlierDetection, tls *networking.ClientTLSSettings,
) {
	if lb != nil {
		p.LoadBalancer = lb
	}
	if cp != nil {
		p.ConnectionPool = cp
	}
	if od != nil {
		p.OutlierDetection = od
	}
	if tls != nil {
		p.Tls = tls
	}
}

func serviceCluster(svc *model.Service, p model.Port, subset string, policy *networking.TrafficPolicy, ids []string) *clusterv3.Cluster {
	name := clusterName(p.Number, subset, svc.Hostname)
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          name + ";",
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{
			ServiceName: name,
			EdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				InitialFetchTimeout:   durationpb.New(0),
				ResourceApiVersion:    corev3.ApiVersion_V3,
			},
		},
		ConnectTimeout:  durationpb.New(10 * time.Second),
		LbPolicy:        clusterv3.Cluster_LEAST_REQUEST,
		CircuitBreakers: unlimited(),
		CommonLbConfig:  &clusterv3.Cluster_CommonLbConfig{},
		Metadata:        clusterMetadata(svc, subset),
	}
	tcp := policy.GetConnectionPool().GetTcp()
	if d := tcp.GetConnectTimeout(); d != nil {
		c.ConnectTimeout = d
	}
	if k := tcp.GetTcpKeepalive(); k != nil {
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
	}
	applyBalancer(c, policy.GetLoadBalancer())
	applyHTTP(c, p.Protocol, policy.GetConnectionPool())
	applyTLS(c, p, subset, svc, policy.GetTls(), ids)
	return c
}

func keepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) *corev3.TcpKeepalive {
	out := &corev3.TcpKeepalive{}
	if k.Probes > 0 {
		out.KeepaliveProbes = wrapperspb.UInt32(k.Probes)
	}
	if k.Time != nil {
		out.KeepaliveTime = wrapperspb.UInt32(uint32(k.Time.Seconds))
	}
	if k.Interval != nil {
		out.KeepaliveInterval = wrapperspb.UInt32(uint32(k.Interval.Seconds))
	}
	return out
}

// unlimited are Istio's thresholds where a rule sets none: Envoy's own would be 1024.
func unlimited() *clusterv3.CircuitBreakers {
	limit := func() *wrapperspb.UInt32Value { return wrapperspb.UInt32(math.MaxUint32) }
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: limit(), MaxPendingRequests: limit(), MaxRequests: limit(), MaxRetries: limit(), TrackRemaining: true,
	}}}
}

func applyBalancer(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings) {
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case networking.LoadBalancerSettings_PASSTHROUGH:
		c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.EdsClusterConfig = nil
	default: // LEAST_REQUEST, its old name LEAST_CONN, and nothing said
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	}
}

// applyHTTP says what the cluster speaks, and for how long and how often on one connection.
func applyHTTP(c *clusterv3.Cluster, p model.Protocol, cp *networking.ConnectionPoolSettings) {
	common := &corev3.HttpProtocolOptions{}
	set := false
	if d := cp.GetHttp().GetIdleTimeout(); d != nil {
		common.IdleTimeout, set = d, true
	}
	if d := cp.GetTcp().GetMaxConnectionDuration(); d != nil {
		common.MaxConnectionDuration, set = d, true
	}
	if n := cp.GetHttp().GetMaxRequestsPerConnection(); n > 0 {
		common.MaxRequestsPerConnection, set = wrapperspb.UInt32(uint32(n)), true
	}
	opts := &httpv3.HttpProtocolOptions{}
	if set {
		opts.CommonHttpProtocolOptions = common
	}
	switch {
	case p.IsHTTP2() || p == model.HTTP && cp.GetHttp().GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		opts.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		}}
	case p == model.Auto || cp.GetHttp().GetUseClientProtocol():
		opts.UpstreamProtocolOptions = downstreamProtocol()
	case set && p == model.HTTP:
		opts.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}}
	default:
		return
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: toAny(opts)}
}

func downstreamProtocol() *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
		HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
	}}
}

// applyTLS sets mutual TLS: automatic where nothing is said, by the endpoint's own tlsMode; else as the rule says.
func applyTLS(c *clusterv3.Cluster, p model.Port, subset string, svc *model.Service, tls *networking.ClientTLSSettings, ids []string) {
	mutual := func() *corev3.TransportSocket {
		return upstreamMTLS(sniOf(p.Number, subset, svc.Hostname), p.Protocol.IsHTTP2(), ids)
	}
	switch {
	case tls == nil:
		if c.GetType() == clusterv3.Cluster_ORIGINAL_DST {
			return // no endpoints that could say what they take
		}
		c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
			{Name: "tlsMode-istio", Match: stringStruct("tlsMode", "istio"), TransportSocket: mutual()},
			{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: rawBuffer()},
		}
	case tls.Mode == networking.ClientTLSSettings_ISTIO_MUTUAL:
		if len(tls.SubjectAltNames) > 0 {
			ids = tls.SubjectAltNames
		}
		sni := tls.Sni
		if sni == "" {
			sni = sniOf(p.Number, subset, svc.Hostname)
		}
		c.TransportSocket = upstreamMTLS(sni, p.Protocol.IsHTTP2(), ids)
	}
}

func clusterMetadata(svc *model.Service, subset string) *corev3.Metadata {
	f := map[string]*structpb.Value{
		"services": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				"host":      structpb.NewStringValue(svc.Hostname),
				"name":      structpb.NewStringValue(svc.Name),
				"namespace": structpb.NewStringValue(svc.Namespace),
			}}),
		}}),
	}
	if subset != "" {
		f["subset"] = structpb.NewStringValue(subset)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: f}}}
}

func blackHoleCluster() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 blackHole,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(10 * time.Second),
	}
}

func passthroughCluster() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                          passthrough,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:                      clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:                durationpb.New(10 * time.Second),
		CircuitBreakers:               unlimited(),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: toAny(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: downstreamProtocol()})},
	}
}

func rawBuffer() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.raw_buffer",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: toAny(&rawbufferv3.RawBuffer{})},
	}
}

// assignments gives the endpoints of every cluster of a service.
func assignments(m model.Mesh, svc *model.Service, rule *model.DestinationRule, eps *model.Endpoints) []*endpointv3.ClusterLoadAssignment {
	var out []*endpointv3.ClusterLoadAssignment
	for _, p := range svc.Ports {
		if p.Protocol == model.UDP {
			continue
		}
		out = append(out, assignment(m, clusterName(p.Number, "", svc.Hostname), eps.ByPort[p.Name]))
		if rule == nil {
			continue
		}
		for _, sub := range rule.Spec.Spec.Subsets {
			of := slices.DeleteFunc(slices.Clone(eps.ByPort[p.Name]), func(e *model.Endpoint) bool {
				return e.Pod == nil || len(sub.Labels) > 0 && !model.Matches(sub.Labels, e.Pod.Labels)
			})
			out = append(out, assignment(m, clusterName(p.Number, sub.Name, svc.Hostname), of))
		}
	}
	return out
}

func assignment(m model.Mesh, name string, eps []*model.Endpoint) *endpointv3.ClusterLoadAssignment {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	byZone := map[string]*endpointv3.LocalityLbEndpoints{}
	for _, e := range eps {
		g := byZone[e.Zone]
		if g == nil {
			g = &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Zone: e.Zone}, LoadBalancingWeight: wrapperspb.UInt32(0)}
			byZone[e.Zone] = g
			cla.Endpoints = append(cla.Endpoints, g)
		}
		g.LbEndpoints = append(g.LbEndpoints, lbEndpoint(m, e))
		g.LoadBalancingWeight.Value++
	}
	slices.SortFunc(cla.Endpoints, func(a, b *endpointv3.LocalityLbEndpoints) int {
		return strings.Compare(a.Locality.Zone, b.Locality.Zone)
	})
	return cla
}

func lbEndpoint(m model.Mesh, e *model.Endpoint) *endpointv3.LbEndpoint {
	out := &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(e.Address, e.Port)}},
		HealthStatus:        corev3.HealthStatus_HEALTHY,
		LoadBalancingWeight: wrapperspb.UInt32(1),
	}
	if e.Pod == nil {
		return out
	}
	md := map[string]*structpb.Struct{"istio": stringStruct("workload", strings.Join([]string{
		e.Pod.Workload, e.Pod.Namespace, canonicalName(e.Pod), canonicalRevision(e.Pod), m.ClusterID,
	}, ";"))}
	if e.Pod.TLSMode {
		md["envoy.transport_socket_match"] = stringStruct("tlsMode", "istio")
	}
	out.Metadata = &corev3.Metadata{FilterMetadata: md}
	return out
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

func stringStruct(k, v string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{k: structpb.NewStringValue(v)}}
}

// toAny packs a message that this package made. Such messages always marshal, deterministically.
func toAny(m proto.Message) *anypb.Any {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("translate: %s does not marshal: %v", m.ProtoReflect().Descriptor().FullName(), err))
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}
