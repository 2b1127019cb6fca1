package upgrade

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

const (
	// addedMax is how much the 99th percentile may rise while pods are replaced on the host that also sends the load.
	addedMax = 250 * time.Millisecond
	// addedAlpha is how often a percentile that rose by no more may be called one that did, and addedMiss the reverse.
	addedAlpha, addedMiss = 1e-6, 1e-3
	// lostMax is the loss rate that the run must be long enough to exclude, and streamMin what each stream must have answered.
	lostMax, streamMin = 0.0015, 200
	// mixedMin is how many requests between the revisions a verdict on them takes.
	mixedMin = 100
	// probes is how often a second the kubelet asks a pod in plaintext, which its proxy counts too.
	probes = 1
)

const noMesh = "likely  there is no mesh in this lab"

// judge turns what was observed into claims. It is pure.
func (r *run) judge() []verdict.Claim {
	claims := []verdict.Claim{r.judgeLost(), r.judgeSteps()}
	claims = append(claims, r.judgeMoves()...)
	claims = append(claims, r.judgeMixed(), r.judgeRefusal(), r.judgeRemoval())
	claims = append(claims, r.judgeAdded("gateway", products), r.judgeAdded("sidecars", oldDetails))
	return append(claims, expect.Guard(r.requests, r.seen.Host, r.calibration, r.seen.Disturbed))
}

func (r *run) streams() []string {
	seen := map[string]bool{}
	for _, q := range r.requests {
		seen[q.Stream] = true
	}
	return sorted(seen)
}

// fewAnswers names the streams that say too little.
func (r *run) fewAnswers() []string {
	want := []string{pages, products, oldReviews, oldDetails}
	if r.meshed {
		want = append(want, newReviews, newDetails)
	}
	return slices.DeleteFunc(want, func(s string) bool { return expect.Answered(expect.Of(r.requests, s)) >= streamMin })
}

func (r *run) judgeLost() verdict.Claim {
	failures, n := verdict.Failures(r.requests)
	few := r.fewAnswers()
	changes := slices.DeleteFunc(slices.Clone(r.events), func(e evidence.Event) bool { return e.Kind != "apply" && e.Kind != "ack" })
	c := verdict.Lost{
		ID: "lost", Statement: "no request failed from the first revision to the removal of it, with a rollback on the way",
		N: n, Failures: failures, Events: changes, Bound: lostMax,
	}.Claim()
	if c.Outcome == verdict.Pass && len(few) > 0 {
		c.Outcome, c.Reason = verdict.Inconclusive, fmt.Sprintf("too few answers in %s; %d are needed in each stream", join(few, 6), streamMin)
	}
	c = expect.Excuse(c, r.requests, failures, r.streams()...)
	for _, s := range r.streams() {
		c.Evidence = append(c.Evidence, evidence.RequestsFile(s))
	}
	return c
}

// judgeSteps says whether the upgrade went all its way: what was not tried says nothing.
func (r *run) judgeSteps() verdict.Claim {
	c := verdict.Claim{
		ID: "steps", Statement: "every workload was moved, back, and forward again, and the old revision removed",
		N: len(r.moves), Statistic: "count of moves that were tried", Bound: fmt.Sprint(r.plannedMoves()), Observed: count(len(r.moves), "move"),
		Outcome: verdict.Pass,
	}
	if len(r.moves) < r.plannedMoves() || r.meshed && r.removed == nil {
		c.Outcome, c.Reason = verdict.Inconclusive, "the load was over before the steps were"
	}
	return c
}

// plannedMoves counts the gateway's three moves, the first half forward and back, everything forward, and the old load agent.
func (r *run) plannedMoves() int {
	n := 3 + 2*halfWay + len(workloads())
	if r.meshed && !r.control {
		n++
	}
	return n
}

// judgeMoves has a claim for each workload, in the order of their first move.
func (r *run) judgeMoves() []verdict.Claim {
	var names []string
	by := map[string][]move{}
	for _, m := range r.moves {
		if by[m.Workload] == nil {
			names = append(names, m.Workload)
		}
		by[m.Workload] = append(by[m.Workload], m)
	}
	var out []verdict.Claim
	for _, name := range names {
		out = append(out, r.judgeMove(name, by[name]))
	}
	return out
}

