package translate

import (
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// policyOf is what a rule says of one port of a host, or of a subset of it when subset is not empty. The nearer setting
// replaces the farther one as a whole, setting by setting; a port's settings stand alone, so that what they leave out is the
// default and not the rule's. It is nil without a rule, and must not be changed.
func policyOf(rule *model.DestinationRule, subset string, port uint32) *networking.TrafficPolicy {
	if rule == nil {
		return nil
	}
	out := portPolicy(rule.Spec.Spec.TrafficPolicy, port, &networking.TrafficPolicy{})
	for _, sub := range rule.Spec.Spec.Subsets {
		if subset != "" && sub.Name == subset {
			return portPolicy(sub.TrafficPolicy, port, out)
		}
	}
	return out
}

// portPolicy overlays base with what p says of a port.
func portPolicy(p *networking.TrafficPolicy, port uint32, base *networking.TrafficPolicy) *networking.TrafficPolicy {
	if p == nil {
		return base
	}
	for _, pl := range p.PortLevelSettings {
		if pl.GetPort().GetNumber() == port {
			return &networking.TrafficPolicy{
				LoadBalancer: pl.LoadBalancer, ConnectionPool: pl.ConnectionPool, OutlierDetection: pl.OutlierDetection, Tls: pl.Tls,
			}
		}
	}
	if p.LoadBalancer != nil {
		base.LoadBalancer = p.LoadBalancer
	}
	if p.ConnectionPool != nil {
		base.ConnectionPool = p.ConnectionPool
	}
	if p.OutlierDetection != nil {
		base.OutlierDetection = p.OutlierDetection
	}
	if p.Tls != nil {
		base.Tls = p.Tls
	}
	return base
}

// needs are the things about callers that some rule of a snapshot asks for. What no rule asks for is left out of scopes and
// keys, so that proxies which differ in nothing else share their configuration.
type needs struct {
	labels   []string // beside those of virtual services
	locality bool     // the order of endpoints depends on where the caller is
	hash     bool     // some host has a consistent hash
}

func (t *Translator) needsOf(s *model.Snapshot) *needs {
	n, _ := t.needs.get(s.Sequence, s, func() (*needs, error) {
		n := &needs{}
		for _, r := range s.DestinationRules {
			eachPolicy(r, func(lb *networking.LoadBalancerSettings, od *networking.OutlierDetection) {
				n.hash = n.hash || lb.GetConsistentHash() != nil
				n.locality = n.locality || od != nil || len(lb.GetLocalityLbSetting().GetDistribute()) > 0
				for _, p := range lb.GetLocalityLbSetting().GetFailoverPriority() {
					name, _ := cutPriority(p)
					n.labels = append(n.labels, name)
				}
			})
		}
		return n, nil
	})
	return n
}

// eachPolicy calls f with every policy of a rule: its own, its subsets' and those of ports.
func eachPolicy(r *model.DestinationRule, f func(*networking.LoadBalancerSettings, *networking.OutlierDetection)) {
	each := func(p *networking.TrafficPolicy) {
		f(p.GetLoadBalancer(), p.GetOutlierDetection())
		for _, pl := range p.GetPortLevelSettings() {
			f(pl.LoadBalancer, pl.OutlierDetection)
		}
	}
	each(r.Spec.Spec.TrafficPolicy)
	for _, sub := range r.Spec.Spec.Subsets {
		each(sub.TrafficPolicy)
	}
}
