package model

import (
	"fmt"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/objects"
)

// references finds what valid objects refer to and the mesh does not have. Such objects stay in force: what they refer to
// may still come.
func references(s *Snapshot) []ObjectProblem {
	a := &analysis{s: s}
	for _, vs := range s.VirtualServices {
		a.meta = &vs.Meta
		if slices.Contains(vs.Gateways, "mesh") {
			for i, h := range vs.Hosts {
				a.host(fmt.Sprintf("spec.hosts[%d]", i), vs.Spec.Spec.Hosts[i], h)
			}
		}
		for i, g := range vs.Spec.Spec.Gateways {
			a.gateway(fmt.Sprintf("spec.gateways[%d]", i), g)
		}
		for i, r := range vs.Spec.Spec.Http {
			for j, d := range r.Route {
				a.destination(fmt.Sprintf("spec.http[%d].route[%d].destination", i, j), d.Destination)
			}
			for j, m := range r.Match {
				for k, g := range m.Gateways {
					a.gateway(fmt.Sprintf("spec.http[%d].match[%d].gateways[%d]", i, j, k), g)
				}
			}
		}
		for i, r := range vs.Spec.Spec.Tls {
			for j, d := range r.Route {
				a.destination(fmt.Sprintf("spec.tls[%d].route[%d].destination", i, j), d.Destination)
			}
		}
		for i, r := range vs.Spec.Spec.Tcp {
			for j, d := range r.Route {
				a.destination(fmt.Sprintf("spec.tcp[%d].route[%d].destination", i, j), d.Destination)
			}
		}
	}
	a.gateways()
	a.second()
	for _, r := range s.DestinationRules {
		a.meta = &r.Meta
		if !strings.HasPrefix(r.Host, "*") && s.Service(r.Host) == nil {
			a.warn("spec.host", fmt.Sprintf("host %q is no service of the mesh", r.Spec.Spec.Host), a.similar(r.Spec.Spec.Host))
		}
	}
	return a.out
}

type analysis struct {
	s    *Snapshot
	meta *Meta
	out  []ObjectProblem
}

func (a *analysis) warn(field, message, fix string) {
	a.out = append(a.out, ObjectProblem{
		Object: a.meta.Key, Generation: a.meta.Generation, InForce: "this",
		Problem: objects.Problem{Severity: objects.Warning, Field: field, Message: message, Fix: fix},
	})
}

// host finds hosts that are meant to be services: of other names, rules may be for what lies outside the mesh.
func (a *analysis) host(field, written, full string) {
	if strings.HasPrefix(full, "*") || a.s.Service(full) != nil {
		return
	}
	fix := a.similar(written)
	if strings.Contains(written, ".") && fix == "" && !strings.HasSuffix(full, ".svc."+a.s.Mesh.DomainSuffix) {
		return
	}
	a.warn(field, fmt.Sprintf("host %q is no service of the mesh: sidecars obey the rules for that very name, on port 80", written), fix)
}

func (a *analysis) gateway(field, name string) {
	full := ResolveGateway(name, a.meta.Key.Namespace)
	if full == "mesh" {
		return
	}
	var all []string
	for _, g := range a.s.Gateways {
		if g.Name() == full {
			return
		}
		all = append(all, g.Name())
	}
	a.warn(field, fmt.Sprintf("there is no Gateway %s", full), suggestion(full, all))
}

// gateways finds servers that have to give way to those of older Gateways for the same proxies: a port is HTTP in clear or something
// else, and behind TLS each name belongs to one server.
func (a *analysis) gateways() {
	type port struct {
		selector string
		number   uint32
	}
	type name struct {
		port
		host string
	}
	kinds, names := map[port]*Gateway{}, map[name]*Gateway{}
	inClear := map[port]bool{}
	for _, g := range a.s.Gateways {
		a.meta = &g.Meta
		for i, srv := range g.Spec.Spec.Servers {
			p := port{fmt.Sprint(g.Spec.Spec.Selector), srv.GetPort().GetNumber()}
			protocol := strings.ToUpper(srv.GetPort().GetProtocol())
			plain := protocol != "HTTPS" && protocol != "TLS" && protocol != "TCP"
			if kinds[p] == nil {
				kinds[p], inClear[p] = g, plain
			}
			if inClear[p] != plain {
				a.warn(fmt.Sprintf("spec.servers[%d].port", i), fmt.Sprintf("%s on port %d, which Gateway %s has for another protocol: this server is not served", protocol, p.number, kinds[p].Name()), "use another port")
				continue
			}
			if plain || srv.GetTls() == nil {
				continue // HTTP in clear is told apart by its host header, all servers together
			}
			for j, h := range srv.Hosts {
				_, host, ok := strings.Cut(h, "/")
				if !ok {
					host = h
				}
				n := name{p, host}
				if other := names[n]; other != nil {
					a.warn(fmt.Sprintf("spec.servers[%d].hosts[%d]", i, j), fmt.Sprintf("%q on port %d is served by Gateway %s", host, p.number, other.Name()), "name each host once")
					continue
				}
				names[n] = g
			}
		}
	}
}