func (r *run) judgeMove(name string, moves []move) verdict.Claim {
	c := verdict.Claim{
		ID: "moved/" + name, Statement: name + " is on the old revision before each move and on the new one after it",
		N: len(moves), Statistic: "exact: connections of its pods at the control planes, with the version of each proxy",
		Bound:      "every pod, at every move",
		Confounder: "a control plane that tells of connections that are gone",
		Firm:       !r.meshed,
	}
	var wrong []string
	good, blind := 0, 0
	for _, m := range moves {
		why, firm := r.wrongWith(m)
		if why == "" {
			good++
			continue
		}
		if m.Blind && !firm {
			blind++
		}
		c.Firm = c.Firm || firm
		wrong = append(wrong, fmt.Sprintf("%s to %s at %s: %s", m.From, m.To, m.Began.UTC().Format("15:04:05.000"), why))
	}
	c.Observed = fmt.Sprintf("%d of %s", good, count(len(moves), "move"))
	c.Outcome = verdict.Pass
	if len(wrong) > 0 {
		c.Outcome = verdict.Fail
		if blind == len(wrong) {
			c.Outcome = verdict.Inconclusive
		}
		c.Reason = strings.Join(wrong, "\n") + "\nsee     meshproof mesh proxy-status; meshproof mesh version"
		if !r.meshed {
			c.Reason = "no proxy of it is connected to any control plane\n" + noMesh
		}
	}
	return c
}

// wrongWith says what is wrong with a move, "" if nothing is. It is firm when no slow host explains it: a pod that serves beside
// the wrong control plane was made for that one.
func (r *run) wrongWith(m move) (why string, firm bool) {
	if !r.meshed {
		return "no proxy of it is connected to any control plane", true
	}
	if m.Err != nil {
		return m.Err.Error(), false
	}
	for _, x := range []struct {
		when     string
		seats    []seat
		revision string
	}{{"before", m.Before, m.From}, {"after", m.After, m.To}} {
		if len(x.seats) == 0 {
			return "it had no pod " + x.when, false
		}
		for _, s := range x.seats {
			switch want := r.tags[x.revision]; {
			case s.Revision == "":
				return fmt.Sprintf("%s was connected to no control plane %s", s.Pod, x.when), false
			case s.Revision != x.revision:
				return fmt.Sprintf("%s was on revision %s %s, not on %s", s.Pod, s.Revision, x.when, x.revision), true
			case s.Version != want || s.Plane != want:
				return fmt.Sprintf("%s was of version %s at a control plane of version %s %s, not of %s", s.Pod, s.Version, s.Plane, x.when, want), true
			}
		}
	}
	for _, a := range m.After {
		if slices.ContainsFunc(m.Before, func(b seat) bool { return b.Pod == a.Pod }) {
			return a.Pod + " was not replaced", true
		}
	}
	return "", false
}

// judgeMixed looks at requests whose two ends are on different revisions.
func (r *run) judgeMixed() verdict.Claim {
	c := verdict.Claim{
		ID: "mixed", Statement: "requests between the revisions are mutual TLS with the right identities",
		Statistic:  "counts of the called proxies, by connection_security_policy and principals",
		Confounder: "the kubelet's probes, which are plaintext and allowed for; they are the only calls from outside the mesh",
	}
	if !r.meshed {
		c.Outcome, c.Observed, c.Reason, c.Firm = verdict.Fail, "no proxy", "there is no proxy that could tell\n"+noMesh, true
		return c
	}
	if r.mixed == nil {
		c.Outcome, c.Observed, c.Reason = verdict.Inconclusive, "nothing", "the load was over before both revisions were in use"
		return c
	}
	if r.mixed.Err != nil {
		c.Outcome, c.Observed, c.Reason = verdict.Inconclusive, "nothing", "the proxies could not be asked: "+r.mixed.Err.Error()
		return c
	}
	// A caller's revision goes by its workload: all pods of one are on the same.
	revision := map[string]string{}
	for pod, rev := range r.mixed.Revision {
		name, ns, _ := strings.Cut(pod, ".")
		revision[workloadOf(name)+"."+ns] = rev
	}
	var between, within, plain float64
	var ways []string
	directions := map[string]bool{}
	var wrong []string
	outside := map[string]float64{}
	for _, k := range keys(r.mixed.Counted) {
		n := r.mixed.Counted[k]
		called := r.mixed.Revision[k.Pod]
		if k.Security != "mutual_tls" {
			plain += n
			outside[k.Pod] += n
			continue
		}
		_, ns, _ := strings.Cut(k.Source, ".")
		if !strings.Contains(k.Principal, "/ns/"+ns+"/sa/") {
			wrong = append(wrong, fmt.Sprintf("%.0f requests to %s say they are from %s with the identity %q", n, k.Pod, k.Source, k.Principal))
		}
		_, calledNS, _ := strings.Cut(k.Pod, ".")
		if !strings.Contains(k.Destination, "/ns/"+calledNS+"/sa/") {
			wrong = append(wrong, fmt.Sprintf("%.0f requests to %s were shown the identity %q", n, k.Pod, k.Destination))
		}
		switch caller := revision[k.Source]; {
		case caller == "" || called == "":
			wrong = append(wrong, fmt.Sprintf("%.0f requests from %s to %s: one of the two is on no revision", n, k.Source, k.Pod))
		case caller != called:
			between += n
			if way := caller + " to " + called; !directions[way] {
				directions[way] = true
				ways = append(ways, way)
			}
		default:
			within += n
		}
	}
	allowed := probes * (r.mixed.Took.Seconds() + 2)
	for _, pod := range sorted(outside) {
		if outside[pod] > allowed {
			wrong = append(wrong, fmt.Sprintf("%.0f plaintext requests to %s, where the kubelet's probes account for %.0f", outside[pod], pod, allowed))
		}
	}
	slices.Sort(ways)
	c.N = int(between)
	c.Observed = fmt.Sprintf("%s between the revisions (%s), %s within one, %s in plaintext", verdict.Group(int(between)), strings.Join(ways, ", "),
		verdict.Group(int(within)), verdict.Group(int(plain)))
	c.Bound = fmt.Sprintf("all of at least %d, in both directions; in plaintext no more than probes", mixedMin)
	switch {
	case len(wrong) > 0:
		c.Outcome, c.Reason = verdict.Fail, join(wrong, 5)
	case r.control && !directions[blue+" to "+green]:
		// Nothing of the shop was moved, so that only the gateway and the new load agent are on green, which nobody calls.
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("no request went from %s to %s", blue, green)
	case between < mixedMin || len(ways) < 2:
		c.Outcome, c.Reason = verdict.Inconclusive, "too few requests between the revisions were counted"
	default:
		c.Outcome = verdict.Pass
	}
	return c
}

