package router

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// Router is the terminal HTTP filter. One serves every connection.
type Router struct {
	set *upstream.Set
}

// New returns a Router over the live clusters of set.
func New(set *upstream.Set) *Router { return &Router{set: set} }

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

// Serve answers one request whose head is in s.Req. When it returns, the answer has been flushed, or s.CloseAfter is
// set because it could not be finished. ctx ends dials and waits between tries.
func (r *Router) Serve(ctx context.Context, s *filter.Stream) {
	view := r.set.View()
	t := s.HTTP.Routes
	if t == nil {
		t = view.Config.Routes[s.HTTP.RouteName]
	}
	var vh *conf.VirtualHost
	var route *conf.Route
	random := rand.Uint64()
	if t != nil {
		vh, route = Find(t, &s.Req, s.Scheme, random)
	}
	if vh != nil && vh.RequireTLS != conf.TLSNone && string(s.Scheme) != "https" && (vh.RequireTLS == conf.TLSAll || !s.Internal) {
		redirect(s, &conf.Route{Redirect: &conf.Redirect{HTTPS: true, Code: 301}}, &levels{})
		return
	}
	if route == nil {
		s.Rec.Flags |= telemetry.NoRoute
		s.Reply(404, nil, "", "route_not_found")
		return
	}
	s.Rec.RouteName = route.Name
	x := exchanges.Get().(*exchange)
	x.r, x.s, x.view, x.route, x.vhost, x.random = r, s, view, route, vh, random
	x.serve(ctx, t)
	x.release()
}

func (x *exchange) serve(ctx context.Context, t *conf.RouteTable) {
	s := x.s
	if x.route.Forward == nil && x.faulted(ctx, t, nil) {
		return
	}
	switch {
	case x.route.Redirect != nil:
		x.levels.order(t, x.vhost, x.route, nil)
		redirect(s, x.route, &x.levels)
		return
	case x.route.Direct != nil:
		d := x.route.Direct
		x.levels.order(t, x.vhost, x.route, nil)
		s.Resp.Reset()
		x.levels.response(s)
		s.ReplyWith(d.Code, d.Body, "text/plain", "direct_response")
		return
	}
	f := x.route.Forward
	var w *conf.WeightedCluster
	var name string
	if f.ClusterHeader != nil {
		name = string(s.Req.Get(string(f.ClusterHeader)))
	} else {
		w = split(f.Clusters, f.TotalWeight, x.share(f))
		name = w.Name
	}
	if x.cluster = x.view.Cluster(name); x.cluster != nil {
		s.Rec.Cluster = x.cluster.Conf
	}
	if x.faulted(ctx, t, w) {
		return
	}
	if s.Rec.Flags&telemetry.DelayInjected != 0 { // much may have changed meanwhile
		x.view = x.r.set.View()
		x.cluster = x.view.Cluster(name)
	}
	if x.cluster == nil {
		s.Rec.Flags |= telemetry.NoClusterFound
		s.Reply(f.NotFoundCode, nil, "", "cluster_not_found")
		return
	}
	s.Rec.Cluster = x.cluster.Conf
	if s.Rec.GRPC && s.Conn.Direction == conf.Inbound {
		s.Settled()
	}
	x.http2 = x.cluster.Conf.Protocol == conf.HTTP2Only || x.cluster.Conf.Protocol == conf.SameAsDownstream && s.Req.Major == 2
	if up := s.Req.Upgrade; up != nil {
		switch {
		case string(up) == "h2c" || s.Req.Framing != http1.NoBody:
			s.Req.Upgrade = nil // an offer that may be ignored (RFC 9110 section 7.8)
		case x.http2 || !x.upgradeAllowed(up): // HTTP/2 has no Upgrade, and extended CONNECT is not built
			s.Reply(403, nil, "", "upgrade_failed")
			return
		}
	}
	x.policy()
	if x.cluster.Hashes() && !f.HashSplit {
		x.query, x.cookies = hashed(s, f.Hash)
	}
	x.levels.order(t, x.vhost, x.route, w)
	x.levels.request(s)
	rewrite(s, x.route, w)
	if x.timeout > 0 {
		s.Req.Set([]byte("x-envoy-expected-rq-timeout-ms"), millis(&s.Req.Header, x.expected()))
	}
	x.run(ctx)
}

// share is the value that picks a weighted cluster: the request's hash where the route wants that and there is one. Unlike
// Envoy, which hashes a cookie that is yet to be made as empty, a session's first request goes where its others will.
func (x *exchange) share(f *conf.Forward) uint64 {
	if f.HashSplit {
		if x.query, x.cookies = hashed(x.s, f.Hash); x.query.HasHash {
			return x.query.Hash
		}
	}
	return rand.Uint64()
}

func (x *exchange) upgradeAllowed(proto []byte) bool {
	lower := string(asciiLower(proto))
	if on, ok := x.route.Forward.Upgrades[lower]; ok {
		return on
	}
	for _, u := range x.s.HTTP.Upgrades {
		if u == lower {
			return true
		}
	}
	return false
}

func asciiLower(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 32
		}
		out[i] = c
	}
	return out
}

// expected is what the upstream is told: the shorter of the timeouts.
func (x *exchange) expected() time.Duration {
	if x.perTry > 0 && x.perTry < x.timeout {
		return x.perTry
	}
	return x.timeout
}
