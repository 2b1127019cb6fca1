package multicluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// noMesh is what a person is told of a lab that has none.
const noMesh = "\nlikely  there is no mesh over these clusters, so a Service ends where its cluster does"

// judge turns what was observed into claims. It is pure.
func judge(r run) []verdict.Claim {
	claims := []verdict.Claim{
		r.judgeVisits(),
		r.judgeSpread(cartApp, catchMany, pageHome, pageAdd, pageCart, pageCheckout),
		r.judgeSpread(recommendApp, catchFew, pageProduct),
		r.judgeCalm(),
		r.judgeNew(),
		r.judgeCut(),
		r.judgeFailover(),
		r.judgeFailoverLosses(),
		r.judgeReturn(),
		r.judgeReturnLosses(),
		r.judgeNetworks(),
	}
	claims = append(claims, r.judgeWire()...)
	return append(claims, r.judgeIdentity(), r.judgeWithoutPilot(), expect.Guard(r.requests, r.seen.Host, r.calibration, r.seen.Disturbed))
}

// The share of calls in the wrong cluster that a claim is made to catch, by how many samples its page has.
const catchMany, catchFew = 0.10, 0.20

func streamFiles(streams ...string) []string {
	var out []string
	for _, s := range streams {
		out = append(out, evidence.RequestsFile(s))
	}
	return out
}

// page is which page a request of the shop asked for.
func (r run) page(q evidence.Request) int {
	return int(q.Seq / uint64(r.plan.sessions) % pagesOfVisit)
}

// ofPages are the shop's requests for some pages within a window.
func (r run) ofPages(w expect.Window, pages ...int) []evidence.Request {
	return slices.DeleteFunc(expect.Sent(r.requests, w, shopStream), func(q evidence.Request) bool { return !slices.Contains(pages, r.page(q)) })
}

// places counts the answers by who gave them: "cartservice-x of remote".
func places(rs []evidence.Request) string {
	n := map[string]int{}
	for _, q := range rs {
		if q.Class == expect.OK {
			n[q.Pod+" of "+q.Cluster]++
		}
	}
	var parts []string
	for _, p := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%s %s", p, verdict.Group(n[p])))
	}
	if len(parts) == 0 {
		return "nobody"
	}
	return strings.Join(parts, ", ")
}

// judgeVisits counts visits that began and ended while nothing changed: five pages, of which the last shows what was bought.
func (r run) judgeVisits() verdict.Claim {
	type visitKey struct{ session, number uint64 }
	began, good := map[visitKey]bool{}, map[visitKey]int{}
	visitsAt := func(q evidence.Request) visitKey {
		return visitKey{q.Seq % uint64(r.plan.sessions), q.Seq / uint64(r.plan.sessions) / pagesOfVisit}
	}
	for _, q := range expect.Sent(r.requests, r.calm, shopStream) {
		k := visitsAt(q)
		if r.page(q) == pageHome {
			began[k] = true
		}
		if q.Class == expect.OK {
			good[k]++
		}
	}
	ended := map[visitKey]bool{}
	for _, q := range expect.Sent(r.requests, r.calm, shopStream) {
		if k := visitsAt(q); began[k] && r.page(q) == pageCheckout {
			ended[k] = true
		}
	}
	c := verdict.Claim{
		ID: "visits", Statement: fmt.Sprintf("whole visits work end to end with parts in %s and %s: browse, cart, checkout", r.first, r.second),
		N: len(ended), Statistic: "count of visits of one session whose five pages all came as they should", Bound: "every visit",
		Confounder: "pages that are right though a call below them was not made; each must name the part that made it",
		Evidence:   streamFiles(shopStream), Window: &verdict.Window{From: r.calm.From, To: r.calm.To}, Outcome: verdict.Pass,
	}
	whole := 0
	for k := range ended {
		if good[k] == pagesOfVisit {
			whole++
		}
	}
	c.Observed = fmt.Sprintf("%d of %d visits, pages by %s", whole, len(ended), places(expect.Sent(r.requests, r.calm, shopStream)))
	switch both := r.inSecond(expect.Sent(r.requests, r.calm, shopStream)); {
	case len(ended) == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "no visit began and ended while nothing changed"
	case whole < len(ended):
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("%d visits were broken", len(ended)-whole)
	case both == 0:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("no part of any page was made in cluster %s", r.second)
	}
	failures, _ := verdict.Failures(expect.Sent(r.requests, r.calm, shopStream))
	return r.stalled(c, failures)
}

func (r run) inSecond(rs []evidence.Request) int {
	n := 0
	for _, q := range rs {
		if q.Class == expect.OK && q.Cluster == r.second {
			n++
		}
	}
	return n
}