// workloadOf takes the two hashes of a Deployment's pod off its name.
func workloadOf(pod string) string {
	parts := strings.Split(pod, "-")
	if len(parts) < 3 {
		return pod
	}
	return strings.Join(parts[:len(parts)-2], "-")
}

func keys(m map[series]float64) []series {
	var out []series
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b series) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return out
}

func (r *run) judgeRefusal() verdict.Claim {
	c := verdict.Claim{
		ID: "refused", Statement: "removing the old revision is refused while proxies use it, and they are named",
		Statistic: "exact: the names in the refusal against those connected",
	}
	switch {
	case !r.meshed:
		c.Outcome, c.Observed, c.Reason = verdict.Skip, "nothing to remove", "there is no mesh in this lab"
		return c
	case r.refusal == nil:
		c.Outcome, c.Observed, c.Reason = verdict.Inconclusive, "not tried", "the load was over before"
		return c
	}
	c.N = len(r.refusal.Needed)
	c.Bound = "all " + count(c.N, "proxy name") + " that were connected"
	var used *install.InUseError
	if !errors.As(r.refusal.Err, &used) {
		c.Outcome, c.Observed, c.Firm = verdict.Fail, "not refused", r.refusal.Err == nil
		c.Reason = "proxies were connected: " + join(r.refusal.Needed, 5)
		if r.refusal.Err != nil {
			c.Reason = r.refusal.Err.Error()
		}
		return c
	}
	var missing []string
	for _, pod := range r.refusal.Needed {
		if !slices.ContainsFunc(used.Proxies, func(u install.User) bool { return u.Proxy == pod }) {
			missing = append(missing, pod)
		}
	}
	c.Observed = fmt.Sprintf("refused, %s named", count(len(used.Proxies), "proxy name"))
	switch {
	case len(missing) > 0:
		c.Outcome, c.Reason = verdict.Fail, "not named: "+join(missing, 5)
	case c.N == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "no proxy was connected to it then"
	default:
		c.Outcome = verdict.Pass
	}
	return c
}

func (r *run) judgeRemoval() verdict.Claim {
	c := verdict.Claim{
		ID: "orphans", Statement: "nothing of the old revision is left after its removal",
		Statistic: "objects of every kind that the API server lists, by label, name, and what leads to its control plane", Bound: "none",
	}
	switch {
	case !r.meshed:
		c.Outcome, c.Observed, c.Reason = verdict.Skip, "nothing to remove", "there is no mesh in this lab"
		return c
	case r.removed == nil:
		c.Outcome, c.Observed, c.Reason = verdict.Inconclusive, "not tried", "the load was over before"
		return c
	}
	var used *install.InUseError
	switch {
	case errors.As(r.removed.Err, &used):
		c.Outcome, c.Observed, c.Reason, c.Firm = verdict.Fail, "not removed", r.removed.Err.Error(), true
		if slices.ContainsFunc(r.moves, func(m move) bool { return m.Err != nil }) {
			c.Outcome, c.Firm = verdict.Inconclusive, false // it was in use because a move did not come to its end, which has its own claim
		}
	case r.removed.Err != nil:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, "not removed", r.removed.Err.Error()
	case r.removed.ListErr != nil:
		c.Outcome, c.Observed, c.Reason = verdict.Inconclusive, "not known", r.removed.ListErr.Error()
	case len(r.removed.Orphans) > 0:
		c.Outcome, c.Observed, c.Firm = verdict.Fail, count(len(r.removed.Orphans), "object")+" left", true
		c.Reason = fmt.Sprintf("%s after the command: %s", verdict.Seconds(r.removed.Settled.Seconds()), join(r.removed.Orphans, 20))
	default:
		c.N = len(r.removed.Had)
		c.Outcome, c.Observed = verdict.Pass, fmt.Sprintf("none of %s left, %s after the command, which took %s", count(c.N, "object"),
			verdict.Seconds(r.removed.Settled.Seconds()), verdict.Seconds(r.removed.Took.Seconds()))
		if missing := r.neverHad(); len(missing) > 0 {
			c.Outcome, c.Reason = verdict.Inconclusive, "right before the removal there was no "+strings.Join(missing, ", no ")+" either, so that none is left shows nothing"
		}
	}
	return c
}

