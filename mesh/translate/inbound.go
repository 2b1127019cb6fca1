package translate

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// inboundPort is a port of the workload that a service leads to.
type portOfWorkload struct {
	target   uint32
	port     uint32
	protocol model.Protocol
	host     string
	mesh     model.Mesh
}

// inboundPorts are the ports of the proxy's own workload that services lead to, by number. Where two services disagree on
// the protocol of one, the first by host name decides, as in Istio.
func inboundPorts(s *model.Snapshot, v model.ProxyView) []portOfWorkload {
	var named map[string]uint32
	if pod := s.PodOf(v); pod != nil {
		named = pod.Ports
	}
	var out []portOfWorkload
	seen := map[uint32]bool{}
	for _, svc := range s.ServicesOf(v.Namespace, v.Labels) {
		for _, p := range svc.Ports {
			if p.Protocol == model.UDP {
				continue
			}
			target := named[p.TargetPort]
			if n, err := strconv.ParseUint(p.TargetPort, 10, 16); err == nil {
				target = uint32(n)
			}
			if target == 0 || seen[target] {
				continue
			}
			seen[target] = true
			out = append(out, portOfWorkload{target: target, port: p.Number, protocol: p.Protocol, host: svc.Hostname, mesh: s.Mesh})
		}
	}
	slices.SortFunc(out, func(a, b portOfWorkload) int { return int(a.target) - int(b.target) })
	return out
}

// inbound is the part of a sidecar's configuration that leads to its own workload: one listener that takes mutual TLS and
// plaintext alike (PERMISSIVE), and a cluster for each port.
func inbound(s *model.Snapshot, v model.ProxyView) (xds.Set, error) {
	ports := inboundPorts(s, v)
	set := xds.Set{Clusters: []*clusterv3.Cluster{inboundCluster(inboundPassthrough, model.Auto)}}
	l := &listenerv3.Listener{
		Name:                             "virtualInbound",
		Address:                          address("0.0.0.0", inboundPort),
		TrafficDirection:                 corev3.TrafficDirection_INBOUND,
		ListenerFilters:                  []*listenerv3.ListenerFilter{originalDst(), tlsInspector(), httpInspector()},
		ListenerFiltersTimeout:           durationpb.New(0),
		ContinueOnListenerFiltersTimeout: true,
		FilterChains: []*listenerv3.FilterChain{{
			Name:             "virtualInbound-blackhole",
			FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(inboundPort)},
			Filters:          []*listenerv3.Filter{tcpFilter(s.Mesh, blackHole)},
		}},
	}
	l.FilterChains = append(l.FilterChains, permissive(s.Mesh, chainTarget{
		httpName: "virtualInbound-catchall-http", tcpName: "virtualInbound", cluster: inboundPassthrough, vhost: "inbound|http|0",
		stat: inboundPassthrough + ";", protocol: model.Auto,
	})...)
	for _, p := range ports {
		name := inboundClusterName(p.target)
		set.Clusters = append(set.Clusters, inboundCluster(name, p.protocol))
		chain := fmt.Sprintf("0.0.0.0_%d", p.target)
		l.FilterChains = append(l.FilterChains, permissive(s.Mesh, chainTarget{
			httpName: chain, tcpName: chain, cluster: name, port: p.target, protocol: p.protocol,
			vhost: fmt.Sprintf("inbound|http|%d", p.port), stat: "inbound_" + chain + ";",
			operation: fmt.Sprintf("%s:%d/*", p.host, p.port),
		})...)
	}
	set.Listeners = []*listenerv3.Listener{l}
	sortSet(&set)
	return set, nil
}

// chainTarget is what a group of inbound filter chains leads to.
type chainTarget struct {
	httpName, tcpName string
	port              uint32 // 0 for all
	cluster, vhost    string
	stat, operation   string
	protocol          model.Protocol
}

// permissive gives the chains of one target that take mutual TLS and plaintext, as Istio's filterchain_options do.
func permissive(m model.Mesh, t chainTarget) []*listenerv3.FilterChain {
	chain := func(transport string, alpn []string, isHTTP, mtls bool) *listenerv3.FilterChain {
		fc := &listenerv3.FilterChain{Name: t.tcpName, FilterChainMatch: &listenerv3.FilterChainMatch{
			TransportProtocol: transport, ApplicationProtocols: alpn,
		}}
		if t.port != 0 {
			fc.FilterChainMatch.DestinationPort = wrapperspb.UInt32(t.port)
		}
		if isHTTP {
			fc.Name = t.httpName
			fc.Filters = []*listenerv3.Filter{httpFilter(inboundManager(m, t))}
		} else {
			fc.Filters = []*listenerv3.Filter{tcpFilter(m, t.cluster)}
		}
		if mtls {
			accepts := []string{"h2", "http/1.1"}
			if !isHTTP {
				accepts = mtlsTCPAccepts
			}
			fc.TransportSocket = downstreamMTLS(meshPeer(m.TrustDomain), accepts)
		}
		return fc
	}
	switch {
	case t.protocol.IsHTTP():
		return []*listenerv3.FilterChain{chain("tls", mtlsALPNs, true, true), chain("raw_buffer", nil, true, false)}
	case t.protocol.IsTCP():
		return []*listenerv3.FilterChain{chain("tls", mtlsALPNs, false, true), chain("tls", nil, false, false), chain("raw_buffer", nil, false, false)}
	default:
		return []*listenerv3.FilterChain{
			chain("tls", mtlsHTTPALPNs, true, true), chain("raw_buffer", plaintextALPNs, true, false),
			chain("tls", mtlsTCPALPNs, false, true), chain("raw_buffer", nil, false, false), chain("tls", nil, false, false),
		}
	}
}

func inboundManager(m model.Mesh, t chainTarget) *hcmv3.HttpConnectionManager {
	h := connectionManager(m, t.stat)
	h.ForwardClientCertDetails = hcmv3.HttpConnectionManager_APPEND_FORWARD
	h.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: wrapperspb.Bool(true), Uri: true, Dns: true,
	}
	route := &routev3.Route{
		Name:  "default",
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: t.cluster},
			Timeout:           durationpb.New(0),
			MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0)},
			RetryPolicy:       &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: wrapperspb.UInt32(2)},
		}},
	}
	if t.operation != "" {
		route.Decorator = &routev3.Decorator{Operation: t.operation}
	}
	h.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		Name:             t.cluster,
		ValidateClusters: wrapperspb.Bool(false),
		VirtualHosts:     []*routev3.VirtualHost{{Name: t.vhost, Domains: []string{"*"}, Routes: []*routev3.Route{route}}},
	}}
	return h
}

// inboundCluster goes to where the connection was meant for, from an address that the redirect rules know as our own.
func inboundCluster(name string, p model.Protocol) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       durationpb.New(10 * time.Second),
		CircuitBreakers:      unlimited(),
		UpstreamBindConfig: &corev3.BindConfig{SourceAddress: &corev3.SocketAddress{
			Address: "127.0.0.6", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0},
		}},
	}
	if name != inboundPassthrough {
		c.AltStatName = name + ";"
	}
	if p == model.Auto {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: toAny(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: downstreamProtocol()})}
	} else {
		applyHTTP(c, p, nil)
	}
	return c
}
