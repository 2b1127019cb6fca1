package model

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Labels that say where things are: of nodes, pods and the root namespace of each cluster. Names are Istio's
// (istio/api label/labels.yaml) and Kubernetes' own.
const (
	RegionLabel  = "topology.kubernetes.io/region"
	ZoneLabel    = "topology.kubernetes.io/zone"
	SubZoneLabel = "topology.istio.io/subzone"
	NetworkLabel = "topology.istio.io/network"
	// LocalityLabel of a pod stands above its node's labels: region.zone.subzone.
	LocalityLabel = "istio-locality"
)

// Locality is a place: a region, a zone in it and a part of the zone. Each may be empty.
type Locality struct {
	Region, Zone, SubZone string
}

// cluster is what the Builder has of one cluster.
type cluster struct {
	id       string
	network  string // of its root namespace's label
	services map[string]*corev1.Service
	slices   map[string]map[string]*discoveryv1.EndpointSlice
	pods     map[string]*Pod
	podsByIP map[string]*Pod
	podUsers map[string]map[string]bool // pod by name, or by address where an endpoint names none -> services with an endpoint on it
	nodes    map[string]Locality

	dirtyPods bool
}

func newCluster(id string) *cluster {
	return &cluster{
		id: id, services: map[string]*corev1.Service{}, slices: map[string]map[string]*discoveryv1.EndpointSlice{},
		pods: map[string]*Pod{}, podsByIP: map[string]*Pod{}, podUsers: map[string]map[string]bool{}, nodes: map[string]Locality{}, dirtyPods: true,
	}
}

// in returns the cluster of that name, which is new when nothing was recorded of it yet.
func (b *Builder) in(id string) *cluster {
	c := b.clusters[id]
	if c == nil {
		c = newCluster(id)
		if id == b.mesh.ClusterID {
			c.network = b.mesh.Network
		}
		b.clusters[id] = c
		b.order = slices.SortedFunc(maps.Keys(b.clusters), func(x, y string) int {
			own := func(id string) int {
				if id == b.mesh.ClusterID {
					return 0
				}
				return 1
			}
			return cmp.Or(own(x)-own(y), strings.Compare(x, y))
		})
		b.dirtyClusters = true
	}
	return c
}

// Forget records that nothing is known of a cluster any more.
func (b *Builder) Forget(id string) Change {
	c := b.clusters[id]
	if c == nil {
		return Nothing
	}
	delete(b.clusters, id)
	b.order = slices.DeleteFunc(slices.Clone(b.order), func(x string) bool { return x == id })
	b.touch(c)
	b.dirtyClusters = true
	return Config
}

// touch makes everything of a cluster be looked at again.
func (b *Builder) touch(c *cluster) {
	for k := range c.services {
		b.dirtyServices[k], b.dirtyEndpoints[k] = true, true
	}
	for k := range c.slices {
		b.dirtyEndpoints[k] = true
	}
}

// setNamespace takes in the root namespace of a cluster, whose label names the cluster's network.
func (b *Builder) setNamespace(c *cluster, o *corev1.Namespace, gone bool) Change {
	if o.Name != b.mesh.RootNamespace {
		return Nothing
	}
	network := ""
	if !gone {
		network = o.Labels[NetworkLabel]
	}
	if network == "" && c.id == b.mesh.ClusterID {
		network = b.mesh.Network
	}
	if network == c.network {
		return Nothing
	}
	c.network = network
	b.touch(c)
	b.dirtyClusters = true
	return Config
}

func (b *Builder) setNode(c *cluster, o *corev1.Node, gone bool) Change {
	l := Locality{Region: o.Labels[RegionLabel], Zone: o.Labels[ZoneLabel], SubZone: o.Labels[SubZoneLabel]}
	old, known := c.nodes[o.Name]
	if gone {
		delete(c.nodes, o.Name)
		return Nothing // its endpoints go with their pods
	}
	if known && l == old {
		return Nothing
	}
	c.nodes[o.Name] = l
	if !known && l == (Locality{}) {
		return Nothing
	}
	for key, list := range c.slices {
		if sliceOn(list, o.Name) {
			b.dirtyEndpoints[key] = true
		}
	}
	b.dirtyClusters = true // proxies on the node move with it
	return EndpointsOnly
}

func sliceOn(list map[string]*discoveryv1.EndpointSlice, node string) bool {
	for _, s := range list {
		for _, e := range s.Endpoints {
			if e.NodeName != nil && *e.NodeName == node {
				return true
			}
		}
	}
	return false
}

func (b *Builder) setPod(c *cluster, o *corev1.Pod) Change {
	k := o.Namespace + "/" + o.Name
	p := convertPod(o)
	p.Cluster = c.id
	old := c.pods[k]
	if old != nil && reflect.DeepEqual(old, p) {
		return Nothing
	}
	if old != nil && c.podsByIP[old.IP] == old {
		delete(c.podsByIP, old.IP)
	}
	c.pods[k] = p
	if p.IP != "" && !o.Spec.HostNetwork && o.Status.Phase != corev1.PodFailed && o.Status.Phase != corev1.PodSucceeded {
		c.podsByIP[p.IP] = p
	}
	c.dirtyPods = true
	b.touchUsers(c, k, p.IP)
	if old != nil && old.IP != p.IP {
		b.touchUsers(c, old.IP)
	}
	return EndpointsOnly
}

func (b *Builder) deletePod(c *cluster, o *corev1.Pod) Change {
	k := o.Namespace + "/" + o.Name
	b.touchUsers(c, k)
	delete(c.podUsers, k)
	if p := c.pods[k]; p != nil {
		if c.podsByIP[p.IP] == p {
			delete(c.podsByIP, p.IP)
		}
		delete(c.pods, k)
		b.touchUsers(c, p.IP)
		delete(c.podUsers, p.IP)
	}
	c.dirtyPods = true
	return EndpointsOnly
}

// touchUsers makes the endpoints on pods, by name or address, be looked at again.
func (b *Builder) touchUsers(c *cluster, pods ...string) {
	for _, p := range pods {
		for svc := range c.podUsers[p] {
			b.dirtyEndpoints[svc] = true
		}
	}
}

// locality is where a pod is: what its label says, else its node's labels. Pods without either, and endpoints that are no pods,
// have what the slice says.
func (c *cluster) locality(pod *Pod, node, zone string) Locality {
	if pod != nil {
		if l := pod.Labels[LocalityLabel]; l != "" {
			// A label value cannot hold slashes.
			p := strings.SplitN(strings.ReplaceAll(l, "/", "."), ".", 3)
			return Locality{at(p, 0), at(p, 1), at(p, 2)}
		}
		node = cmp.Or(node, pod.Node)
	}
	l := c.nodes[node]
	l.Zone = cmp.Or(l.Zone, zone)
	return l
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return ""
}

// networkOf is the network of a pod: what its label says, else its cluster's.
func (c *cluster) networkOf(pod *Pod) string {
	if pod != nil && pod.Labels[NetworkLabel] != "" {
		return pod.Labels[NetworkLabel]
	}
	return c.network
}
