// Package catalog describes the scenarios: what each proves, what it needs, how long it takes, and its body. All is the one
// list of them.
package catalog

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/suites/balancing"
	"github.com/meshproof/meshproof/scenarios/suites/traffic"
	"github.com/meshproof/meshproof/scenarios/suites/upgrade"
)

// Feature is something that a mesh must have for a scenario to make sense.
type Feature string

// The features.
const (
	WeightedRouting  Feature = "weighted-routing"
	HeaderRouting    Feature = "header-routing"
	IngressGateway   Feature = "ingress-gateway"
	Revisions        Feature = "revisions"
	ConsistentHash   Feature = "consistent-hash"
	OutlierEjection  Feature = "outlier-detection"
	MultiCluster     Feature = "multi-cluster"
	LocalityFailover Feature = "locality-failover"
	MutualTLS        Feature = "mutual-tls"
)

// Isolation says what a scenario may share its lab with.
type Isolation string

// Exclusive scenarios run alone in the lab; others may run in it before and after.
const Exclusive Isolation = "exclusive"

// Body carries a scenario out in a lab that is up: it drives, observes into rec, and returns the judged claims. An error says
// that it could not be carried out; what was observed until then stays recorded. Evidence of its claims are names as
// evidence.RequestsFile gives them: it does not know where the run keeps them.
type Body func(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error)

// Scenario describes one scenario.
type Scenario struct {
	ID        string                        `json:"id"`
	Title     string                        `json:"title"`
	Proves    string                        `json:"proves"`
	Area      string                        `json:"area"`
	Features  []Feature                     `json:"features"`
	Apps      []string                      `json:"apps"` // that stand in namespaces of its own when it begins, in the first cluster: env.Env.Namespace
	Lab       string                        `json:"lab"`  // name of the embedded Lab file that it runs in; scenarios of one Lab share it
	Isolation Isolation                     `json:"isolation"`
	Budget    map[lab.Profile]time.Duration `json:"-"`   // of the scenario alone, without lab and apps
	Key       string                        `json:"key"` // ID of the claim that tells most when the scenario passes
	Claims    []string                      `json:"claims"`
	Run       Body                          `json:"-"`
}

// Labels are what a filter chooses scenarios by: area:AREA, lab:LAB, and the features.
func (s Scenario) Labels() []string {
	out := []string{"area:" + s.Area, "lab:" + s.Lab}
	for _, f := range s.Features {
		out = append(out, string(f))
	}
	return out
}