// removedKinds are what a revision is made of; the check for orphans must have seen each before it can miss it.
func removedKinds() []string {
	return []string{
		"IstioOperator", "Deployment", "Service", "ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget",
		"MutatingWebhookConfiguration", "ClusterRole", "ClusterRoleBinding",
	}
}

func (r *run) neverHad() []string {
	return slices.DeleteFunc(removedKinds(), func(kind string) bool {
		return slices.ContainsFunc(r.removed.Had, func(o string) bool { return strings.HasPrefix(o, kind+" ") })
	})
}

// judgeAdded compares the slowest hundredth of a stream during the upgrade with the quiet time before it, whose halves show how
// much it differs from itself. It judges by the interval that the percentile lies in, not by the sample's own.
func (r *run) judgeAdded(where, stream string) verdict.Claim {
	c := verdict.Claim{
		ID: "p99/" + where, Statement: fmt.Sprintf("the upgrade adds at most %s to the 99th percentile, %s", addedMax, where),
		Statistic:  "99th percentile from the intended start, interval by order statistics, against both halves of the quiet time",
		Confounder: "pods that start on the processors that the load runs on",
		Evidence:   []string{evidence.RequestsFile(stream)},
		Window:     &verdict.Window{From: r.changing.From, To: r.changing.To},
	}
	a, na := p99(latencies(expect.Sent(r.requests, r.quiet[0], stream)))
	b, nb := p99(latencies(expect.Sent(r.requests, r.quiet[1], stream)))
	changing := expect.Sent(r.requests, r.changing, stream)
	all := latencies(changing)
	d, nd := p99(all)
	if min(na, nb, nd) < 200 {
		c.Outcome, c.Reason = verdict.Inconclusive, fmt.Sprintf("%d and %d answers in the quiet time and %d in the upgrade; 200 are needed in each", na, nb, nd)
		return c
	}
	spread := max(a, b) - min(a, b)
	allowed := max(a, b) + spread + addedMax
	least, _ := verdict.QuantileRanks(nd, 0.99, addedAlpha)
	_, most := verdict.QuantileRanks(nd, 0.99, addedMiss)
	c.N = nd
	c.Observed = fmt.Sprintf("p99 %s, quiet %s and %s", ms(d), ms(a), ms(b))
	c.Bound = fmt.Sprintf("p99 at most %s; false alarm %g, a higher one missed %g", ms(allowed), addedAlpha, addedMiss)
	want := max(a, b).Seconds()
	c.Interval = &verdict.Interval{Unit: "s", Observed: d.Seconds(), Want: &want, Low: 0, High: allowed.Seconds()}
	switch {
	case most <= nd && all[most-1] <= allowed:
		c.Outcome = verdict.Pass
	case least > 0 && all[least-1] > allowed:
		c.Outcome = verdict.Fail
		c.Reason = fmt.Sprintf("at least %s, %s more than in the quiet time, whose halves differ by %s", ms(all[least-1]), ms(all[least-1]-max(a, b)), ms(spread))
	default:
		c.Outcome = verdict.Inconclusive
		c.Reason = fmt.Sprintf("%s requests do not tell whether it is above: it lies between %s and %s", verdict.Group(nd), ms(all[max(least, 1)-1]), ms(all[min(most, nd)-1]))
	}
	return expect.Excuse(c, r.requests, expect.Moments(changing, func(q evidence.Request) bool { return time.Duration(q.Done-q.Intended) > allowed }), stream)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond)) }

// latencies are sorted, from the intended start, failed requests included.
func latencies(rs []evidence.Request) []time.Duration {
	var all []time.Duration
	for _, q := range rs {
		all = append(all, time.Duration(q.Done-q.Intended))
	}
	slices.Sort(all)
	return all
}

// p99 is the 99th percentile of sorted latencies, by nearest rank.
func p99(all []time.Duration) (time.Duration, int) {
	if len(all) == 0 {
		return 0, 0
	}
	return all[(len(all)*99+99)/100-1], len(all)
}
