package translate

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// minimumRing is Envoy's default, which Istio writes out where a rule names neither a ring nor maglev.
const minimumRing = 1024

func applyBalancer(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings) {
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case networking.LoadBalancerSettings_PASSTHROUGH:
		c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.EdsClusterConfig = nil
	default: // LEAST_REQUEST, its old name LEAST_CONN, and nothing said
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	}
	if h := lb.GetConsistentHash(); h != nil {
		applyHash(c, h)
	}
}

func applyHash(c *clusterv3.Cluster, h *networking.LoadBalancerSettings_ConsistentHashLB) {
	ring := func(size uint64) {
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		if size > 0 {
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{
				RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(size)},
			}
		}
	}
	switch {
	case h.GetMaglev() != nil:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		if n := h.GetMaglev().TableSize; n > 0 {
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(n)}}
		}
	case h.GetRingHash() != nil:
		ring(h.GetRingHash().MinimumRingSize)
	case h.GetMinimumRingSize() > 0: // its old place
		ring(h.GetMinimumRingSize())
	default:
		ring(minimumRing)
	}
}

// hashOf is what a rule hashes requests to a destination by, nil when it is not balanced by hash.
func (o *outbound) hashOf(host, subset string, port uint32) *networking.LoadBalancerSettings_ConsistentHashLB {
	if !o.needs.hash {
		return nil
	}
	svc := o.service(host)
	if svc == nil {
		return nil
	}
	return policyOf(o.s.DestinationRule(o.scope.namespace, host, svc.Namespace), subset, port).GetLoadBalancer().GetConsistentHash()
}

// hashPolicy is what a route hashes by, nil for nothing.
func hashPolicy(h *networking.LoadBalancerSettings_ConsistentHashLB) *routev3.RouteAction_HashPolicy {
	switch k := h.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName},
		}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.GetName(), Path: k.HttpCookie.GetPath(), Ttl: k.HttpCookie.GetTtl()}
		for _, a := range k.HttpCookie.GetAttributes() {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: k.UseSourceIp},
		}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName},
		}}
	}
	return nil
}

// addHash makes a route hash by what a destination of it is balanced by. Destinations that hash by the same thing add it once:
// the hash of a request, and so its host, stays what it is when weights change. Retries stay on hosts that the hash gives.
// Which cluster of several a request goes to is not decided by the hash.
func addHash(a *routev3.RouteAction, h *networking.LoadBalancerSettings_ConsistentHashLB) {
	p := hashPolicy(h)
	if p == nil {
		return
	}
	if !slices.ContainsFunc(a.HashPolicy, func(q *routev3.RouteAction_HashPolicy) bool { return proto.Equal(p, q) }) {
		a.HashPolicy = append(a.HashPolicy, p)
	}
	if a.RetryPolicy != nil {
		a.RetryPolicy.RetryHostPredicate = nil
	}
}

// hashText stands for a hash in keys.
func hashText(h *networking.LoadBalancerSettings_ConsistentHashLB) string {
	if h == nil {
		return ""
	}
	return string(toAny(h).Value)
}

// applyOutliers sets when hosts are ejected. Success rates never eject. Where a rule asks for ejection at all, panic is off
// unless minHealthPercent sets it.
func applyOutliers(c *clusterv3.Cluster, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	out := &clusterv3.OutlierDetection{
		EnforcingSuccessRate: wrapperspb.UInt32(0),
		Interval:             o.Interval,
		BaseEjectionTime:     o.BaseEjectionTime,
	}
	enforced := func(n uint32) (count, enforcing *wrapperspb.UInt32Value) {
		if n == 0 {
			return wrapperspb.UInt32(0), wrapperspb.UInt32(0)
		}
		return wrapperspb.UInt32(n), wrapperspb.UInt32(100)
	}
	// The old name counted the gateway errors 502, 503 and 504 alone.
	if n := o.ConsecutiveErrors; n > 0 { // people's rules still say it
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = enforced(uint32(n))
		out.EnforcingConsecutive_5Xx = wrapperspb.UInt32(0)
	}
	if n := o.Consecutive_5XxErrors; n != nil {
		out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = enforced(n.Value)
	}
	if n := o.ConsecutiveGatewayErrors; n != nil {
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = enforced(n.Value)
	}
	if n := o.MaxEjectionPercent; n > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(uint32(n))
	}
	if o.SplitExternalLocalOriginErrors {
		out.SplitExternalLocalOriginErrors = true
		if n := o.ConsecutiveLocalOriginFailures.GetValue(); n > 0 {
			out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = enforced(n)
		}
		out.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	c.OutlierDetection = out
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(o.MinHealthPercent)}
}