// judgeSpread judges that calls to what stands in both clusters are answered in the second while it can be reached.
func (r run) judgeSpread(app string, catch float64, pages ...int) verdict.Claim {
	rs := r.ofPages(r.calm, pages...)
	c := verdict.Share{
		ID: "placed/" + app, Statement: fmt.Sprintf("calls of %s to %s are answered in %s, which is preferred", r.first, app, r.second),
		Want: 1, Catch: catch, Count: r.inSecond(rs), N: expect.Answered(rs),
	}.Claim()
	c.Observed += ": " + places(rs)
	c.Evidence = streamFiles(shopStream)
	c.Window = &verdict.Window{From: r.calm.From, To: r.calm.To}
	return r.stalled(c, expect.Moments(rs, func(q evidence.Request) bool { return q.Class != expect.OK || q.Cluster != r.second }))
}

func (r run) judgeCalm() verdict.Claim {
	failures, n := verdict.Failures(expect.Sent(r.requests, r.calm, shopStream, remoteStream))
	return r.stalled(verdict.Lost{
		ID: "lost/calm", Statement: "nothing is lost while nothing changes, from outside and from " + r.second, N: n, Failures: failures, Events: r.events,
	}.Claim(), failures)
}

// stalled excuses a claim by a stall of the host.
func (r run) stalled(c verdict.Claim, failures []verdict.Failure) verdict.Claim {
	c = expect.Excuse(c, r.requests, failures, shopStream, remoteStream, newStream)
	if c.Outcome == verdict.Fail && !r.meshed {
		c.Reason += noMesh
	}
	return c
}

// judgeNew judges when calls from the second cluster to the new service begin to work for good.
func (r run) judgeNew() verdict.Claim {
	rs := expect.Of(r.requests, newStream)
	c := verdict.Claim{
		ID: "new-service", Statement: fmt.Sprintf("a service that is made while load runs, with its pod in %s, answers from %s", r.first, r.second),
		N: len(rs), Statistic: "time from making it to the last call that failed", Bound: "within " + r.plan.newWithin.String(),
		Confounder: "an answer to its name that was remembered; the caller's resolver remembers none", Evidence: streamFiles(newStream),
	}
	r.since(&c, rs, r.added, r.plan.newWithin, func(evidence.Request) bool { return true })
	if i := slices.IndexFunc(rs, func(q evidence.Request) bool { return q.Class == expect.OK }); i >= 0 {
		c.Observed += fmt.Sprintf(", the first %s after it was made", verdict.Seconds(time.Duration(rs[i].Done-r.added.UnixNano()).Seconds()))
	}
	return c
}

// since judges how long after a moment requests go on to fail, or to be answered otherwise than good says.
func (r run) since(c *verdict.Claim, rs []evidence.Request, moment time.Time, within time.Duration, good func(evidence.Request) bool) {
	last, bad, right := time.Duration(0), 0, 0
	var sample evidence.Request
	for _, q := range rs {
		if q.Class == expect.OK && good(q) {
			right++
			continue
		}
		bad++
		if d := time.Duration(q.Intended - moment.UnixNano()); d >= last {
			last, sample = d, q
		}
	}
	c.Window = &verdict.Window{From: moment, To: moment.Add(max(last, within))}
	c.Interval = &verdict.Interval{Unit: "s", Observed: last.Seconds(), Low: 0, High: within.Seconds()}
	c.Outcome = verdict.Pass
	after := slices.DeleteFunc(slices.Clone(rs), func(q evidence.Request) bool { return bad > 0 && q.Intended <= moment.Add(last).UnixNano() })
	if bad == 0 {
		c.Observed = fmt.Sprintf("none of %d requests was wrong: all by %s", len(rs), places(after))
	} else {
		c.Observed = fmt.Sprintf("%s, %d of %d requests; then all by %s", verdict.Seconds(last.Seconds()), bad, len(rs), places(after))
	}
	switch {
	case len(rs) == 0:
		c.Outcome, c.Reason, c.Observed, c.Interval = verdict.Inconclusive, "no request was sent in this time", "nothing", nil
	case right == 0 || last > within:
		c.Outcome = verdict.Fail
		c.Reason = fmt.Sprintf("where   the last that was wrong left %s after, stream %s, request %d: %s %d by %q of %q %s",
			verdict.Seconds(last.Seconds()), sample.Stream, sample.Seq, sample.Class, sample.Code, sample.Pod, sample.Cluster, sample.Err)
		*c = r.stalled(*c, expect.Moments(rs, func(q evidence.Request) bool { return q.Class != expect.OK || !good(q) }))
	}
}

