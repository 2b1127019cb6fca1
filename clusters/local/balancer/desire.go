// Package balancer gives Services of type LoadBalancer their addresses, as a cloud's controller would: it takes them from the
// cluster's range, has them routed to the nodes, and writes them into the status. What then happens on a node is kube-proxy's.
package balancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Balancer is one Service with an address.
type Balancer struct {
	Namespace string     `json:"namespace"`
	Service   string     `json:"service"`
	IP        netip.Addr `json:"ip"`
	Ports     []Port     `json:"ports"`
	// Nodes that the address is routed to, by their place in the cluster.
	Nodes []int `json:"nodes"`
}

// Port is one port of a Balancer.
type Port struct {
	Name     string `json:"name,omitempty"`
	Port     int32  `json:"port"`
	Protocol string `json:"protocol"`
}

type key struct{ namespace, name string }

// pool hands addresses out. Its zero value needs a prefix.
type pool struct {
	prefix netip.Prefix
	last   netip.Addr // handed out latest; the search goes on from there, so that an address rests before it is used again
	given  map[key]netip.Addr
}

// retain takes back the addresses of Services that keep does not have.
func (p *pool) retain(keep map[key]bool) {
	for k := range p.given {
		if !keep[k] {
			delete(p.given, k)
		}
	}
}

func (p *pool) taken(ip netip.Addr) (by key, taken bool) {
	for k, other := range p.given {
		if other == ip {
			return k, true
		}
	}
	return key{}, false
}

// address returns the address of a Service: the one that it has, else the wanted one, else a free one.
func (p *pool) address(k key, wanted string) (netip.Addr, error) {
	if p.given == nil {
		p.given = map[key]netip.Addr{}
	}
	have, ok := p.given[k]
	if ok && (wanted == "" || wanted == have.String()) {
		return have, nil
	}
	if wanted != "" {
		ip, err := netip.ParseAddr(wanted)
		if err != nil || !p.usable(ip) {
			return netip.Addr{}, fmt.Errorf("address %q is not one of %s", wanted, p.prefix)
		}
		if by, taken := p.taken(ip); taken {
			return netip.Addr{}, fmt.Errorf("address %s belongs to Service %s/%s", ip, by.namespace, by.name)
		}
		p.given[k] = ip
		return ip, nil
	}
	ip := p.last
	for range 1 << (32 - p.prefix.Bits()) {
		if ip = ip.Next(); !p.prefix.Contains(ip) {
			ip = p.prefix.Addr().Next()
		}
		if _, taken := p.taken(ip); !taken && p.usable(ip) {
			p.given[k], p.last = ip, ip
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all addresses of %s are taken", p.prefix)
}

// usable leaves out the network's own address and the broadcast address.
func (p *pool) usable(ip netip.Addr) bool {
	return p.prefix.Contains(ip) && ip != p.prefix.Masked().Addr() && p.prefix.Contains(ip.Next())
}

// ours tells whether a Service is this controller's: others may bring a class of their own.
func ours(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil && s.DeletionTimestamp == nil
}

// targets are the nodes that a Service's address is routed to: all, or with externalTrafficPolicy Local those with a ready
// endpoint; where none is ready, those with one that still serves while it ends, as kube-proxy does.
func targets(s *corev1.Service, slicesOf []*discoveryv1.EndpointSlice, nodes []string) []int {
	var all, ready, ending []int
	for i := range nodes {
		all = append(all, i)
	}
	if s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return all
	}
	for _, sl := range slicesOf {
		for _, e := range sl.Endpoints {
			if e.NodeName == nil {
				continue
			}
			i := slices.Index(nodes, *e.NodeName)
			switch {
			case i < 0:
			case e.Conditions.Ready == nil || *e.Conditions.Ready:
				ready = append(ready, i)
			case e.Conditions.Serving != nil && *e.Conditions.Serving:
				ending = append(ending, i)
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.Sort(ready)
	return slices.Compact(ready)
}

func describe(s *corev1.Service, ip netip.Addr, nodes []int) Balancer {
	b := Balancer{Namespace: s.Namespace, Service: s.Name, IP: ip, Nodes: nodes}
	for _, p := range s.Spec.Ports {
		b.Ports = append(b.Ports, Port{Name: p.Name, Port: p.Port, Protocol: string(p.Protocol)})
	}
	return b
}

func sortServices(list []*corev1.Service) {
	slices.SortFunc(list, func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func compare(a, b Balancer) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Service, b.Service))
}

func equal(a, b Balancer) bool {
	return a.Namespace == b.Namespace && a.Service == b.Service && a.IP == b.IP && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Nodes, b.Nodes)
}
