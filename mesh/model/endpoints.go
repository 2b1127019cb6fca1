package model

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (b *Builder) buildServices(s *Snapshot) {
	byHost := maps.Clone(s.byHost)
	if byHost == nil {
		byHost = map[string]*Service{}
	}
	changed := false
	for k := range b.dirtyServices {
		ns, name, _ := strings.Cut(k, "/")
		host := b.mesh.Hostname(name, ns)
		old := byHost[host]
		svc := b.mergeService(k)
		switch {
		case svc == nil && old == nil, old != nil && svc != nil && reflect.DeepEqual(old, svc):
			continue
		case svc == nil:
			delete(byHost, host)
		default:
			byHost[host] = svc
		}
		changed = true
	}
	if !changed && s.byHost != nil {
		return
	}
	s.byHost, s.ServicesAt = byHost, s.Sequence
	s.Services = slices.SortedFunc(maps.Values(byHost), func(a, b *Service) int { return cmp.Compare(a.Hostname, b.Hostname) })
	s.byNamespace = map[string][]*Service{}
	for _, svc := range s.Services {
		s.byNamespace[svc.Namespace] = append(s.byNamespace[svc.Namespace], svc)
	}
}

// mergeService makes one service of those of the same namespace and name in all clusters. The control plane's own cluster says
// what its ports are, or where it does not have the service, the first cluster by name that does.
func (b *Builder) mergeService(key string) *Service {
	var out *Service
	for _, id := range b.order {
		o := b.clusters[id].services[key]
		if o == nil {
			continue
		}
		svc := convertService(b.mesh, o)
		if svc == nil {
			continue
		}
		if out == nil {
			out = svc
			out.ClusterVIPs = map[string][]string{}
			out.ClusterLocal = b.clusterLocal(o)
		}
		out.ClusterVIPs[id] = svc.VIPs
	}
	return out
}

// clusterLocal is Istio's rule: what belongs to a cluster itself, and its control plane (pilot/pkg/model/cluster_local.go).
func (b *Builder) clusterLocal(o *corev1.Service) bool {
	return o.Namespace == metav1.NamespaceSystem || o.Namespace == metav1.NamespaceDefault && o.Name == "kubernetes" ||
		o.Namespace == b.mesh.RootNamespace && o.Labels["app"] == "istiod"
}

func (b *Builder) buildEndpoints(s *Snapshot) {
	eps := maps.Clone(s.endpoints)
	if eps == nil {
		eps = map[string]*Endpoints{}
	}
	for k := range b.dirtyEndpoints {
		ns, name, _ := strings.Cut(k, "/")
		host := b.mesh.Hostname(name, ns)
		if s.byHost[host] == nil {
			delete(eps, host)
			continue
		}
		e := b.endpointsOf(k, host)
		if old := eps[host]; old == nil || !reflect.DeepEqual(old, e) {
			eps[host] = e
		}
	}
	s.endpoints = eps
}

// endpointsOf gathers the endpoints of a service from every cluster.
func (b *Builder) endpointsOf(key, host string) *Endpoints {
	out := &Endpoints{Hostname: host, ByPort: map[string][]*Endpoint{}}
	ids := map[string]bool{}
	for _, id := range b.order {
		b.addEndpoints(out, ids, b.clusters[id], key)
	}
	for name, l := range out.ByPort {
		slices.SortFunc(l, compareEndpoints)
		out.ByPort[name] = slices.CompactFunc(l, func(a, b *Endpoint) bool { return compareEndpoints(a, b) == 0 })
	}
	out.Identities = slices.Sorted(maps.Keys(ids))
	return out
}

// compareEndpoints orders by address; the same address on two networks is two endpoints.
func compareEndpoints(a, b *Endpoint) int {
	return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Cluster, b.Cluster))
}

func (b *Builder) addEndpoints(out *Endpoints, ids map[string]bool, c *cluster, key string) {
	for _, slice := range c.slices[key] {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, ep := range slice.Endpoints {
			ready := ep.Conditions.Ready == nil || *ep.Conditions.Ready
			if !ready || len(ep.Addresses) == 0 {
				continue
			}
			pod, late := c.podOf(&ep, key)
			if late {
				continue // how it takes connections is not known, and plaintext may be wrong: Istio leaves it out as well
			}
			if pod != nil {
				ids[pod.Identity(b.mesh.TrustDomain)] = true
			}
			l := c.locality(pod, deref(ep.NodeName), deref(ep.Zone))
			network := c.networkOf(pod)
			for _, port := range slice.Ports {
				if port.Port == nil {
					continue
				}
				name := deref(port.Name)
				out.ByPort[name] = append(out.ByPort[name], &Endpoint{
					Address: ep.Addresses[0], Port: uint32(*port.Port), Pod: pod,
					Region: l.Region, Zone: l.Zone, SubZone: l.SubZone, Cluster: c.id, Network: network,
				})
			}
		}
	}
}

// podOf returns the pod behind an endpoint of a service, or nil where there is none. late says that one is named that has not come
// yet. Whichever it is, the service is looked at again when the pod comes, changes or goes.
func (c *cluster) podOf(ep *discoveryv1.Endpoint, service string) (pod *Pod, late bool) {
	if ref := ep.TargetRef; ref != nil && ref.Kind == "Pod" {
		pk := ref.Namespace + "/" + ref.Name
		c.use(pk, service)
		pod = c.pods[pk]
		return pod, pod == nil
	}
	c.use(ep.Addresses[0], service)
	return c.podsByIP[ep.Addresses[0]], false
}

func (c *cluster) use(pod, service string) {
	if c.podUsers[pod] == nil {
		c.podUsers[pod] = map[string]bool{}
	}
	c.podUsers[pod][service] = true
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
