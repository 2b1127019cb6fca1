package router

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// faulted does to the request what the route's fault says, and reports whether that was the end of it. As in Envoy, where the fault
// filter comes before the router (source/extensions/filters/http/fault/fault_filter.cc), the delay comes first, no timeout of the
// route counts it, and nothing is tried again.
func (x *exchange) faulted(ctx context.Context, t *conf.RouteTable, w *conf.WeightedCluster) bool {
	f, s := x.route.Fault, x.s
	if f == nil || !s.HTTP.Faults {
		return false
	}
	if f.Delay > 0 && rand.Uint32N(conf.Always) < f.DelayFraction {
		s.Rec.Flags |= telemetry.DelayInjected
		if !x.hold(ctx, f.Delay) {
			return true
		}
	}
	if f.Abort == 0 || rand.Uint32N(conf.Always) >= f.AbortFraction {
		return false
	}
	s.Rec.Flags |= telemetry.FaultInjected
	s.GRPCCode = f.AbortGRPC
	s.Resp.Reset()
	if x.route.Forward != nil { // other routes have no headers for answers that are not theirs
		x.levels.order(t, x.vhost, x.route, w)
		x.levels.response(s)
	}
	s.ReplyWith(f.Abort, []byte("fault filter abort"), "text/plain", "fault_filter_abort")
	return true
}

// hold waits for d. false means that the exchange ended meanwhile: it was interrupted, or ctx was over.
func (x *exchange) hold(ctx context.Context, d time.Duration) bool {
	x.opening = opening{parent: ctx, s: x.s}
	defer x.opening.end()
	over := x.opening.Done()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-over:
	}
	switch why := x.s.Interrupted(); {
	case why == telemetry.DownstreamTermination:
		x.gone()
	case why != 0:
		x.interrupted(why)
		x.fail(x.failure())
	default: // the proxy stops
		x.s.CloseAfter = true
	}
	return false
}
