package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// gatewayServer is a server of a Gateway that this proxy serves.
type gatewayServer struct {
	gateway *model.Gateway
	server  *networking.Server
}

// isHTTP tells whether a server speaks HTTP, behind TLS or not.
func (g gatewayServer) isHTTP() bool {
	switch strings.ToUpper(g.server.GetPort().GetProtocol()) {
	case "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS":
		return !g.passes()
	}
	return false
}

// passes tells whether a server passes TLS on as it is.
func (g gatewayServer) passes() bool {
	tls := g.server.GetTls()
	return tls != nil && !tls.HttpsRedirect &&
		(tls.Mode == networking.ServerTLSSettings_PASSTHROUGH || tls.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH)
}

// terminates tells whether TLS ends at a server. On a port in clear TLS settings are for the redirect alone, whatever mode they name.
func (g gatewayServer) terminates() bool {
	if p := strings.ToUpper(g.server.GetPort().GetProtocol()); p != "HTTPS" && p != "TLS" {
		return false
	}
	switch g.server.GetTls().GetMode() {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_ISTIO_MUTUAL:
		return true
	}
	return false
}

// names are the hosts that clients ask for by SNI.
func (g gatewayServer) names() []string {
	var out []string
	for _, h := range g.server.Hosts {
		_, h, _ = cutHost(h)
		out = append(out, h)
	}
	return out
}

// routeName is Istio's: one set of routes for a port in clear, one for each server behind TLS.
func (g gatewayServer) routeName(port uint32) string {
	if !g.terminates() {
		return fmt.Sprintf("http.%d", port)
	}
	return fmt.Sprintf("https.%d.%s.%s.%s", g.server.Port.Number, g.server.Port.Name, g.gateway.Key.Name, g.gateway.Key.Namespace)
}

// autoPasses tells whether a server passes mutual TLS on by the cluster's name in SNI.
func (g gatewayServer) autoPasses() bool {
	return g.passes() && g.server.Tls.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH
}

// collectServers finds the servers of Gateways that select the proxy.
func (o *outbound) collectServers() {
	for _, g := range o.s.Gateways {
		if len(g.Spec.Spec.Selector) > 0 && !model.Matches(g.Spec.Spec.Selector, o.labels) {
			continue
		}
		for _, srv := range g.Spec.Spec.Servers {
			gs := gatewayServer{g, srv}
			o.servers = append(o.servers, gs)
			o.dnat = o.dnat || gs.autoPasses()
		}
	}
}

// addGateways gives a gateway proxy a listener for each port that Gateways open on it, and the routes of each.
func (o *outbound) addGateways(set *xds.Set) error {
	ports := map[uint32][]gatewayServer{}
	for _, g := range o.servers {
		p := o.targetPort(g.server.Port.Number)
		ports[p] = append(ports[p], g)
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		l := &listenerv3.Listener{
			Name:             fmt.Sprintf("0.0.0.0_%d", port),
			Address:          address("0.0.0.0", port),
			TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		}
		chains, routes := o.gatewayChains(port, ports[port])
		if len(chains) == 0 {
			continue // nothing to serve: a TCP server without a rule
		}
		l.FilterChains = chains
		if slices.ContainsFunc(ports[port], func(g gatewayServer) bool { return g.passes() || g.terminates() }) {
			l.ListenerFilters = []*listenerv3.ListenerFilter{tlsInspector()}
		}
		set.Listeners, set.Routes = append(set.Listeners, l), append(set.Routes, routes...)
	}
	return nil
}

