// Package multicluster holds the bodies of the scenarios about one mesh over two clusters. A body drives the lab and observes;
// pure functions judge.
package multicluster

import (
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// Streams of load.
const (
	shopStream   = "shop"        // whole visits from outside, through the gateway of the first cluster
	remoteStream = "from-remote" // pages that a pod of the second cluster asks the first for
	newStream    = "new-service" // calls from the second cluster to a service that is made meanwhile
	newService   = "news"        // its name
	watchProduct = "watch"       // what every visit buys
	boutiqueApp  = "boutique"    // as env.Env.Namespace knows it
	frontendApp  = "frontend"    // who answers all pages
	cartApp      = "cartservice" // stands in both clusters, the remote one first
	recommendApp = "recommendationservice"
	storeApp     = "redis-cart"
)

// Streams of probes: calls from the second cluster to addresses of the first.
const (
	podProbe      = "probe-pod"       // of a pod
	nodeProbe     = "probe-node"      // of a node's kubelet
	serviceProbe  = "probe-service"   // a ClusterIP
	nodePortProbe = "probe-node-port" // a node with the port of that Service
)

// plan is the load, the policy and the bounds of the scenario.
type plan struct {
	shopRate   float64 // requests a second
	sessions   int     // shoppers; each asks for its next page every sessions/shopRate seconds
	remoteRate float64
	newRate    float64

	calm, newFor, cut, lost time.Duration // of each span

	errors   int           // gateway errors in a row after which a host is ejected
	interval time.Duration // of the sweep that lets hosts return
	// baseEjection is longer than connections take to come back after the cut. TCP sends again what a cut holds up in intervals that
	// double (RFC 6298 section 5.5): with a first one of up to 250 ms, 7.75 s after the cut and then 15.75 s. A host that returns
	// before its connections do gets requests that time out, and is out again for twice as long.
	baseEjection time.Duration
	// callTimeout is of a try to call what stands in both clusters. It is not the route's timeout: that caps the grpc-timeout of
	// callers too, which then ends the call first, and outlier detection does not hear of it.
	callTimeout time.Duration

	newWithin, failoverWithin, returnWithin time.Duration
}

func newPlan(p lab.Profile) plan {
	pl := plan{
		shopRate: 20, sessions: 20, remoteRate: 8, newRate: 20,
		calm: 10 * time.Second, newFor: 6 * time.Second, cut: 10 * time.Second, lost: 8 * time.Second,
		errors: 3, interval: time.Second, baseEjection: 16 * time.Second, callTimeout: 700 * time.Millisecond,
		newWithin: 5 * time.Second, failoverWithin: 6 * time.Second,
	}
	switch p {
	case lab.Nightly:
		pl.calm, pl.lost = 60*time.Second, 60*time.Second
	case lab.Soak:
		pl.calm, pl.lost = 10*time.Minute, 10*time.Minute
	}
	// Whoever was ejected during the cut stays out for the base time from then on, which may outlast the cut.
	pl.returnWithin = max(0, pl.failoverWithin+pl.baseEjection-pl.cut) + 2*pl.interval + returnSlack
	return pl
}

const (
	returnSlack  = time.Second            // for the first pages after the return
	loadHeadroom = 60 * time.Second       // of load beyond what the spans need, for a control plane that is slow to go
	pageTimeout  = 5 * time.Second        // of a shopper's patience
	agentTimeout = 2 * time.Second        // of a request from the second cluster
	settleFor    = 500 * time.Millisecond // after a cut or a heal, before requests tell of it
	healMargin   = time.Second            // before a heal, for an order that overtakes
	probeRate    = 10.0                   // requests a second to addresses of the other cluster
	probeFor     = 2 * time.Second
	probeTimeout = time.Second
)

// length is how long the load is meant to last.
func (pl plan) length() time.Duration {
	return pl.calm + pl.newFor + pl.cut + pl.returnWithin + pl.lost + 10*time.Second
}

// failoverLosses is how many requests may fail for the cut. Each proxy that calls a service in both clusters counts errors for
// itself: the frontend for recommendations and carts, checkout for carts. Until it has seen enough in a row, and for as long as
// calls take that are on their way by then, requests fail; on top every shopper may lose the cart that stayed on the other side,
// which fails the two pages that follow.
func (pl plan) failoverLosses() int {
	const callers = 3
	inFlight := math.Ceil(pl.shopRate * (pl.callTimeout + pl.interval).Seconds())
	return callers*pl.errors + int(inFlight) + 2*pl.sessions
}

// returnLosses is how many requests may fail when traffic returns: each shopper may leave one cart behind, as above.
func (pl plan) returnLosses() int { return 2 * pl.sessions }

// Pages of a visit, in order.
const (
	pageHome = iota
	pageProduct
	pageAdd
	pageCart
	pageCheckout
	pagesOfVisit
)

// visit is what each shopper does. Every page names in Attribute a service that stands in the second cluster.
func visit() []loadgen.Page {
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	return []loadgen.Page{
		pageHome:    {Path: "/", Attribute: cartApp, ExpectBody: "Things worth having"},
		pageProduct: {Path: "/product/" + watchProduct, Attribute: recommendApp, ExpectBody: "leather strap"},
		pageAdd: {
			Method: http.MethodPost, Path: "/cart", Header: form, Attribute: cartApp, Accept: []int{http.StatusSeeOther},
			Body: []byte(url.Values{"product_id": {watchProduct}, "quantity": {"1"}}.Encode()),
		},
		pageCart: {Path: "/cart", Attribute: cartApp, ExpectBody: "Cart (1)"},
		pageCheckout: {
			Method: http.MethodPost, Path: "/cart/checkout", Header: form, Attribute: cartApp, ExpectBody: "Quantity 1, $109.99 each",
			Body: []byte(url.Values{
				"email": {"someone@example.com"}, "street_address": {"1 Sample Street"}, "zip_code": {"10115"}, "city": {"Berlin"},
				"country": {"Germany"}, "credit_card_number": {"4111-1111-1111-1111"}, "credit_card_expiration_month": {"12"},
				"credit_card_expiration_year": {"2199"}, "credit_card_cvv": {"672"},
			}.Encode()),
		},
	}
}
