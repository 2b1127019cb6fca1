package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// servicePort is a port of a service.
type servicePort struct {
	svc  *model.Service
	port model.Port
}

// vhostKey is all that a virtual host depends on. A rule reads the services that it leads to, and the scope's labels.
type vhostKey struct {
	host  string
	port  uint32
	scope scope
	svc   *model.Service
	rule  *model.VirtualService
	world uint64 // ServicesAt
	hash  string // what destinations are balanced by
}

// routeKey names a route configuration of a scope.
type routeKey struct {
	scope scope
	name  string
}

// assembled is a route configuration and the hosts it was put together from.
type assembled struct {
	hosts  []*routev3.VirtualHost
	config *routev3.RouteConfiguration
}

// routeConfig puts hosts together, with the one that takes all other requests, and gives the configuration made before if
// they are the same.
func (o *outbound) routeConfig(name string, hosts []*routev3.VirtualHost, port uint32) (*routev3.RouteConfiguration, error) {
	slices.SortStableFunc(hosts, func(a, b *routev3.VirtualHost) int { return cmp.Compare(a.Name, b.Name) })
	a := o.t.routes.update(o.s.Sequence, routeKey{o.scope, name}, func(old *assembled) *assembled {
		if old != nil && slices.Equal(old.hosts, hosts) {
			return old
		}
		config := routeConfiguration(name, dedupe(append(slices.Clone(hosts), allowAny())))
		return &assembled{hosts: hosts, config: config}
	})
	return a.config, nil
}

// dedupe drops domains that an earlier host has: Envoy refuses a configuration with a domain in two hosts.
func dedupe(hosts []*routev3.VirtualHost) []*routev3.VirtualHost {
	seen := make(map[string]bool, 4*len(hosts))
	var out []*routev3.VirtualHost
	for _, h := range hosts {
		clash := false
		for _, d := range h.Domains {
			clash = clash || seen[strings.ToLower(d)]
		}
		if clash {
			h = &routev3.VirtualHost{
				Name: h.Name, Routes: h.Routes, IncludeRequestAttemptCount: h.IncludeRequestAttemptCount, RequireTls: h.RequireTls,
				Domains: slices.DeleteFunc(slices.Clone(h.Domains), func(d string) bool { return seen[strings.ToLower(d)] }),
			}
		}
		if len(h.Domains) == 0 {
			continue
		}
		for _, d := range h.Domains {
			seen[strings.ToLower(d)] = true
		}
		out = append(out, h)
	}
	return out
}

func allowAny() *routev3.VirtualHost {
	return &routev3.VirtualHost{
		Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true,
		Routes: []*routev3.Route{{
			Name:  "allow_any",
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: passthrough},
				Timeout:          durationpb.New(0),
				MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{
					MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0),
				},
			}},
		}},
	}
}

// portHosts gives the virtual hosts of all services with HTTP on that port, and on port 80 those of rules for hosts that
// are no service.
func (o *outbound) portHosts(port uint32) []*routev3.VirtualHost {
	var of []servicePort
	for _, svc := range o.services {
		for _, p := range svc.Ports {
			if p.Number == port && p.Protocol.IsHTTP() {
				of = append(of, servicePort{svc, p})
			}
		}
	}
	hosts := o.serviceHosts(of, port)
	if port != 80 {
		return hosts
	}
	taken := map[string]bool{}
	for _, vs := range o.virtual {
		if !slices.Contains(vs.Gateways, "mesh") || len(vs.Spec.Spec.Http) == 0 {
			continue
		}
		for _, h := range vs.Hosts {
			if h == "*" || taken[h] || o.s.Service(h) != nil {
				continue
			}
			if strings.HasPrefix(h, "*") && slices.ContainsFunc(o.services, func(s *model.Service) bool { return hostMatches(h, s.Hostname) }) {
				continue // a wildcard over services is in their own hosts
			}
			taken[h] = true
			hosts = append(hosts, o.virtualHost(vhostKey{host: h, port: port, rule: vs}))
		}
	}
	return hosts
}

func (o *outbound) serviceHosts(of []servicePort, port uint32) []*routev3.VirtualHost {
	var out []*routev3.VirtualHost
	for _, sp := range of {
		k := vhostKey{host: sp.svc.Hostname, port: port, svc: sp.svc, rule: o.ruleFor(sp.svc.Hostname)}
		out = append(out, o.virtualHost(k))
	}
	return out
}

// virtualHost makes a host with its rule's routes, or with the one to the service of that name.
func (o *outbound) virtualHost(k vhostKey) *routev3.VirtualHost {
	k.scope = o.scope
	if k.rule != nil {
		k.world = o.s.ServicesAt
	}
	k.hash = o.hashKey(k)
	h, _ := o.t.vhosts.get(o.s.Sequence, k, func() (*routev3.VirtualHost, error) {
		h := &routev3.VirtualHost{Name: fmt.Sprintf("%s:%d", k.host, k.port), Domains: []string{k.host}, IncludeRequestAttemptCount: true}
		if k.svc != nil {
			h.Domains = o.domains(k.svc)
		}
		if k.rule != nil {
			h.Routes = o.httpRoutes(k.rule, "mesh", k.port, false)
		} else {
			h.Routes = []*routev3.Route{defaultRoute(k.host, k.port, o.hashOf(k.host, "", k.port))}
		}
		return h, nil
	})
	return h
}

// hashKey is what the routes of a host are hashed by, as text.
func (o *outbound) hashKey(k vhostKey) string {
	switch {
	case !o.needs.hash:
		return ""
	case k.rule == nil:
		return hashText(o.hashOf(k.host, "", k.port))
	}
	var b strings.Builder
	for _, r := range k.rule.Spec.Spec.Http {
		for _, d := range r.Route {
			b.WriteString(hashText(o.hashOfDestination(k.rule, d.Destination, k.port)))
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// ruleFor is the VirtualService that sidecars obey for a host: an exact host before a wildcard, the longest wildcard
// first, the oldest among equals.
func (o *outbound) ruleFor(host string) *model.VirtualService {
	if vs := o.exact[host]; vs != nil {
		return vs
	}
	var best *model.VirtualService
	bestHost := ""
	for _, vs := range o.wild {
		for _, h := range vs.Hosts {
			if hostMatches(h, host) && len(h) > len(bestHost) {
				best, bestHost = vs, h
			}
		}
	}
	return best
}

// hostMatches tells whether a host pattern, exact or starting with "*", covers a host.
func hostMatches(pattern, host string) bool {
	if p, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(host, p)
	}
	return pattern == host
}

// domains are the names under which clients of the scope call a service.
func (o *outbound) domains(svc *model.Service) []string {
	out := []string{svc.Hostname}
	if svc.Namespace == o.scope.namespace {
		out = append(out, svc.Name)
	}
	ns := svc.Name + "." + svc.Namespace
	out = append(out, ns, ns+".svc")
	if svc.Headless {
		// A headless service's pods are called by their own names too: pod.service.
		out = append(out, "*."+svc.Hostname)
		return out
	}
	return append(out, o.vips(svc)...)
}

func defaultRoute(host string, port uint32, hash *networking.LoadBalancerSettings_ConsistentHashLB) *routev3.Route {
	a := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: clusterName(port, "", host)},
		Timeout:          durationpb.New(0),
		RetryPolicy:      defaultRetries(),
		MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{
			MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0),
		},
	}
	addHash(a, hash)
	return &routev3.Route{
		Name:      "default",
		Match:     &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action:    &routev3.Route_Route{Route: a},
		Decorator: &routev3.Decorator{Operation: fmt.Sprintf("%s:%d/*", host, port)},
	}
}