// second finds rules for a host that an older object has rules for already: of them only the oldest object's are obeyed.
// DestinationRules stand beside those of other namespaces; gateways obey all VirtualServices of a host together, sidecars do not.
func (a *analysis) second() {
	type key struct{ namespace, host string }
	rules := map[key][]*Meta{}
	for _, r := range a.s.DestinationRules {
		a.meta = &r.Meta
		k := key{r.Key.Namespace, r.Host}
		if older := a.ahead(rules[k]); older != nil {
			a.warn("spec.host", fmt.Sprintf("DestinationRule %s/%s is for the same host and older: this one is not obeyed", older.Key.Namespace, older.Key.Name),
				"put the policy and all subsets of the host into one")
		}
		rules[k] = append(rules[k], &r.Meta)
	}
	hosts := map[string][]*Meta{}
	for _, vs := range a.s.VirtualServices {
		if len(vs.Spec.Spec.Http) == 0 || !slices.Contains(vs.Gateways, "mesh") {
			continue
		}
		a.meta = &vs.Meta
		for i, h := range vs.Hosts {
			if older := a.ahead(hosts[h]); older != nil && older != a.meta {
				a.warn(fmt.Sprintf("spec.hosts[%d]", i), fmt.Sprintf("VirtualService %s/%s has http rules for %q and is older: sidecars obey only those", older.Key.Namespace, older.Key.Name, h),
					"put all http rules of the host into one")
			}
			hosts[h] = append(hosts[h], a.meta)
		}
	}
}

// ahead is the first of older objects that is seen wherever the present one is, or nil.
func (a *analysis) ahead(older []*Meta) *Meta {
	for _, m := range older {
		if len(m.ExportTo) == 0 || slices.Contains(m.ExportTo, "*") {
			return m
		}
		if m.Key.Namespace != a.meta.Key.Namespace || len(a.meta.ExportTo) == 0 {
			continue
		}
		if !slices.ContainsFunc(a.meta.ExportTo, func(e string) bool { return e != "." && !slices.Contains(m.ExportTo, e) }) {
			return m
		}
	}
	return nil
}

func (a *analysis) destination(at string, d *networkingv1alpha3.Destination) {
	host := a.s.Mesh.Resolve(d.Host, a.meta.Key.Namespace)
	svc := a.s.Service(host)
	if svc == nil {
		a.warn(at+".host", fmt.Sprintf("host %q is no service of the mesh; requests for it fail", d.Host), a.similar(d.Host))
		return
	}
	if n := d.GetPort().GetNumber(); n != 0 {
		found := false
		var ports []string
		for _, p := range svc.Ports {
			found = found || p.Number == n
			ports = append(ports, fmt.Sprint(p.Number))
		}
		if !found {
			a.warn(at+".port.number", fmt.Sprintf("service %s has no port %d", host, n), "it has "+strings.Join(ports, ", "))
		}
	}
	if d.Subset == "" {
		return
	}
	var subsets []string
	if r := a.s.DestinationRule(a.meta.Key.Namespace, host, svc.Namespace); r != nil {
		for _, sub := range r.Spec.Spec.Subsets {
			if sub.Name == d.Subset {
				return
			}
			subsets = append(subsets, sub.Name)
		}
	}
	fix := suggestion(d.Subset, subsets)
	if fix == "" {
		fix = "make a DestinationRule with this subset"
	}
	a.warn(at+".subset", fmt.Sprintf("no DestinationRule for %s has a subset %q; requests for it fail", host, d.Subset), fix)
}

// similar suggests a service in the form in which host is written.
func (a *analysis) similar(host string) string {
	var all []string
	for _, svc := range a.s.Services {
		switch {
		case strings.Contains(host, "."):
			all = append(all, svc.Hostname, svc.Name+"."+svc.Namespace)
		case svc.Namespace == a.meta.Key.Namespace:
			all = append(all, svc.Name)
		}
	}
	return suggestion(host, all)
}

func suggestion(word string, all []string) string {
	if n := objects.Nearest(word, all); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	return ""
}
