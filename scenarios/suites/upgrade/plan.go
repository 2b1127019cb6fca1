package upgrade

import (
	"time"

	"github.com/meshproof/meshproof/scenarios/lab"
)

// The two revisions, and the builds that they run. The builds differ in nothing but their version.
const (
	blue, green           = "1-20-1", "1-23-2"
	blueBuild, greenBuild = "blue", "green"
)

// The names of the namespaces that the scenario asks for.
const (
	shopSpace  = "bookinfo"
	oldClients = "clients-blue"  // a load agent that stays on blue until its load is over
	newClients = "clients-green" // one that is on green from its start
)

const (
	gatewayName = "istio-ingressgateway"
	// stableTag is the revision tag that the old load agent's namespace asks for.
	stableTag = "stable"
	agentName = "loadagent"
)

// workloads are restarted one by one in this order.
func workloads() []string {
	return []string{"details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3", "productpage-v1"}
}

// halfWay is how many workloads are on green when the upgrade is rolled back.
const halfWay = 3

// The streams of load.
const (
	pages       = "page-gateway"
	products    = "products-gateway"
	oldReviews  = "reviews-blue"
	oldDetails  = "details-blue"
	newReviews  = "reviews-green"
	newDetails  = "details-green"
	movedWithin = 15 * time.Second // from a restart's end to its proxy's connection
	rolloutIn   = 60 * time.Second
	// carriedOutIn is from the change of an IstioOperator object to the moment when its operator has carried it out.
	carriedOutIn = 60 * time.Second
	askedWithin  = 5 * time.Second // for the control planes to say who is connected
	// goneWithin is from the end of a removal to the moment when nothing is left: the last gateway pod may take its grace of 28 s.
	goneWithin = 45 * time.Second
)

// plan is how long the quiet times last and how much load there is.
type plan struct {
	quiet time.Duration // before the first change: its two halves are compared with each other, and the upgrade with both
	mixed time.Duration // in which traffic between the revisions is looked at
	tail  time.Duration // after the last change
	// Requests a second.
	pages, products, reviews, details float64
}

func planFor(p lab.Profile) plan {
	pl := plan{quiet: 10 * time.Second, mixed: 3 * time.Second, tail: 4 * time.Second, pages: 12, products: 60, reviews: 40, details: 60}
	if p != lab.Quick {
		pl.quiet, pl.mixed, pl.tail = 60*time.Second, 30*time.Second, 30*time.Second
	}
	return pl
}

// loadLength is longer than any upgrade: the load ends with the timeline.
const loadLength = 10 * time.Minute
