package translate

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// localitySetting is what a policy says of localities, nil where it turns them off. As in Istio they are on where nothing is said.
func localitySetting(p *networking.TrafficPolicy) *networking.LocalityLoadBalancerSetting {
	s := p.GetLoadBalancer().GetLocalityLbSetting()
	switch {
	case s == nil:
		return &networking.LocalityLoadBalancerSetting{}
	case s.Enabled != nil && !s.Enabled.Value:
		return nil
	}
	return s
}

// usesLocality tells whether the endpoints that a caller gets under a rule depend on where it is.
func usesLocality(r *model.DestinationRule) bool {
	uses := false
	eachPolicy(r, func(lb *networking.LoadBalancerSettings, od *networking.OutlierDetection) {
		uses = uses || od != nil || len(lb.GetLocalityLbSetting().GetDistribute()) > 0
	})
	return uses
}

// applyLocality makes a cluster heed the weights of localities where a rule sets them, or says how to fail over.
func applyLocality(c *clusterv3.Cluster, p *networking.TrafficPolicy) {
	s := localitySetting(p)
	fails := p.GetOutlierDetection() != nil && len(s.GetFailover())+len(s.GetFailoverPriority()) > 0
	if fails || len(s.GetDistribute()) > 0 {
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
}

// prefer gives groups the weights or the priorities that they have for the caller. Priorities come only with outlier
// detection: without it a proxy would never learn that it has to go on to the next.
func (a *assigner) prefer(groups []*group, s *networking.LocalityLoadBalancerSetting, outliers bool) []*group {
	switch {
	case len(s.Distribute) > 0:
		return a.distribute(groups, s.Distribute)
	case !outliers:
		return groups
	case len(s.FailoverPriority) == 0:
		return a.failover(groups, s.Failover)
	}
	groups = a.byLabels(groups, s.FailoverPriority)
	if len(s.Failover) > 0 {
		groups = a.failover(groups, s.Failover)
	}
	return groups
}

// distribute weighs localities as the first setting for the caller's own says. Localities that it does not name get nothing.
func (a *assigner) distribute(groups []*group, settings []*networking.LocalityLoadBalancerSetting_Distribute) []*group {
	i := slices.IndexFunc(settings, func(d *networking.LocalityLoadBalancerSetting_Distribute) bool {
		return localityMatches(d.From, a.from.region, a.from.zone, a.from.subZone)
	})
	if i < 0 {
		return groups
	}
	var out []*group
	taken := map[*group]bool{}
	to := slices.Sorted(maps.Keys(settings[i].To))
	slices.Reverse(to) // so that "*" and what is less exact come last
	for _, locality := range to {
		var matched []*group
		total := uint32(0)
		for _, g := range groups {
			if !taken[g] && localityMatches(locality, g.region, g.zone, g.subZone) {
				taken[g] = true
				matched, total = append(matched, g), total+g.weight
			}
		}
		for _, g := range matched {
			g.weight = uint32(math.Ceil(float64(g.weight) * float64(settings[i].To[locality]) / float64(total))) // validation refuses 0
		}
		out = append(out, matched...)
	}
	sortGroups(out)
	return out
}

// localityMatches tells whether a locality of a rule, region/zone/subzone with "*" for any, covers one.
func localityMatches(rule, region, zone, subZone string) bool {
	f := append(strings.SplitN(rule, "/", 3), "", "")
	return (f[0] == "*" || f[0] == region) && (f[1] == "*" || f[1] == "" || f[1] == zone) && (f[2] == "*" || f[2] == "" || f[2] == subZone)
}

// failover puts what is nearest to the caller first: the same subzone, zone, region, then others. Where the rule names the region
// to fail over to, that one comes before the rest.
func (a *assigner) failover(groups []*group, settings []*networking.LocalityLoadBalancerSetting_Failover) []*group {
	const levels = 5
	for _, g := range groups {
		far := uint32(0)
		switch {
		case g.region != a.from.region:
			far = 3
			i := slices.IndexFunc(settings, func(f *networking.LocalityLoadBalancerSetting_Failover) bool { return f.From == a.from.region })
			if i >= 0 && settings[i].To != g.region {
				far = 4
			}
		case g.zone != a.from.zone:
			far = 2
		case g.subZone != a.from.subZone:
			far = 1
		}
		g.priority = g.priority*levels + far
	}
	return compact(groups)
}

// byLabels splits groups by how many of the labels, from the first on, an endpoint has in common with the caller.
func (a *assigner) byLabels(groups []*group, priorities []string) []*group {
	var out []*group
	for _, g := range groups {
		parts := map[uint32]*group{}
		for i, e := range g.of {
			p := a.labelPriority(e, priorities)
			part := parts[p]
			if part == nil {
				part = &group{region: g.region, zone: g.zone, subZone: g.subZone, priority: p}
				parts[p] = part
				out = append(out, part)
			}
			part.of, part.lb = append(part.of, e), append(part.lb, g.lb[i])
			part.weight += g.lb[i].LoadBalancingWeight.Value
		}
	}
	return compact(out)
}

func (a *assigner) labelPriority(e *model.Endpoint, priorities []string) uint32 {
	lowest := len(priorities)
	priority, other := 0, 0
	for i, p := range priorities {
		name, want := cutPriority(p)
		if want == "" {
			want = a.own(name)
		}
		if labelOf(e, name) == want {
			continue
		}
		if i == 0 && name == networkLabel {
			other = lowest // whatever is in another network comes after all that is in this one
			continue
		}
		priority = lowest - i
		break
	}
	return uint32(priority + other)
}

// own is the caller's label, or what stands for it.
func (a *assigner) own(name string) string {
	switch name {
	case regionLabel:
		return a.from.region
	case zoneLabel:
		return a.from.zone
	case subZoneLabel:
		return a.from.subZone
	case clusterLabel:
		return a.from.cluster
	case networkLabel:
		return a.from.network
	}
	return a.labels[name]
}

// cutPriority splits an entry of failoverPriority: a label's name, or name=value.
func cutPriority(p string) (name, value string) {
	name, value, _ = strings.Cut(p, "=")
	return name, value
}

// compact makes priorities run from 0 without gaps, as xDS wants them.
func compact(groups []*group) []*group {
	var all []uint32
	for _, g := range groups {
		all = append(all, g.priority)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	for _, g := range groups {
		i, _ := slices.BinarySearch(all, g.priority)
		g.priority = uint32(i)
	}
	sortGroups(groups)
	return groups
}

func sortGroups(groups []*group) {
	slices.SortStableFunc(groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.zone, b.zone), cmp.Compare(a.subZone, b.subZone), cmp.Compare(a.priority, b.priority))
	})
}
