package translate

import (
	"fmt"
	"slices"
	"strconv"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// accessLogFormat is Istio's text format.
const accessLogFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// listenerKey is all that an outbound listener depends on.
type listenerKey struct {
	mesh     model.Mesh
	name, ip string
	port     uint32
	route    string
	tcp      string // where what is not HTTP goes, as text
	chains   string // the marshalled chains of a port whose connections are told apart by SNI
}

// addListeners gives a sidecar's outbound side: the listener that all connections arrive at, and one for each port or
// address that they may have been meant for.
func (o *outbound) addListeners(set *xds.Set) error {
	set.Listeners = append(set.Listeners, virtualOutbound(o.s.Mesh))
	httpPorts := map[uint32]bool{}
	made := map[string]bool{}
	add := func(ip string, port uint32, route string, tcp l4Target, chains []*listenerv3.FilterChain) {
		k := listenerKey{mesh: o.s.Mesh, name: fmt.Sprintf("%s_%d", ip, port), ip: ip, port: port, route: route, tcp: tcp.text()}
		if made[k.name] {
			return // the first service keeps an address that two claim
		}
		made[k.name] = true
		for _, c := range chains {
			k.chains += string(toAny(c).Value)
		}
		l, _ := o.t.listeners.get(o.s.Sequence, k, func() (*listenerv3.Listener, error) { return outboundListener(k, tcp, chains), nil })
		set.Listeners = append(set.Listeners, l)
	}
	for _, svc := range o.services {
		for _, p := range svc.Ports {
			if p.Number == outboundPort || p.Number == inboundPort {
				continue // would hide the sidecar's own listeners
			}
			switch {
			case p.Protocol == model.UDP:
			case p.Protocol.IsHTTP():
				if httpPorts[p.Number] {
					continue
				}
				httpPorts[p.Number] = true
				add("0.0.0.0", p.Number, strconv.Itoa(int(p.Number)), singleCluster(passthrough), nil)
			default:
				route := ""
				if p.Protocol == model.Auto {
					route = fmt.Sprintf("%s:%d", svc.Hostname, p.Number)
					r, err := o.routeConfig(route, o.serviceHosts([]servicePort{{svc, p}}, p.Number), p.Number)
					if err != nil {
						return err
					}
					set.Routes = append(set.Routes, r)
				}
				var chains []*listenerv3.FilterChain
				if p.Protocol == model.TLS || p.Protocol == model.HTTPS {
					chains = o.tlsChains(svc, p)
				}
				tcp := o.tcpTarget(svc, p)
				for _, ip := range o.addresses(svc, p) {
					add(ip, p.Number, route, tcp, chains)
				}
			}
		}
	}
	for port := range httpPorts {
		r, err := o.routeConfig(strconv.Itoa(int(port)), o.portHosts(port), port)
		if err != nil {
			return err
		}
		set.Routes = append(set.Routes, r)
	}
	return nil
}

// addresses are where connections to a port go to: the virtual addresses, or for headless services those of the pods that the
// scope's proxies reach without a gateway.
func (o *outbound) addresses(svc *model.Service, p model.Port) []string {
	if !svc.Headless {
		return o.vips(svc)
	}
	var out []string
	if eps := o.s.Endpoints(svc.Hostname); eps != nil {
		for _, e := range eps.ByPort[p.Name] {
			if !o.behindGateway(e) && !slices.Contains(out, e.Address) {
				out = append(out, e.Address)
			}
		}
	}
	return out
}

func virtualOutbound(m model.Mesh) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:             "virtualOutbound",
		Address:          address("0.0.0.0", outboundPort),
		UseOriginalDst:   wrapperspb.Bool(true),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains: []*listenerv3.FilterChain{
			{
				Name:             "virtualOutbound-blackhole",
				FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(outboundPort)},
				Filters:          []*listenerv3.Filter{tcpFilter(m, blackHole)},
			},
			{
				Name:    "virtualOutbound-catchall-tcp",
				Filters: []*listenerv3.Filter{tcpFilter(m, passthrough)},
			},
		},
	}
}

