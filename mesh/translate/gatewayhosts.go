package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meshproof/meshproof/mesh/model"
)

// gatewayHosts are the virtual hosts of servers that share their routes.
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
				vh.Routes = append(vh.Routes, o.httpRoutes(vs, gs.gateway.Name(), gs.server.Port.Number, gs.terminates())...)
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

// cutHost splits a server's host: namespace/host, or a host of any namespace. Names are the same in either case of letters.
func cutHost(h string) (ns, host string, ok bool) {
	h = strings.ToLower(h)
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
