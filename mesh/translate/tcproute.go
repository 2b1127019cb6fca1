package translate

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// tcpCluster is where connections to a TCP port go: to the destination of the first tcp rule that holds for it, else to
// the service. Validation lets through only rules with one destination.
func (o *outbound) tcpCluster(svc *model.Service, p model.Port) string {
	for _, vs := range o.virtual {
		if !slices.Contains(vs.Gateways, "mesh") || !slices.Contains(vs.Hosts, svc.Hostname) {
			continue
		}
		for _, r := range vs.Spec.Spec.Tcp {
			if len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m *networking.L4MatchAttributes) bool {
				return (m.Port == 0 || m.Port == p.Number) && o.sourceMatches(vs, m.SourceLabels, m.SourceNamespace, m.Gateways, "mesh")
			}) {
				return o.destination(vs, r.Route[0].Destination, p.Number)
			}
		}
	}
	return clusterName(p.Number, "", svc.Hostname)
}