// gatewayChains are the filter chains of a port. What the oldest server on it speaks, HTTP in clear or anything else, the port speaks:
// servers that differ cannot share it.
func (o *outbound) gatewayChains(port uint32, servers []gatewayServer) ([]*listenerv3.FilterChain, []*routev3.RouteConfiguration) {
	inClear := func(g gatewayServer) bool { return g.isHTTP() && !g.terminates() }
	if inClear(servers[0]) {
		servers = slices.DeleteFunc(slices.Clone(servers), func(g gatewayServer) bool { return !inClear(g) })
		name := servers[0].routeName(port)
		return []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{httpFilter(o.gatewayManager(port, name))}}},
			[]*routev3.RouteConfiguration{routeConfiguration(name, o.gatewayHosts(port, servers))}
	}
	var chains []*listenerv3.FilterChain
	var routes []*routev3.RouteConfiguration
	seen := map[string]bool{} // server names: Envoy wants each in one chain
	made := map[string]bool{}
	for _, g := range servers {
		switch {
		case inClear(g):
		case g.isHTTP():
			name := g.routeName(port)
			names := unseen(g.names(), seen)
			if len(names) == 0 || made[name] {
				continue
			}
			made[name] = true
			chains = append(chains, &listenerv3.FilterChain{
				FilterChainMatch: sniMatch(names, nil),
				TransportSocket:  o.serverTLS(g.server.Tls, false),
				Filters:          []*listenerv3.Filter{httpFilter(o.gatewayManager(port, name))},
			})
			routes = append(routes, routeConfiguration(name, o.gatewayHosts(port, []gatewayServer{g})))
		case g.autoPasses():
			chains = append(chains, o.autoPassthrough(g, seen)...)
		case g.passes():
			chains = append(chains, o.passthroughChains(g, seen)...)
		default:
			chains = append(chains, o.tcpChains(g, seen)...)
		}
	}
	return chains, routes
}

func (o *outbound) gatewayManager(port uint32, routes string) *hcmv3.HttpConnectionManager {
	h := connectionManager(o.s.Mesh, fmt.Sprintf("outbound_0.0.0.0_%d;", port))
	h.UseRemoteAddress = wrapperspb.Bool(true) // clients are strangers: their address is the connection's
	h.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	h.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: wrapperspb.Bool(true), Cert: true, Uri: true, Dns: true,
	}
	h.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: rds(routes)}
	return h
}

// serverTLS ends TLS at a gateway: with the proxy's own certificate, or with one in files of its own.
func (o *outbound) serverTLS(tls *networking.ServerTLSSettings, tcp bool) *corev3.TransportSocket {
	alpn := []string{"h2", "http/1.1"}
	if tls.Mode == networking.ServerTLSSettings_ISTIO_MUTUAL {
		if tcp {
			alpn = mtlsTCPAccepts
		}
		return downstreamMTLS(&tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: sans(tls.SubjectAltNames)}, alpn)
	}
	common := &tlsv3.CommonTlsContext{
		AlpnProtocols:   alpn,
		TlsParams:       tlsVersions(),
		TlsCertificates: []*tlsv3.TlsCertificate{certificate(tls.ServerCertificate, tls.PrivateKey)},
	}
	if v := tls.MinProtocolVersion; v != networking.ServerTLSSettings_TLS_AUTO {
		common.TlsParams.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TlsProtocol(v) // the same numbers
	}
	if v := tls.MaxProtocolVersion; v != networking.ServerTLSSettings_TLS_AUTO {
		common.TlsParams.TlsMaximumProtocolVersion = tlsv3.TlsParameters_TlsProtocol(v)
	}
	mutual := tls.Mode == networking.ServerTLSSettings_MUTUAL
	if mutual {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(tls.CaCertificates), MatchTypedSubjectAltNames: sans(tls.SubjectAltNames),
		}}
	}
	return downstreamTLS(&tlsv3.DownstreamTlsContext{CommonTlsContext: common, RequireClientCertificate: wrapperspb.Bool(mutual)})
}

// boundTo lists the rules of a gateway that have a host in common with a server.
func (o *outbound) boundTo(g gatewayServer) []*model.VirtualService {
	var out []*model.VirtualService
	for _, vs := range o.virtual {
		if slices.Contains(vs.Gateways, g.gateway.Name()) && slices.ContainsFunc(vs.Hosts, func(h string) bool { return serverHost(g, vs, h) != "" }) {
			out = append(out, vs)
		}
	}
	return out
}

