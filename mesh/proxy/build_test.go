package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/xds/client"
)

func address(t testing.TB, hostport string) *corev3.Address {
	t.Helper()
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)}}}}
}

func edsCluster(name string) *clusterPB {
	return &clusterPB{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: name, EdsConfig: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}},
		ConnectTimeout:   durationpb.New(time.Second), LbPolicy: clusterv3.Cluster_LEAST_REQUEST,
	}
}

func cla(t testing.TB, name string, addrs ...string) *claPB {
	out := &claPB{ClusterName: name}
	l := &endpointv3.LocalityLbEndpoints{}
	for _, a := range addrs {
		l.LbEndpoints = append(l.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(t, a)}}})
	}
	out.Endpoints = append(out.Endpoints, l)
	return out
}

func weighted(weights ...any) *routev3.RouteAction {
	w := &routev3.WeightedCluster{}
	for i := 0; i < len(weights); i += 2 {
		w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: weights[i].(string), Weight: wrapperspb.UInt32(uint32(weights[i+1].(int)))})
	}
	return &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: w}, Timeout: durationpb.New(0)}
}

func istioRetries(t testing.TB) *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", NumRetries: wrapperspb.UInt32(2), HostSelectionRetryMaxAttempts: 5,
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(t, &previoushostsv3.PreviousHostsPredicate{})}}},
	}
}

func prefix(p string, a *routev3.RouteAction) *routev3.Route {
	return &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p}}, Action: &routev3.Route_Route{Route: a}}
}

func table(name string, domains []string, routes ...*routev3.Route) *routesPB {
	return &routesPB{Name: name, ValidateClusters: wrapperspb.Bool(false), IgnorePortInHostMatching: true,
		VirtualHosts: []*routev3.VirtualHost{{Name: name, Domains: domains, Routes: routes, IncludeRequestAttemptCount: true}}}
}

func manager(t testing.TB, change ...func(*hcmv3.HttpConnectionManager)) *listenerv3.Filter {
	h := &hcmv3.HttpConnectionManager{
		StatPrefix: "test", ServerName: "istio-envoy", NormalizePath: wrapperspb.Bool(true), StreamIdleTimeout: durationpb.New(0),
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})}}},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
	for _, c := range change {
		c(h)
	}
	return &listenerv3.Filter{Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, h)}}
}

func rds(name string) func(*hcmv3.HttpConnectionManager) {
	return func(h *hcmv3.HttpConnectionManager) {
		h.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: name, ConfigSource: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}}}
	}
}

func httpListener(t testing.TB, addr, routes string) *listenerPB {
	return &listenerPB{Name: fmt.Sprintf("listener_%s", routes), Address: address(t, addr), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{manager(t, rds(routes))}}}}
}

var addrs atomic.Uint32

// freeAddr returns an address of loopback's that nobody else gets before it is used: neither another process, by the
// address, nor a connection, by the port.
func freeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	pid := os.Getpid()
	for range 100 {
		n := addrs.Add(1) - 1
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + pid>>8%250), byte(pid), byte(1 + n%250)}), uint16(20000+n/250%10000))
		ln, err := net.Listen("tcp", a.String())
		if err != nil {
			continue // somebody listens on every address
		}
		_ = ln.Close()
		return a
	}
	t.Fatal("no free address")
	return netip.AddrPort{}
}

func dialOptions(a *ads) client.DialOptions { return client.DialOptions{Address: a.addr} }
