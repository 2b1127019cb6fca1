// Package balancing holds the bodies of the scenarios about the choice of a host: sessions that stay on one, and hosts that are
// taken out for their errors. A body drives the lab and observes; a pure function judges.
package balancing

import (
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
	weighted     bool // over versions v1 and v2
	streams      []stickyStream
}

// stickyStream is the load of one Service from one place.
type stickyStream struct {
	name     string
	source   string // drive.Runner enters by the gateway
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
	services                []stickyService
	calm, joined, left      time.Duration // how long requests are watched between changes
	spreadCatch, shareCatch float64
}

const (
	longTTL  = 1800 * time.Second
	shortTTL = 6 * time.Second
	// stickyHeadroom is load beyond what the plan needs, for pods that start slowly.
	stickyHeadroom = 60 * time.Second
)

// newStickyPlan returns the plan of a profile. Each session must come back within each span. Sessions are as many as no number of hosts
// divides: where hosts had their turns, a session that comes back in turn would else meet the same one.
func newStickyPlan(p lab.Profile) stickyPlan {
	scale := 1
	pl := stickyPlan{calm: 12 * time.Second, joined: 9 * time.Second, left: 9 * time.Second, spreadCatch: 0.1, shareCatch: 0.15}
	switch p {
	case lab.Nightly:
		scale = 5
	case lab.Soak:
		scale = 60
	}
	pl.calm, pl.joined, pl.left = pl.calm*time.Duration(scale), pl.joined*time.Duration(scale), pl.left*time.Duration(scale)
	n := func(quick int) int { return quick * min(scale, 5) }
	pl.services = []stickyService{
		{name: "by-cookie", by: byCookie, table: ringHash, cookie: "user", ttl: longTTL, streams: []stickyStream{
			{name: "sticky-cookie-gateway", source: drive.Runner, rate: 130, sessions: n(1009)},
			{name: "sticky-cookie-mesh", source: drive.Agent, rate: 130, sessions: n(1009)},
		}},
		{name: "by-header", by: byHeader, table: maglev, streams: []stickyStream{{name: "sticky-header-mesh", source: drive.Agent, rate: 45, sessions: n(199)}}},
		{name: "by-query", by: byQuery, table: ringHash, streams: []stickyStream{{name: "sticky-query-gateway", source: drive.Runner, rate: 45, sessions: n(199)}}},
		{name: "by-source", by: bySource, table: ringHash, streams: []stickyStream{{name: "sticky-source-mesh", source: drive.Agent, rate: 30}}},
		{name: "by-session", by: byCookie, table: maglev, cookie: "id", path: "/", streams: []stickyStream{
			{name: "sticky-session-gateway", source: drive.Runner, rate: 30, sessions: n(101)},
		}},
		{name: "by-short", by: byCookie, table: ringHash, cookie: "short", ttl: shortTTL, streams: []stickyStream{
			{name: "sticky-short-gateway", source: drive.Runner, rate: 30, sessions: 61},
		}},
		{name: "by-weight", by: byCookie, table: ringHash, cookie: "user", ttl: longTTL, weighted: true, streams: []stickyStream{
			{name: "sticky-weight-mesh", source: drive.Agent, rate: 85, sessions: n(251)},
		}},
	}
	return pl
}

func (pl stickyPlan) length() time.Duration { return pl.calm + pl.joined + pl.left + 10*time.Second }

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
