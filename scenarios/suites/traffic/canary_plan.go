package traffic

import (
	"fmt"
	"time"

	"github.com/meshproof/meshproof/scenarios/lab"
)

// step is one setting of the weights, in percent, of the old version (v1) and the new one.
type step struct{ old, new int }

func (s step) String() string { return fmt.Sprintf("%d/%d", s.old, s.new) }

// share is the share of the new version that the step asks for.
func (s step) share() float64 { return float64(s.new) / 100 }

// canarySteps are the weights in the order in which they are applied. The first is what is live when load begins.
func canarySteps() []step { return []step{{100, 0}, {90, 10}, {50, 50}, {10, 90}, {0, 100}} }

// split is one Service whose requests are split by weight, as the canary sees it.
type split struct {
	app      string // as answers name it
	old, new string // versions under test
	listed   []string
	streams  []source
	user     string // who is routed elsewhere by header, "" if nobody
	userGets string // the version of that user
}

// source is one place that requests of a split leave from. Each source ends in one proxy that draws per request.
type source struct {
	name  string  // of the stream
	at    string  // "gateway" | "sidecar": the proxy that splits
	rate  float64 // requests a second
	user  bool    // requests of the split's user
	delta float64 // smallest deviation that this source alone is made to catch
}

// plan is the canary's load and how sharply it looks.
type plan struct {
	delta  float64 // smallest deviation of a share that must be caught over all sources of a split
	repeat int     // how often the steps are gone through
	splits []split
}

const (
	helloGateway    = "hello-gateway"
	helloMesh       = "hello-mesh"
	reviewsPage     = "reviews-page"
	reviewsMesh     = "reviews-mesh"
	jasonPage       = "jason-page"
	jasonMesh       = "jason-mesh"
	theUser         = "jason"
	leadIn          = 2500 * time.Millisecond // of load before the first change, warming up included
	loadHeadroom    = 60 * time.Second        // of load beyond what the windows need, for slow changes
	sourceDelta     = 0.10
	rareSourceDelta = 0.20
)

// canaryPlan returns the plan of a profile. With sidecars, apps and generator on the same two cores a plain request costs
// about a millisecond of CPU in all, and the page several times that, so most of reviews' samples come from the agent.
func canaryPlan(p lab.Profile) plan {
	pl := plan{
		delta: 0.05, repeat: 1,
		splits: []split{
			{
				app: "hello", old: "v1", new: "v2", listed: []string{"v1", "v2"},
				streams: []source{
					{name: helloGateway, at: "gateway", rate: 210, delta: sourceDelta},
					{name: helloMesh, at: "sidecar", rate: 290, delta: sourceDelta},
				},
			},
			{
				app: "reviews", old: "v1", new: "v3", listed: []string{"v1", "v3"}, user: theUser, userGets: "v2",
				streams: []source{
					{name: reviewsPage, at: "sidecar", rate: 50, delta: rareSourceDelta},
					{name: reviewsMesh, at: "sidecar", rate: 450, delta: sourceDelta},
					{name: jasonPage, at: "sidecar", rate: 5, user: true},
					{name: jasonMesh, at: "sidecar", rate: 10, user: true},
				},
			},
		},
	}
	switch p {
	case lab.Nightly:
		pl.delta = 0.02
	case lab.Soak:
		pl.delta, pl.repeat = 0.02, 20
	}
	return pl
}

// sizer returns how many samples a test of a share needs to catch a deviation.
type sizer func(share, delta float64) int

// window is how long a step's samples are collected: until every claim of the step has the samples that its power needs, with
// some to spare for requests that fail or are late. It is fixed beforehand, so that what is seen cannot influence it.
func (pl plan) window(s step, need sizer) time.Duration {
	const spare = 1.05
	seconds := 1.0
	for _, sp := range pl.splits {
		pooled := 0.0
		for _, src := range sp.streams {
			if src.user {
				continue
			}
			pooled += src.rate
			seconds = max(seconds, float64(need(s.share(), src.delta))/src.rate)
		}
		seconds = max(seconds, float64(need(s.share(), pl.delta))/pooled)
	}
	return time.Duration(seconds * spare * float64(time.Second)).Round(time.Millisecond)
}

// length is how long the whole load may last.
func (pl plan) length(need sizer) time.Duration {
	d := leadIn + loadHeadroom
	for range pl.repeat {
		for _, s := range canarySteps()[1:] {
			d += pl.window(s, need)
		}
	}
	return d
}
