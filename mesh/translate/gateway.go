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

// addGateways gives a gateway proxy a listener for each port that Gateways open on it, and the routes of each.
func (o *outbound) addGateways(set *xds.Set) error {
	ports := map[uint32][]gatewayServer{}
	for _, g := range o.s.Gateways {
		if len(g.Spec.Spec.Selector) > 0 && !model.Matches(g.Spec.Spec.Selector, o.labels) {
			continue
		}
		for _, srv := range g.Spec.Spec.Servers {
			p := o.targetPort(srv.Port.Number)
			ports[p] = append(ports[p], gatewayServer{g, srv})
		}
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		name := fmt.Sprintf("http.%d", port)
		h := connectionManager(o.s.Mesh, fmt.Sprintf("outbound_0.0.0.0_%d;", port))
		h.UseRemoteAddress = wrapperspb.Bool(true) // clients are strangers: their address is the connection's
		h.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
		h.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Cert: true, Uri: true, Dns: true,
		}
		h.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: rds(name)}
		set.Listeners = append(set.Listeners, &listenerv3.Listener{
			Name:             fmt.Sprintf("0.0.0.0_%d", port),
			Address:          address("0.0.0.0", port),
			TrafficDirection: corev3.TrafficDirection_OUTBOUND,
			FilterChains:     []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{httpFilter(h)}}},
		})
		set.Routes = append(set.Routes, routeConfiguration(name, o.gatewayHosts(port, ports[port])))
	}
	return nil
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

func (o *outbound) gatewayHosts(port uint32, servers []gatewayServer) []*routev3.VirtualHost {
	byHost := map[string]*routev3.VirtualHost{}
	for _, gs := range servers {
		https := gs.server.GetTls().GetHttpsRedirect()
		for _, vs := range o.virtual {
			if len(vs.Spec.Spec.Http) == 0 || !slices.Contains(vs.Gateways, gs.gateway.Name()) {
				continue
			}
			for _, h := range vs.Hosts {
				host := serverHost(gs, vs, h)
				if host == "" {
					continue
				}
				vh := byHost[host]
				if vh == nil {
					vh = &routev3.VirtualHost{Name: fmt.Sprintf("%s:%d", host, port), Domains: []string{host}, IncludeRequestAttemptCount: true}
					byHost[host] = vh
				}
				if https {
					vh.RequireTls = routev3.VirtualHost_ALL
				}
				vh.Routes = append(vh.Routes, o.httpRoutes(vs, gs.gateway.Name(), gs.server.Port.Number, false)...)
			}
		}
		if https {
			for _, h := range gs.server.Hosts {
				_, h, _ = cutHost(h)
				if byHost[h] == nil {
					byHost[h] = &routev3.VirtualHost{
						Name: fmt.Sprintf("%s:%d", h, port), Domains: []string{h}, IncludeRequestAttemptCount: true, RequireTls: routev3.VirtualHost_ALL,
					}
				}
			}
		}
	}
	if len(byHost) == 0 {
		return []*routev3.VirtualHost{{Name: fmt.Sprintf("blackhole:%d", port), Domains: []string{"*"}}}
	}
	return slices.SortedFunc(maps.Values(byHost), func(a, b *routev3.VirtualHost) int { return cmp.Compare(a.Name, b.Name) })
}

func cutHost(h string) (ns, host string, ok bool) {
	if ns, host, ok = strings.Cut(h, "/"); ok {
		return ns, host, true
	}
	return "*", h, false
}

// serverHost is what a server and a VirtualService's host have in common, the narrower of the two; empty for nothing.
func serverHost(gs gatewayServer, vs *model.VirtualService, host string) string {
	for _, sh := range gs.server.Hosts {
		ns, h, _ := cutHost(sh)
		if ns != "*" && ns != vs.Key.Namespace && (ns != "." || gs.gateway.Key.Namespace != vs.Key.Namespace) {
			continue
		}
		switch {
		case h == "*" || hostMatches(h, host):
			return host
		case hostMatches(host, h):
			return h
		}
	}
	return ""
}