// judgeCut proves that the fault happened: what the second cluster asks of the first, where no copy of it stands by, gets no
// answer for as long as the link is cut.
func (r run) judgeCut() verdict.Claim {
	w := expect.Window{From: r.isCut.Add(settleFor), To: r.healed.Add(-agentTimeout - healMargin)}
	rs := expect.Sent(r.requests, w, remoteStream)
	c := verdict.Claim{
		ID: "fault/cut", Statement: fmt.Sprintf("the link was cut: nothing that %s asked of %s was answered", r.second, r.first), N: len(rs),
		Statistic: "count of answers", Bound: "none", Observed: fmt.Sprintf("%d of %d answered", expect.Answered(rs), len(rs)),
		Confounder: "requests that would have failed anyway; they did not before the cut", Evidence: streamFiles(remoteStream), Firm: true,
		Window: &verdict.Window{From: w.From, To: w.To}, Outcome: verdict.Pass,
	}
	before := expect.Sent(r.requests, r.calm, remoteStream)
	switch {
	case len(rs) == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "nothing was asked while the link was cut"
	case expect.Answered(rs) > 0:
		c.Outcome, c.Reason = verdict.Fail, "some requests got through, so the link was not cut"
	case expect.Answered(before)*10 < len(before)*9:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("before the cut %d of %d were answered, so silence shows nothing", expect.Answered(before), len(before))
		if !r.meshed {
			c.Reason += noMesh
		}
	}
	return c
}

// probes are the streams of probes, by what they call.
func probes() []struct{ what, stream string } {
	return []struct{ what, stream string }{{"pod", podProbe}, {"node", nodeProbe}, {"ClusterIP", serviceProbe}, {"node port", nodePortProbe}}
}

// judgeNetworks judges what a pod of the second cluster reaches of the first at its own address: on separate networks nothing, on one
// network all of it.
func (r run) judgeNetworks() verdict.Claim {
	c := verdict.Claim{
		ID: "networks", Statement: fmt.Sprintf("from a pod of %s no pod, node or Service of %s can be reached but by a gateway", r.second, r.first),
		Statistic: "exact: answers to calls of the addresses of a pod, a node's kubelet, a Service and its node port", Bound: "none",
		Confounder: "addresses at which nobody answers anybody; by the gateway that pod must be answered, and on one network all answer", Firm: true, Outcome: verdict.Pass,
	}
	if !r.separate {
		c.Statement = fmt.Sprintf("a pod of %s reaches pods, nodes and Services of %s at their own addresses", r.second, r.first)
		c.Bound, c.Confounder, c.Firm = "each at least once", "addresses that are not there yet", false
	}
	var seen, open, shut, unasked []string
	for _, p := range probes() {
		rs := expect.Of(r.requests, p.stream)
		answered := expect.Answered(rs)
		c.N += len(rs)
		c.Evidence = append(c.Evidence, evidence.RequestsFile(p.stream))
		seen = append(seen, fmt.Sprintf("the %s answered %d of %d", p.what, answered, len(rs)))
		switch {
		case len(rs) == 0:
			unasked = append(unasked, p.what)
		case answered > 0:
			open = append(open, p.what)
		default:
			shut = append(shut, p.what)
		}
	}
	c.Observed = strings.Join(seen, ", ")
	switch {
	case len(unasked) > 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "nothing was asked of the "+strings.Join(unasked, ", ")
	case r.separate && len(open) > 0:
		c.Outcome, c.Reason = verdict.Fail, "the networks are not separate: the "+strings.Join(open, ", ")+" answered"
	case r.separate && r.meshed && expect.Answered(expect.Sent(r.requests, r.calm, remoteStream)) == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "it reached nobody by the gateway either"
	case !r.separate && len(shut) > 0:
		c.Outcome, c.Reason = verdict.Fail, "the clusters are not on one network: the "+strings.Join(shut, ", ")+" did not answer"
	}
	return c
}

// judgeFailover judges how long shoppers felt the cut.
func (r run) judgeFailover() verdict.Claim {
	c := verdict.Claim{
		ID: "failover/time", Statement: fmt.Sprintf("with the link cut, the copies in %s take over", r.first), Statistic: "time from the cut to the last page that failed",
		Bound: "within " + r.plan.failoverWithin.String(), Confounder: "a cut that comes later than it is said to; fault/cut tells", Evidence: streamFiles(shopStream),
	}
	rs := expect.Sent(r.requests, expect.Window{From: r.cut, To: r.healed}, shopStream)
	c.N = len(rs)
	r.since(&c, rs, r.cut, r.plan.failoverWithin, func(q evidence.Request) bool { return q.Cluster == r.first })
	if !r.meshed && c.Outcome == verdict.Pass {
		c.Outcome = verdict.Skip
		c.Reason = fmt.Sprintf("nothing came from %s before the cut, so nothing had to be taken over", r.second)
	}
	return c
}

