package state

import (
	"log/slog"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/xds"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}
}

// listenerTo is the listener "80" with routes of the given name.
func listenerTo(t *testing.T, routes string) *listenerv3.Listener {
	t.Helper()
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:     "test",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes, ConfigSource: fromADS()}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})},
		}},
	}
	return &listenerv3.Listener{
		Name: "80",
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 8080},
		}}},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, manager)},
		}}}},
	}
}

// Routes wait for the endpoints of a new cluster. If the cluster goes before they came, the routes must go on waiting: to publish
// them then would send requests to a cluster that was never there.
func TestRoutesWaitForAClusterThatWentAgain(t *testing.T) {
	var current *conf.Config
	s := New(Options{Subscribe: func(string, []string) {}, Publish: func(c *conf.Config) { current = c }, Log: slog.New(slog.DiscardHandler)})
	apply := func(u client.Update) {
		t.Helper()
		if err := s.Apply(u); err != nil {
			t.Fatal(err)
		}
	}
	cluster := func(name string) client.Resource {
		return client.Resource{Name: name, Version: "1", Body: pack(t, &clusterv3.Cluster{
			Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: fromADS()},
		})}
	}
	endpoints := func(name string) client.Resource {
		return client.Resource{Name: name, Version: "1", Body: pack(t, &endpointv3.ClusterLoadAssignment{ClusterName: name})}
	}
	routes := func(to string) client.Update {
		return client.Update{Type: xds.RouteType, Upserts: []client.Resource{{Name: "80", Version: to, Body: pack(t, &routev3.RouteConfiguration{
			Name: "80", VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: to}}},
			}}}},
		})}}}
	}
	obeyed := func(when, want string) {
		t.Helper()
		for _, c := range current.Routes["80"].Clusters {
			if c != want || current.Clusters[c] == nil {
				t.Fatalf("%s: routes lead to %s (there: %v), want %s", when, c, current.Clusters[c] != nil, want)
			}
		}
	}
	listener := listenerTo(t, "80")

	apply(client.Update{Type: xds.ClusterType, Upserts: []client.Resource{cluster("old")}})
	apply(client.Update{Type: xds.EndpointType, Upserts: []client.Resource{endpoints("old")}})
	apply(client.Update{Type: xds.ListenerType, Upserts: []client.Resource{{Name: "80", Version: "1", Body: pack(t, listener)}}})
	apply(routes("old"))
	obeyed("at first", "old")

	apply(client.Update{Type: xds.ClusterType, Upserts: []client.Resource{cluster("new")}, Removed: []string{"old"}})
	apply(routes("new"))
	obeyed("while the endpoints of the new cluster are missing", "old")

	apply(client.Update{Type: xds.ClusterType, Upserts: []client.Resource{cluster("old")}, Removed: []string{"new"}})
	obeyed("after the new cluster went again", "old")

	apply(client.Update{Type: xds.ClusterType, Upserts: []client.Resource{cluster("new")}})
	apply(client.Update{Type: xds.EndpointType, Upserts: []client.Resource{endpoints("new")}})
	obeyed("after the new cluster came for good", "new")
}
