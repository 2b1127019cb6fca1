// Package balancing holds the bodies of the scenarios about the choice of a host: sessions that stay on one, and hosts that are
// taken out for their errors. A body drives the lab and observes; a pure function judges.
package balancing

import (
	"slices"
	"time"

	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// What a Service's requests are hashed by.
const (
	byCookie = "cookie"
	byHeader = "header"
	byQuery  = "query"
	bySource = "source"
)

// The tables that hashes are looked up in.
const (
	ringHash = "ring hash"
	maglev   = "Maglev"
)

// stickyService is one Service over the pods of hello, with a policy of its own.
type stickyService struct {
	name  string // of the Service, and of its host at the gateway
	by    string
	table string
	// cookie is the name, ttl how long it lives: 0 for a session; path may be empty.
	cookie, path string
	ttl          time.Duration
	ring         uint64 // minimumRingSize; 0 is Envoy's own
	weighted     bool   // over versions v1 and v2
	streams      []stickyStream
}

// stickyStream is the load of one Service from one place.
type stickyStream struct {
	name     string
	source   string // drive.Runner enters by the gateway
	agent    int    // which of the agents, from 0
	through  bool   // from an agent to the gateway, which sees the agent's address: its sidecar knows no such host, and lets it pass
	rate     float64
	sessions int // 0: the client itself is the session
}

// The names that sessions go by.
const (
	sessionHeader = "x-user"
	sessionQuery  = "user"
)

// stickyPlan is the load and the times of the scenario.
type stickyPlan struct {
	services           []stickyService
	calm, joined, left time.Duration // how long requests are watched between changes
	catch              stickyCatch
}

// stickyCatch are the smallest deviations that must show, as shares.
type stickyCatch struct {
	moves         float64 // of visits that meet another host
	form          float64 // of cookies of another form, and of those replaced at another time
	table         float64 // of answers that are not the table's
	cause         float64 // of sessions that move without cause
	slack         float64 // of sessions that move without cause beyond what Maglev promises
	spread, equal float64 // of a host's sessions, from its share of the ring and from the same for each
	maglev        float64 // of a host's sessions under Maglev, from the same for each
	share         float64 // of a version
	lost          float64 // of requests
}

const (
	longTTL  = 1800 * time.Second
	shortTTL = 6 * time.Second
	// stickyHeadroom is load beyond what the plan needs, for pods that start slowly.
	stickyHeadroom = 60 * time.Second
)

// stickyAgents is how many addresses inside the mesh load comes from.
const stickyAgents = 3

// The pods of hello, before and after one joins, and the ring on which each has the same number of points either way: a ring has
// ceil(minimumRingSize / hosts) points of each host. On it a host that joins or leaves moves its own sessions alone.
const (
	podsBefore = 4
	podsAfter  = 5
	exactRing  = podsBefore * podsBefore
)

// newStickyPlan returns the plan of a profile. Each session must come back within each span. Sessions are as many as no number of hosts
// divides: where hosts had their turns, a session that comes back in turn would else meet the same one.
func newStickyPlan(p lab.Profile) stickyPlan {
	scale := 1
	pl := stickyPlan{
		calm: 12 * time.Second, joined: 9 * time.Second, left: 9 * time.Second,
		catch: stickyCatch{
			moves: 0.03, form: 0.05, table: 0.01, cause: 0.05, slack: 0.25, spread: 0.1, equal: 0.13, maglev: 0.3, share: 0.15, lost: 0.001,
		},
	}
	switch p {
	case lab.Nightly:
		scale = 5
	case lab.Soak:
		scale = 60
	}
	if scale > 1 {
		pl.catch = stickyCatch{
			moves: 0.006, form: 0.01, table: 0.002, cause: 0.01, slack: 0.08, spread: 0.05, equal: 0.1, maglev: 0.13, share: 0.07, lost: 0.0002,
		}
	}
	pl.calm, pl.joined, pl.left = pl.calm*time.Duration(scale), pl.joined*time.Duration(scale), pl.left*time.Duration(scale)
	n := func(quick int) int { return quick * min(scale, 5) }
	pl.services = []stickyService{
		{name: "by-cookie", by: byCookie, table: ringHash, cookie: "user", ttl: longTTL, streams: []stickyStream{
			{name: "sticky-cookie-gateway", source: drive.Runner, rate: 130, sessions: n(1009)},
			{name: "sticky-cookie-mesh", source: drive.Agent, rate: 130, sessions: n(1009)},
		}},
		{name: "by-header", by: byHeader, table: maglev, streams: []stickyStream{{name: "sticky-header-mesh", source: drive.Agent, rate: 45, sessions: n(199)}}},
		{name: "by-query", by: byQuery, table: ringHash, ring: exactRing, streams: []stickyStream{
			{name: "sticky-query-gateway", source: drive.Runner, rate: 70, sessions: n(307)},
		}},
		{name: "by-source", by: bySource, table: ringHash, streams: []stickyStream{
			{name: "sticky-source-mesh", source: drive.Agent, rate: 10},
			{name: "sticky-source-mesh-2", source: drive.Agent, agent: 1, rate: 10},
			{name: "sticky-source-mesh-3", source: drive.Agent, agent: 2, rate: 10},
		}},
		{name: "by-client", by: bySource, table: maglev, streams: []stickyStream{
			{name: "sticky-client-gateway", source: drive.Agent, through: true, rate: 10},
			{name: "sticky-client-gateway-2", source: drive.Agent, agent: 1, through: true, rate: 10},
			{name: "sticky-client-gateway-3", source: drive.Agent, agent: 2, through: true, rate: 10},
		}},
		{name: "by-session", by: byCookie, table: maglev, cookie: "id", path: "/", streams: []stickyStream{
			{name: "sticky-session-gateway", source: drive.Runner, rate: 40, sessions: n(151)},
		}},
		{name: "by-short", by: byCookie, table: ringHash, cookie: "short", path: "/short", ttl: shortTTL, streams: []stickyStream{
			{name: "sticky-short-gateway", source: drive.Runner, rate: 30, sessions: 61},
		}},
		{name: "by-weight", by: byCookie, table: ringHash, cookie: "user", ttl: longTTL, weighted: true, streams: []stickyStream{
			{name: "sticky-weight-mesh", source: drive.Agent, rate: 85, sessions: n(251)},
		}},
	}
	return pl
}

func (pl stickyPlan) length() time.Duration { return pl.calm + pl.joined + pl.left + 10*time.Second }

func (pl stickyPlan) service(name string) stickyService {
	return pl.services[slices.IndexFunc(pl.services, func(s stickyService) bool { return s.name == name })]
}

func (pl stickyPlan) streams() []string {
	var out []string
	for _, s := range pl.services {
		for _, st := range s.streams {
			out = append(out, st.name)
		}
	}
	return out
}

func (s stickyService) names() []string {
	var out []string
	for _, st := range s.streams {
		out = append(out, st.name)
	}
	return out
}

// weights of versions v1 and v2, in percent, before and after the change.
var weightsBefore, weightsAfter = [2]int{50, 50}, [2]int{20, 80}
