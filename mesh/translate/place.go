package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/mesh/model"
)

// place is where a caller is, as far as the endpoints that it sees depend on it. It is a key: what makes no difference is empty.
type place struct {
	network  string
	networks string // that the caller wants to see, with separators around each; empty is all
	gateways string // of the snapshot, as text

	region, zone, subZone string
	cluster               string
	labels                string
}

// sees tells whether a caller wants endpoints of a network. Those of no network are seen by all.
func (p place) sees(network string) bool {
	return p.networks == "" || network == "" || strings.Contains(p.networks, "\n"+network+"\n")
}

// near is the part of a scope's place that the endpoints of a service with a rule depend on.
func (o *outbound) near(svc *model.Service, rule *model.DestinationRule) place {
	p := place{networks: o.scope.networks, gateways: o.nets.text}
	if svc.ClusterLocal {
		p.cluster = cmp.Or(o.scope.cluster, o.s.Mesh.ClusterID)
	}
	if p.gateways != "" {
		p.network = o.scope.network
	}
	if rule == nil || !o.needs.locality || !usesLocality(rule) {
		return p
	}
	p.network, p.cluster, p.labels = o.scope.network, o.scope.cluster, o.scope.labels
	p.region, p.zone, p.subZone = o.scope.region, o.scope.zone, o.scope.subZone
	return p
}

// networks are the ways between the networks of a mesh.
type networks struct {
	gateways map[string][]model.NetworkGateway
	text     string // the same, for keys
	// scale is what one endpoint weighs: a number that the gateways of every network, and of every cluster in one, can share
	// without a rest.
	scale uint32
}

func (t *Translator) networksOf(s *model.Snapshot) *networks {
	n, _ := t.nets.get(s.Sequence, s, func() (*networks, error) {
		out := &networks{gateways: s.NetworkGateways, scale: 1}
		for _, network := range slices.Sorted(maps.Keys(s.NetworkGateways)) {
			gws := s.NetworkGateways[network]
			if len(gws) == 0 {
				continue
			}
			out.scale = lcm(out.scale, uint32(len(gws)))
			clusters := map[string]uint32{}
			for _, gw := range gws {
				clusters[gw.Cluster]++
				out.text += fmt.Sprintf("%s %s %d %s\n", network, gw.Address, gw.Port, gw.Cluster)
			}
			for _, n := range clusters {
				out.scale = lcm(out.scale, n)
			}
		}
		return out, nil
	})
	return n
}

// to gives the gateways of a network: those of the endpoint's own cluster where there are such, else all.
func (n *networks) to(network, cluster string) []model.NetworkGateway {
	all := n.gateways[network]
	var own []model.NetworkGateway
	for _, gw := range all {
		if gw.Cluster == cluster {
			own = append(own, gw)
		}
	}
	if len(own) > 0 {
		return own
	}
	return all
}

// behindGateway tells whether an endpoint is reached by its network's gateway alone from a network, empty if that is not known.
func (n *networks) behindGateway(e *model.Endpoint, from string) bool {
	return e.Network != "" && e.Network != from && len(n.gateways[e.Network]) > 0
}

func (o *outbound) behindGateway(e *model.Endpoint) bool {
	return o.nets.behindGateway(e, o.scope.network)
}

func sortedGateways(m map[model.NetworkGateway]uint32) []model.NetworkGateway {
	return slices.SortedFunc(maps.Keys(m), func(a, b model.NetworkGateway) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Network, b.Network))
	})
}

func lcm(a, b uint32) uint32 {
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	return a / x * b
}

// Labels that say where something runs. They are not labels of pods but follow from where these are.
const (
	regionLabel  = "topology.kubernetes.io/region"
	zoneLabel    = "topology.kubernetes.io/zone"
	subZoneLabel = "topology.istio.io/subzone"
	clusterLabel = "topology.istio.io/cluster"
	networkLabel = "topology.istio.io/network"
)

// labelOf is an endpoint's label, or what stands for it.
func labelOf(e *model.Endpoint, name string) string {
	switch name {
	case regionLabel:
		return e.Region
	case zoneLabel:
		return e.Zone
	case subZoneLabel:
		return e.SubZone
	case clusterLabel:
		return e.Cluster
	case networkLabel:
		return e.Network
	}
	if e.Pod == nil {
		return ""
	}
	return e.Pod.Labels[name]
}

func hasLabels(e *model.Endpoint, want map[string]string) bool {
	for k, v := range want {
		if labelOf(e, k) != v {
			return false
		}
	}
	return true
}
