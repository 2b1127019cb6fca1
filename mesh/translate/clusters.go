package translate

import (
	"fmt"
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

// clusterKey is all that the clusters of a service depend on.
type clusterKey struct {
	svc  *model.Service
	rule *model.DestinationRule
	ids  string
	dnat bool
}

func (o *outbound) addClusters(set *xds.Set) {
	set.Clusters = append(set.Clusters, blackHoleCluster(), passthroughCluster())
	for _, svc := range o.services {
		o.addService(set, svc, false)
		if o.dnat {
			o.addService(set, svc, true)
		}
	}
}

// addService adds the clusters of a service and their endpoints; with dnat those to which mutual TLS is passed on by SNI.
func (o *outbound) addService(set *xds.Set, svc *model.Service, dnat bool) {
	rule := o.s.DestinationRule(o.scope.namespace, svc.Hostname, svc.Namespace)
	eps := o.s.Endpoints(svc.Hostname)
	if eps == nil {
		eps = noEndpoints
	}
	cs, _ := o.t.clusters.get(o.s.Sequence, clusterKey{svc, rule, strings.Join(eps.Identities, ","), dnat}, func() ([]*clusterv3.Cluster, error) {
		return serviceClusters(svc, rule, eps.Identities, dnat), nil
	})
	set.Clusters = append(set.Clusters, cs...)
	from := o.near(svc, rule)
	es, _ := o.t.endpoints.get(o.s.Sequence, endpointKey{svc, rule, eps, from, dnat}, func() ([]*endpointv3.ClusterLoadAssignment, error) {
		a := &assigner{mesh: o.s.Mesh, nets: o.nets, from: from, labels: o.labels, dnat: dnat}
		return a.assignments(svc, rule, eps), nil
	})
	set.Endpoints = append(set.Endpoints, es...)
}

// serviceClusters gives a cluster for each port, and one more for each subset of the rule.
func serviceClusters(svc *model.Service, rule *model.DestinationRule, ids []string, dnat bool) []*clusterv3.Cluster {
	var out []*clusterv3.Cluster
	for _, p := range svc.Ports {
		if p.Protocol == model.UDP {
			continue
		}
		out = append(out, serviceCluster(svc, p, "", policyOf(rule, "", p.Number), ids, dnat))
		if rule == nil {
			continue
		}
		for _, sub := range rule.Spec.Spec.Subsets {
			out = append(out, serviceCluster(svc, p, sub.Name, policyOf(rule, sub.Name, p.Number), ids, dnat))
		}
	}
	return out
}

func serviceCluster(svc *model.Service, p model.Port, subset string, policy *networking.TrafficPolicy, ids []string, dnat bool) *clusterv3.Cluster {
	name := clusterName(p.Number, subset, svc.Hostname)
	if dnat {
		name = sniOf(p.Number, subset, svc.Hostname)
	}
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
		CircuitBreakers: unlimited(),
		CommonLbConfig:  &clusterv3.Cluster_CommonLbConfig{},
		Metadata:        clusterMetadata(svc, subset),
	}
	applyPool(c, policy.GetConnectionPool())
	applyOutliers(c, policy.GetOutlierDetection())
	applyBalancer(c, policy.GetLoadBalancer())
	applyLocality(c, policy)
	h2 := applyHTTP(c, p.Protocol, policy.GetConnectionPool())
	if !dnat { // what is passed on is TLS already
		applyTLS(c, policy.GetTls(), sniOf(p.Number, subset, svc.Hostname), h2, ids)
	}
	return c
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
