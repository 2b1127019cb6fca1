package model

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// GatewayPortLabel of a Service that is the way into a network says at which port; an annotation of that name does too.
const GatewayPortLabel = "networking.istio.io/gatewayPort"

// DefaultGatewayPort is where an east-west gateway takes connections for others to pass on, as Istio has it.
const DefaultGatewayPort = 15443

// buildClusters fills in what a Snapshot knows of clusters as such.
func (b *Builder) buildClusters(s *Snapshot) {
	s.networks = make(map[string]string, len(b.clusters))
	s.nodes = make(map[string]map[string]Locality, len(b.clusters))
	for id, c := range b.clusters {
		s.networks[id] = c.network
		s.nodes[id] = maps.Clone(c.nodes)
	}
	for id := range s.pods {
		if b.clusters[id] == nil {
			s.pods = maps.Clone(s.pods)
			delete(s.pods, id)
		}
	}
}

// buildGateways finds the ways into networks among the services.
func (b *Builder) buildGateways(s *Snapshot) {
	out := map[string][]NetworkGateway{}
	for _, id := range b.order {
		for _, o := range b.clusters[id].services {
			network := o.Labels[NetworkLabel]
			if network == "" {
				continue
			}
			port := gatewayPort(o)
			for _, a := range externalAddresses(o) {
				out[network] = append(out[network], NetworkGateway{Address: a, Port: port, Cluster: id, Network: network})
			}
		}
	}
	for network, l := range out {
		slices.SortFunc(l, func(a, b NetworkGateway) int {
			return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Cluster, b.Cluster))
		})
		out[network] = slices.CompactFunc(l, func(a, b NetworkGateway) bool { return a.Address == b.Address && a.Port == b.Port })
	}
	if s.NetworkGateways != nil && reflect.DeepEqual(s.NetworkGateways, out) {
		return
	}
	s.NetworkGateways, s.NetworksAt = out, s.Sequence
}

func gatewayPort(o *corev1.Service) uint32 {
	v := cmp.Or(o.Annotations[GatewayPortLabel], o.Labels[GatewayPortLabel])
	if n, err := strconv.ParseUint(v, 10, 16); err == nil && n != 0 {
		return uint32(n)
	}
	return DefaultGatewayPort
}

// externalAddresses are the IP addresses at which a Service can be reached from outside its cluster.
func externalAddresses(o *corev1.Service) []string {
	var out []string
	if o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range o.Status.LoadBalancer.Ingress {
			out = append(out, in.IP)
		}
	}
	out = append(out, o.Spec.ExternalIPs...)
	return slices.DeleteFunc(out, func(a string) bool {
		_, err := netip.ParseAddr(a)
		return err != nil // a host name: proxies are given addresses only
	})
}

// View completes what a proxy says of itself by what the mesh knows of its pod: its cluster, network and place.
func (s *Snapshot) View(v ProxyView) ProxyView {
	v.ClusterID = cmp.Or(v.ClusterID, s.Mesh.ClusterID)
	pod := s.PodIn(v.ClusterID, v.Namespace, v.Pod)
	v.Network = cmp.Or(v.Network, v.Labels[NetworkLabel], s.networks[v.ClusterID])
	if v.Region == "" && v.Zone == "" && v.SubZone == "" {
		c := cluster{nodes: s.nodes[v.ClusterID]}
		l := c.locality(pod, "", "")
		v.Region, v.Zone, v.SubZone = l.Region, l.Zone, l.SubZone
	}
	return v
}

// Clusters lists the clusters that something is known of, by name, each with its network.
func (s *Snapshot) Clusters() map[string]string { return maps.Clone(s.networks) }