// All returns every scenario, in the order in which they run.
func All() []Scenario {
	return []Scenario{
		{
			ID:    "canary",
			Title: "Weighted canary under load",
			Proves: "A VirtualService's weights split requests as written, at the gateway and between sidecars, one user's header " +
				"goes to its own version, and changing the weights under load loses nothing.",
			Area:      "traffic",
			Features:  []Feature{WeightedRouting, HeaderRouting, IngressGateway},
			Apps:      []string{"bookinfo", "hello", "loadagent"},
			Lab:       "one",
			Isolation: Exclusive,
			Budget:    map[lab.Profile]time.Duration{lab.Quick: 2 * time.Minute, lab.Nightly: 10 * time.Minute, lab.Soak: 2 * time.Hour},
			Claims: []string{
				"share of each version at 90/10, 50/50, 10/90 and 0/100, for hello and reviews",
				"requests of the user jason reach the version of that user",
				"no request is lost across the changes",
				"no request reaches a version that its route does not list",
				"each change is acknowledged by every proxy, and obeyed",
			},
			Key: "share/hello/10-90/v2",
			Run: traffic.Canary,
		},
		{
			ID:    "sticky",
			Title: "Sticky sessions while hosts and weights change",
			Proves: "A DestinationRule's consistentHash by cookie, header, query parameter or source address keeps every session on the host " +
				"that the ring or Maglev table gives it, while hosts join and leave and weights change.",
			Area:      "balancing",
			Features:  []Feature{ConsistentHash, WeightedRouting, IngressGateway},
			Apps:      []string{"hello", "loadagent"},
			Lab:       "one",
			Isolation: Exclusive,
			Budget:    map[lab.Profile]time.Duration{lab.Quick: 3 * time.Minute, lab.Nightly: 10 * time.Minute, lab.Soak: 2 * time.Hour},
			Claims: []string{
				"every session stays on one host, by cookie, header, query parameter and source address, there also at the gateway, by ring hash and Maglev",
				"who has no cookie gets one of exactly the right form, and nobody else does; without a ttl's time it lives as long as the browser",
				"sessions spread over hosts as the table divides hashes",
				"when a host joins or leaves only the sessions move whose hash changed owner; on a ring of equal points, only its own",
				"with weights, a session has one host in each version, and the weights hold",
				"no request is lost",
			},
			Key: "sticky/by-cookie",
			Run: balancing.Sticky,
		},
		{
			ID:    "outlier",
			Title: "Hosts that fail are taken out, and return",
			Proves: "A DestinationRule's outlierDetection takes a host out after exactly as many errors as it says, at each proxy, for as long " +
				"as it says, and nobody else; and with every host bad its cap and the panic rule hold.",
			Area:      "balancing",
			Features:  []Feature{OutlierEjection, IngressGateway},
			Apps:      []string{"hello", "loadagent"},
			Lab:       "one",
			Isolation: Exclusive,
			Budget:    map[lab.Profile]time.Duration{lab.Quick: 3 * time.Minute, lab.Nightly: 10 * time.Minute, lab.Soak: 2 * time.Hour},
			Claims: []string{
				"a host that answers 503 or 500, resets or hangs is out after exactly so many errors in a row, by 5xx, gateway errors, local errors and the old consecutiveErrors",
				"one that fails half of the time is out for errors in a row alone, not for their number",
				"nobody else is taken out, and nobody for errors that do not count",
				"a host is out for the base time, times how often it was lately, and returns in the sweep; traffic returns to it",
				"faults of one host cost no more requests than their ejections explain",
				"with every host bad: no panic, nothing is sent; panic, to all; never more out than the cap; one bad: no panic",
				"with exactly half of the hosts out, minHealthPercent 50 is no panic; with one more out it is",
				"each proxy counts exactly the ejections that its cap refuses",
				"of four hosts none is taken out where a tenth may be",
				"an ejection shows at every proxy while it lasts",
				"the fault happened, as the pods' own counters and the clients agree",
			},
			Key: "ejected/answers-503/all-5xx",
			Run: balancing.Outlier,
		},
		{
			ID:    "upgrade",
			Title: "Blue/green upgrade of the control plane under load",
			Proves: "A mesh moves from one revision to the next, gateway and workloads one by one, back half-way and forward again, " +
				"and its old revision is removed without a trace, while no request fails.",
			Area:      "upgrade",
			Features:  []Feature{Revisions, IngressGateway},
			Lab:       "bare",
			Isolation: Exclusive,
			Budget:    map[lab.Profile]time.Duration{lab.Quick: 6 * time.Minute, lab.Nightly: 12 * time.Minute, lab.Soak: 12 * time.Minute},
			Claims: []string{
				"no request is lost from start to end",
				"each workload is on the old revision before its restart and on the new one after it, by its connection and version",
				"requests between the revisions are mutual TLS",
				"removal of the old revision is refused while proxies use it",
				"nothing is left of the old revision",
				"the 99th percentile rises by a bounded amount",
			},
			Key: "lost",
			Run: upgrade.Upgrade,
		},
		twoClusters("multicluster", "One mesh over two clusters on one network", "primary-remote"),
		twoClusters("multicluster-two-networks", "One mesh over two clusters on two networks", "primary-remote-two-networks"),
	}
}

// Select returns the scenarios whose ID matches any of the patterns that do not start with "!", and none of those that do.
// Patterns are regular expressions for the whole ID. Without a positive pattern all are candidates. An error names the bad
// pattern, or says that nothing is left.
func Select(all []Scenario, patterns []string) ([]Scenario, error) {
	var take, skip []*regexp.Regexp
	for _, p := range patterns {
		list, text := &take, p
		if rest, negated := strings.CutPrefix(p, "!"); negated {
			list, text = &skip, rest
		}
		re, err := regexp.Compile("^(?:" + text + ")$")
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", p, err)
		}
		matches := false
		for _, s := range all {
			matches = matches || re.MatchString(s.ID)
		}
		if !matches {
			return nil, fmt.Errorf("pattern %q matches no scenario%s", p, nearest(text, all))
		}
		*list = append(*list, re)
	}
	var out []Scenario
	for _, s := range all {
		if (len(take) == 0 || anyMatch(take, s.ID)) && !anyMatch(skip, s.ID) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no scenario is left by %s", strings.Join(patterns, " "))
	}
	return out, nil
}

func anyMatch(list []*regexp.Regexp, id string) bool {
	for _, re := range list {
		if re.MatchString(id) {
			return true
		}
	}
	return false
}

func nearest(text string, all []Scenario) string {
	var ids []string
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	if n := lab.Nearest(text, ids); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return "; there are " + strings.Join(ids, ", ")
}