func (r run) judgeFailoverLosses() verdict.Claim {
	rs := expect.Sent(r.requests, expect.Window{From: r.cut, To: r.healed}, shopStream)
	return r.bounded("failover/lost", "few pages are lost for the cut", rs, r.plan.failoverLosses(),
		fmt.Sprintf("%d errors in a row at each of three callers, what is on its way within %s, and one cart of each of %d shoppers",
			r.plan.errors, r.plan.callTimeout+r.plan.interval, r.plan.sessions))
}

// bounded judges that no more requests failed than a number that was set beforehand.
func (r run) bounded(id, statement string, rs []evidence.Request, most int, why string) verdict.Claim {
	failures, n := verdict.Failures(rs)
	c := verdict.Claim{
		ID: id, Statement: statement, N: n, Statistic: "count of failures", Bound: fmt.Sprintf("at most %d: %s", most, why),
		Observed:   fmt.Sprintf("%d of %s failed", len(failures), verdict.Group(n)),
		Confounder: "requests that failed for something else; the count holds them too", Evidence: streamFiles(shopStream), Outcome: verdict.Pass,
		Interval: &verdict.Interval{Unit: "", Observed: float64(len(failures)), Low: 0, High: float64(most)},
	}
	switch {
	case n == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "no request was sent in this time"
	case len(failures) > most:
		c.Outcome = verdict.Fail
		classes := map[string]int{}
		for _, f := range failures {
			classes[f.Class]++
		}
		var parts []string
		for _, class := range slices.Sorted(maps.Keys(classes)) {
			parts = append(parts, fmt.Sprintf("%d %s", classes[class], class))
		}
		f := failures[len(failures)-1]
		c.Reason = fmt.Sprintf("%s; the last at %s: %s", strings.Join(parts, ", "), f.Time.UTC().Format("15:04:05.000"), f.Err)
		return r.stalled(c, failures)
	}
	return c
}

// judgeReturn judges when the preferred copies answer again.
func (r run) judgeReturn() verdict.Claim {
	rs := expect.Sent(r.requests, expect.Window{From: r.healed, To: r.returned}, shopStream)
	c := verdict.Claim{
		ID: "return", Statement: fmt.Sprintf("after the link is healed, %s answers again", r.second), N: len(rs),
		Statistic:  "time from healing to the last page that was not made there",
		Bound:      fmt.Sprintf("within %s: hosts that were ejected during the cut stay out for %s", r.plan.returnWithin.Round(time.Second/10), r.plan.baseEjection),
		Confounder: "connections that outlast the cut and come back late", Evidence: streamFiles(shopStream),
	}
	r.since(&c, rs, r.healed, r.plan.returnWithin, func(q evidence.Request) bool { return q.Cluster == r.second })
	return c
}

func (r run) judgeReturnLosses() verdict.Claim {
	rs := expect.Sent(r.requests, expect.Window{From: r.healed, To: r.returned}, shopStream)
	return r.bounded("return/lost", "few pages are lost for the return", rs, r.plan.returnLosses(),
		fmt.Sprintf("one cart of each of %d shoppers, which fails the two pages after it", r.plan.sessions))
}

func (r run) judgeWithoutPilot() verdict.Claim {
	c := verdict.Claim{ID: "lost/no-control-plane", Statement: "without a control plane both clusters keep serving", Outcome: verdict.Skip}
	if len(r.primaries) > 1 {
		c.Statement = "without its own control plane each cluster keeps serving"
	}
	if !r.meshed {
		c.Observed, c.Reason = "no control plane", "there is no mesh in this lab"
		return c
	}
	failures, n := verdict.Failures(expect.Sent(r.requests, r.lost, shopStream, remoteStream))
	c = verdict.Lost{ID: c.ID, Statement: c.Statement, N: n, Failures: failures, Events: r.events}.Claim()
	c.Window = &verdict.Window{From: r.lost.From, To: r.lost.To}
	rs := expect.Sent(r.requests, r.lost, shopStream)
	c.Observed += ", pages by " + places(rs)
	switch {
	case len(r.pilots) > 0:
		c.Outcome, c.Reason = verdict.Fail, "a control plane was there all the same: "+r.pilots[0]
	case c.Outcome == verdict.Pass && r.inSecond(rs) == 0:
		c.Outcome, c.Reason = verdict.Fail, "nothing was made in "+r.second
	}
	return r.stalled(c, failures)
}