// tcpChains is the chain of a server whose connections go where the first tcp rule for it says; none without a rule.
func (o *outbound) tcpChains(g gatewayServer, seen map[string]bool) []*listenerv3.FilterChain {
	port := g.server.Port.Number
	for _, vs := range o.boundTo(g) {
		for _, r := range vs.Spec.Spec.Tcp {
			if len(r.Match) > 0 && !slices.ContainsFunc(r.Match, func(m *networking.L4MatchAttributes) bool {
				return (m.Port == 0 || m.Port == port) && o.sourceMatches(vs, nil, "", m.Gateways, g.gateway.Name())
			}) {
				continue
			}
			fc := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{o.l4Route(vs, r.Route, port).filter(o.s.Mesh)}}
			names := []string{"*"} // what is not TLS names nothing
			if g.terminates() {
				names = g.names()
				fc.TransportSocket = o.serverTLS(g.server.Tls, true)
			}
			if names = unseen(names, seen); len(names) == 0 {
				return nil
			}
			fc.FilterChainMatch = sniMatch(names, nil)
			return []*listenerv3.FilterChain{fc}
		}
	}
	return nil
}

// passthroughChains pass TLS on by the names that rules give.
func (o *outbound) passthroughChains(g gatewayServer, seen map[string]bool) []*listenerv3.FilterChain {
	var out []*listenerv3.FilterChain
	port := g.server.Port.Number
	for _, vs := range o.boundTo(g) {
		for _, r := range vs.Spec.Spec.Tls {
			for _, m := range r.Match {
				if m.Port != 0 && m.Port != port || !o.sourceMatches(vs, nil, "", m.Gateways, g.gateway.Name()) {
					continue
				}
				if names := unseen(m.SniHosts, seen); len(names) > 0 {
					out = append(out, &listenerv3.FilterChain{
						FilterChainMatch: sniMatch(names, nil), Filters: []*listenerv3.Filter{o.l4Route(vs, r.Route, port).filter(o.s.Mesh)},
					})
				}
			}
		}
	}
	return out
}

// autoPassthrough passes mutual TLS between sidecars on to the cluster that the name asks for, of every service that the server's
// hosts cover. The ALPN names of the mesh, and endpoints that take nothing else, see to it that nothing in clear gets through.
func (o *outbound) autoPassthrough(g gatewayServer, seen map[string]bool) []*listenerv3.FilterChain {
	var out []*listenerv3.FilterChain
	for _, svc := range o.services {
		if !slices.ContainsFunc(g.names(), func(h string) bool { return h == "*" || hostMatches(h, svc.Hostname) }) {
			continue
		}
		subsets := []string{""}
		if rule := o.s.DestinationRule(o.scope.namespace, svc.Hostname, svc.Namespace); rule != nil {
			for _, sub := range rule.Spec.Spec.Subsets {
				subsets = append(subsets, sub.Name)
			}
		}
		for _, p := range svc.Ports {
			if p.Protocol == model.UDP {
				continue
			}
			for _, subset := range subsets {
				name := sniOf(p.Number, subset, svc.Hostname)
				if len(unseen([]string{name}, seen)) == 0 {
					continue
				}
				t := o.withPolicy(singleCluster(name), svc.Hostname, subset, p.Number)
				out = append(out, &listenerv3.FilterChain{
					FilterChainMatch: sniMatch([]string{name}, mtlsALPNs), Filters: []*listenerv3.Filter{t.filter(o.s.Mesh)},
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b *listenerv3.FilterChain) int {
		return cmp.Compare(a.FilterChainMatch.ServerNames[0], b.FilterChainMatch.ServerNames[0])
	})
	return out
}

// targetPort is the container port behind a port of the gateway's own Service, else the number itself.
func (o *outbound) targetPort(port uint32) uint32 {
	for _, svc := range o.s.ServicesOf(o.scope.namespace, o.labels) {
		for _, p := range svc.Ports {
			if p.Number != port || p.Protocol == model.UDP {
				continue
			}
			if n, err := strconv.ParseUint(p.TargetPort, 10, 16); err == nil {
				return uint32(n)
			}
			if eps := o.s.Endpoints(svc.Hostname); eps != nil && len(eps.ByPort[p.Name]) > 0 {
				return eps.ByPort[p.Name][0].Port // a named port: its number is the pods' own
			}
		}
	}
	return port
}