// outboundListener is one destination. With chains, connections are told apart by SNI, and those that no rule names are refused.
// Without a route, all is TCP; with one, the first bytes decide whether it is HTTP and routed.
func outboundListener(k listenerKey, tcp l4Target, chains []*listenerv3.FilterChain) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:             k.name,
		Address:          address(k.ip, k.port),
		BindToPort:       wrapperspb.Bool(false),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
	}
	if len(chains) > 0 {
		l.ListenerFilters = []*listenerv3.ListenerFilter{tlsInspector()}
		l.ListenerFiltersTimeout = durationpb.New(0)
		l.ContinueOnListenerFiltersTimeout = true
		l.FilterChains = chains
		return l
	}
	if k.route == "" {
		l.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{tcp.filter(k.mesh)}}}
		return l
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{tlsInspector(), httpInspector()}
	l.ListenerFiltersTimeout = durationpb.New(0)
	l.ContinueOnListenerFiltersTimeout = true
	h := connectionManager(k.mesh, "outbound_"+k.name+";")
	h.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: rds(k.route)}
	l.FilterChains = []*listenerv3.FilterChain{{
		FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: plaintextALPNs},
		Filters:          []*listenerv3.Filter{httpFilter(h)},
	}}
	l.DefaultFilterChain = &listenerv3.FilterChain{
		Name:    "PassthroughFilterChain",
		Filters: []*listenerv3.Filter{tcp.filter(k.mesh)},
	}
	return l
}

func rds(name string) *hcmv3.Rds {
	return &hcmv3.Rds{RouteConfigName: name, ConfigSource: &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0),
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}}
}

// connectionManager is Istio's HTTP connection manager, without routes.
func connectionManager(m model.Mesh, statPrefix string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:                   statPrefix,
		CodecType:                    hcmv3.HttpConnectionManager_AUTO,
		UseRemoteAddress:             wrapperspb.Bool(false),
		NormalizePath:                wrapperspb.Bool(true),
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		StreamIdleTimeout:            durationpb.New(0),
		ServerName:                   "istio-envoy",
		GenerateRequestId:            wrapperspb.Bool(true),
		UpgradeConfigs:               []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		AccessLog:                    accessLog(m),
		HttpFilters:                  []*hcmv3.HttpFilter{faultFilter(), routerFilter()},
		RequestIdExtension:           requestID(),
		ForwardClientCertDetails:     hcmv3.HttpConnectionManager_SANITIZE,
		ServerHeaderTransformation:   hcmv3.HttpConnectionManager_OVERWRITE,
	}
}

func requestID() *hcmv3.RequestIDExtension {
	return &hcmv3.RequestIDExtension{TypedConfig: toAny(&uuidv3.UuidRequestIdConfig{UseRequestIdForTraceSampling: wrapperspb.Bool(true)})}
}

func routerFilter() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: toAny(&routerv3.Router{})},
	}
}

func httpFilter(h *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	return filter("envoy.filters.network.http_connection_manager", h)
}

func tcpFilter(m model.Mesh, cluster string) *listenerv3.Filter {
	return singleCluster(cluster).filter(m)
}

func filter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: toAny(m)}}
}

func accessLog(m model.Mesh) []*accesslogv3.AccessLog {
	if m.AccessLogFile == "" {
		return nil
	}
	return []*accesslogv3.AccessLog{{
		Name: "envoy.access_loggers.file",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: toAny(&filelogv3.FileAccessLog{
			Path: m.AccessLogFile,
			AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: accessLogFormat},
				}},
			}},
		})},
	}}
}

func originalDst() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
}

func tlsInspector() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
}

func httpInspector() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{})
}

func listenerFilter(name string, m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: toAny(m)}}
}

func routeConfiguration(name string, hosts []*routev3.VirtualHost) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                           name,
		VirtualHosts:                   hosts,
		ValidateClusters:               wrapperspb.Bool(false),
		IgnorePortInHostMatching:       true,
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(1 << 20),
	}
}
