package balancing

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

// sweepSlack is how late a sweep may come; seen: some milliseconds.
const sweepSlack = 500 * time.Millisecond

const noEjection = "likely  there is no mesh in this lab, so nothing watches for errors: kube-proxy sends to every Ready pod"

// judgeOutlier turns what was observed into claims. It is pure.
func judgeOutlier(run outlierRun) []verdict.Claim {
	var claims []verdict.Claim
	seen := run.histories()
	for _, step := range run.plan.faults {
		for _, s := range run.plan.services {
			if !step.all && step.share == 0 && slices.Contains(s.under, step.name) {
				claims = append(claims, run.judgeEjected(seen, s, step))
			}
		}
	}
	claims = append(claims, run.judgeRows(seen), run.judgeOthers(), run.judgeReturned(), run.judgeGrown(), run.judgeCost(seen))
	claims = append(claims, run.judgeOneBad(), run.judgeSmall(), run.judgeNoHost(), run.judgePanic(), run.judgeCap())
	claims = append(claims, run.judgeHalf(), run.judgeMoreThanHalf())
	for _, s := range run.plan.services {
		if s.most(run.plan.pods) < run.plan.pods {
			claims = append(claims, run.judgeRefused(seen, s))
		}
	}
	claims = append(claims, run.judgeUnrefused(), run.judgeBack(), run.judgeShown())
	for _, step := range run.plan.faults {
		claims = append(claims, run.judgeProof(step))
	}
	claims = append(claims, run.judgeLost())
	return append(claims, expect.Guard(run.requests, run.seen.Host, run.calibration, run.seen.Disturbed))
}

// made are the faults of a step that were made to their end.
func (run outlierRun) made(step faultStep) []fault {
	var out []fault
	for _, f := range run.faults {
		if f.step.name == step.name && f.complete {
			out = append(out, f)
		}
	}
	return out
}

// excused takes back that a claim fails where the host stalled around the moments that are wrong.
func (run outlierRun) excused(c verdict.Claim, wrong ...time.Time) verdict.Claim {
	slices.SortFunc(wrong, time.Time.Compare)
	var moments []verdict.Failure
	for _, t := range wrong {
		moments = append(moments, verdict.Failure{Time: t})
	}
	return expect.Excuse(c, run.requests, moments, run.plan.streams()...)
}

// judged does so for a claim that rests on what proxies tell: it neither passes nor fails where one could not be asked.
func (run outlierRun) judged(c verdict.Claim, wrong ...time.Time) verdict.Claim {
	c = run.excused(c, wrong...)
	if len(run.unread) == 0 || c.Outcome == verdict.Skip {
		return c
	}
	c.Outcome = verdict.Inconclusive
	var why []string
	for _, where := range slices.Sorted(maps.Keys(run.unread)) {
		why = append(why, fmt.Sprintf("the %s could not be asked in the end: %v", where, run.unread[where]))
	}
	c.Reason = strings.TrimPrefix(c.Reason+"\n"+strings.Join(why, "\n"), "\n")
	return c
}

// whole has a claim that speaks of every round not pass when the load was over before, nor fail if none came so far.
func (run outlierRun) whole(c verdict.Claim, rounds int) verdict.Claim {
	if run.cut && rounds < run.plan.repeat && (c.Outcome == verdict.Pass || rounds == 0) {
		c.Outcome = verdict.Inconclusive
		c.Reason = strings.TrimPrefix(c.Reason+fmt.Sprintf("\nthe load was over after %d of %d rounds of it", rounds, run.plan.repeat), "\n")
	}
	return c
}

// finish adds the evidence of Services, and what explains that nobody is taken out.
func (run outlierRun) finish(c verdict.Claim, services ...watched) verdict.Claim {
	for _, s := range services {
		for _, st := range s.streams {
			c.Evidence = append(c.Evidence, evidence.RequestsFile(st.name))
		}
	}
	if c.Outcome == verdict.Fail && !run.meshed {
		c.Reason += "\n" + noEjection
	}
	return c
}

// judgeEjected has every proxy take the failing host out after exactly so many errors.
func (run outlierRun) judgeEjected(seen map[string]history, s watched, step faultStep) verdict.Claim {
	v := verdict.Ejected{
		ID:        "ejected/" + strings.ReplaceAll(step.name, " ", "-") + "/" + s.name,
		Statement: fmt.Sprintf("a host that %s is out after %d errors in a row at each proxy: %s", step.name, s.errors, s.name),
		Threshold: s.errors,
	}
	faults := run.made(step)
	for _, f := range faults {
		v.Host = f.hosts[0]
		v.Faults = append(v.Faults, verdict.Fault{From: f.from, To: run.until(f), Rows: map[string]int{}})
	}
	for _, st := range s.streams {
		v.Proxies = append(v.Proxies, st.at())
		v.Within = max(v.Within, run.plan.slowest(s.errors, st.rate))
		h := seen[st.name]
		v.Ejections = append(v.Ejections, h.ejections...)
		for _, f := range v.Faults {
			f.Rows[st.at()] = longest(h.answers[v.Host], h.stays, v.Host, expect.Window{From: f.From, To: f.To})
		}
	}
	c, wrong := v.Claim()
	if !run.meshed && len(faults) > 0 && c.Outcome == verdict.Inconclusive {
		c.Outcome = verdict.Fail // without proxies nobody would have, whichever host the connections lead to
	}
	return run.whole(run.judged(run.finish(c, s), wrong...), len(faults))
}

// findings are what is wrong with the parts of a claim, with when, and what could not be told.
type findings struct {
	wrong, open []string
	when        []time.Time
}

func (f *findings) fail(what string, when ...time.Time) {
	f.wrong, f.when = append(f.wrong, what), append(f.when, when...)
}

// claim completes c: one wrong part fails it, and one that is open leaves it open.
func (f findings) claim(c verdict.Claim) verdict.Claim {
	c.Outcome = verdict.Pass
	switch {
	case len(f.wrong) > 0:
		c.Outcome, c.Reason = verdict.Fail, strings.Join(f.wrong, "\n")
	case len(f.open) > 0:
		c.Outcome, c.Reason = verdict.Inconclusive, strings.Join(f.open, "\n")
	}
	return c
}

// under are the Services that a step must take a host out of.
func (pl outlierPlan) under(step faultStep) []watched {
	return slices.DeleteFunc(slices.Clone(pl.services), func(s watched) bool { return !slices.Contains(s.under, step.name) })
}

// judgeRows has a host that fails half of the time be taken out when its errors came in a row, and not for as many that did not.
func (run outlierRun) judgeRows(seen map[string]history) verdict.Claim {
	step := run.plan.faults[slices.IndexFunc(run.plan.faults, func(f faultStep) bool { return f.share > 0 })]
	c := verdict.Claim{
		ID: "in-a-row", Statement: "errors take a host out when they come in a row, not for their number",
		Statistic: "exact for each proxy: errors in a row when a host that fails half of the time is taken out",
		Bound:     "as many as the policy says, and never that many without it", Confounder: "answers that overtake each other",
	}
	var found findings
	scattered, ejected, faults := 0, 0, run.made(step)
	for _, s := range run.plan.under(step) {
		for _, st := range s.streams {
			c.Evidence = append(c.Evidence, evidence.RequestsFile(st.name))
			h := seen[st.name]
			for _, f := range faults {
				host := f.hosts[0]
				for _, e := range ejectedIn(h.ejections, host, f.from, run.until(f)) {
					ejected++
					if why := e.Wrong(s.errors); why != "" {
						found.fail(s.name+": "+why, e.At)
					}
				}
				m := meet(h.answers[host], h.stays, host, f, s.errors)
				c.N += m.errors
				if m.scattered {
					scattered++
				}
				if !m.missed.IsZero() {
					found.fail(fmt.Sprintf("%s: %s did not take the host out after %d errors in a row", s.name, st.at(), s.errors), m.missed)
				}
			}
		}
	}
	c.Observed = fmt.Sprintf("%d ejections, %d of them or of the rows wrong; as many errors, scattered, took nobody out %d times", ejected, len(found.wrong), scattered)
	if scattered == 0 {
		found.open = append(found.open, "no proxy had so many errors that were not in a row, so nothing was shown")
	}
	return run.whole(run.judged(run.finish(found.claim(c)), found.when...), len(faults))
}

// met is what a proxy met of a host that fails now and then.
type met struct {
	errors    int
	scattered bool      // it had as many errors as a row needs, surely not in a row, and kept the host
	missed    time.Time // it had a row and kept the host; zero if it did not
}

func meet(list []answer, stays []stay, host string, f fault, threshold int) met {
	var m met
	for _, a := range during(list, f.from, f.to) {
		if !a.bad || a.sent.Before(f.from) || !a.sent.Before(f.to) {
			continue
		}
		m.errors++
		at := a.to.Add(2 * clockSlack)
		if slices.ContainsFunc(stays, func(x stay) bool { return x.host == host && x.holds(a.to.Add(settleSlack)) }) {
			break
		}
		sure, possible := row(list, back(stays, host, at), at)
		if sure >= threshold && m.missed.IsZero() {
			m.missed = a.to
		}
		m.scattered = m.scattered || m.errors >= threshold && possible < threshold
	}
	return m
}

// due says whether a host that a Service's proxy took out at a time was failing in a way that must have led to it.
func (run outlierRun) due(s watched, x stay) (string, bool) {
	for _, f := range run.faults {
		if !slices.Contains(f.hosts, x.host) || x.from.Before(f.from) || x.from.After(run.until(f)) {
			continue
		}
		return f.step.name, !s.judged || slices.Contains(s.under, f.step.name)
	}
	return "no fault of its own", false
}

// judgeOthers has nobody be taken out but for errors that count.
func (run outlierRun) judgeOthers() verdict.Claim {
	v := verdict.Strays{ID: "others", Statement: "nobody else is taken out, and nobody for errors that do not count", Seen: map[string]int{}, Movable: true}
	var wrong []time.Time
	for _, s := range run.plan.services {
		for _, at := range places(s) {
			for _, x := range run.stays(s, at) {
				v.N++
				if why, ok := run.due(s, x); !ok {
					v.Seen[fmt.Sprintf("%s of %s at the %s's proxy, under %s", run.pods[x.host], s.name, at, why)]++
					wrong = append(wrong, x.from)
				}
			}
		}
	}
	c := v.Claim()
	c.Reason = strings.ReplaceAll(c.Reason, " to ", " times ")
	if v.N == 0 {
		c.Reason = "no host was taken out at all"
	}
	return run.judged(c, wrong...)
}

func places(s watched) []string {
	var out []string
	for _, st := range s.streams {
		if !slices.Contains(out, st.at()) {
			out = append(out, st.at())
		}
	}
	return out
}

func (run outlierRun) judgeReturned() verdict.Claim {
	v := verdict.Returned{
		ID: "returned", Statement: "a host is out for the base time, times how often it was lately, and returns in the sweep",
		Base: run.plan.base, Interval: run.plan.interval, Slack: sweepSlack, Until: run.read,
	}
	for _, s := range run.plan.services {
		for _, at := range places(s) {
			for _, x := range run.stays(s, at) {
				v.Ejections = append(v.Ejections, verdict.Ejection{Proxy: at + " " + s.name, Host: run.pods[x.host], At: x.from, Returned: x.to, Number: x.number})
			}
		}
	}
	c, wrong := v.Claim()
	return run.judged(c, wrong...)
}

// judgeGrown has a host that still fails when it is back be taken out again, for twice the time.
func (run outlierRun) judgeGrown() verdict.Claim {
	low, high := 2*run.plan.base, 2*run.plan.base+run.plan.interval+sweepSlack
	c := verdict.Claim{
		ID: "grown", Statement: "a host that still fails when it is back is out again, for twice the base time", Statistic: "times from the proxies' own event logs",
		Bound:      fmt.Sprintf("twice in each fault at each proxy, the second time for %s to %s", verdict.Seconds(low.Seconds()), verdict.Seconds(high.Seconds())),
		Confounder: "a proxy that was short of CPU at the sweep",
	}
	step := run.plan.faults[0]
	var found findings
	var longest time.Duration
	faults := run.made(step)
	for _, f := range faults {
		for _, s := range run.plan.under(step) {
			for _, at := range places(s) {
				x, ok := run.second(&found, f, s, at)
				if !ok {
					continue
				}
				took := x.to.Sub(x.from)
				if c.N, longest = c.N+1, max(longest, took); took < low || took > high {
					found.fail(fmt.Sprintf("the %s's proxy for %s took the host out again for %s", at, s.name, verdict.Seconds(took.Seconds())), x.from, x.to)
				}
			}
		}
	}
	c.Observed = fmt.Sprintf("%d second ejections, the longest for %s", c.N, verdict.Seconds(longest.Seconds()))
	return run.whole(run.judged(run.finish(found.claim(c)), found.when...), len(faults))
}

// second is the second time that a proxy took the host of a fault out; false if there is none to judge, of which it takes note.
func (run outlierRun) second(found *findings, f fault, s watched, at string) (stay, bool) {
	who := fmt.Sprintf("the %s's proxy for %s", at, s.name)
	var mine []stay
	for _, x := range run.stays(s, at) {
		if x.host != f.hosts[0] {
			continue
		}
		if x.holds(f.from) {
			found.open = append(found.open, who+" had the host out when the fault began")
			return stay{}, false
		}
		if !x.from.Before(f.from) && !x.from.After(f.to) {
			mine = append(mine, x)
		}
	}
	switch {
	case len(mine) < 2:
		found.fail(fmt.Sprintf("%s took the host out %d times in the fault of %s", who, len(mine), clock(f.from)), f.from, f.to)
		return stay{}, false
	case mine[1].from.Sub(mine[0].to) > run.plan.interval-settleSlack:
		// A sweep that finds the host well takes the growth back.
		found.open = append(found.open, who+" took so long to take the host out again that a sweep can have come between")
		return stay{}, false
	case mine[1].to.IsZero():
		found.open = append(found.open, who+" had not let the host return when it was asked last")
		return stay{}, false
	case mine[1].number != mine[0].number+1:
		found.fail(fmt.Sprintf("%s counts ejection %d after %d", who, mine[1].number, mine[0].number), mine[1].from)
	}
	return mine[1], true
}

// clock is how times are told in reasons.
func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }

// judgeCost bounds what faults of one pod cost the requests of all5xx, at each proxy and in each fault.
func (run outlierRun) judgeCost(seen map[string]history) verdict.Claim {
	s := run.plan.services[0]
	v := verdict.FailedShare{ID: "cost/" + s.name, Statement: "faults of one host cost no more than their ejections explain: " + s.name}
	var found findings
	ejections, flying := 0, 0
	for _, st := range s.streams {
		for _, f := range run.faults {
			if f.step.all || f.step.share > 0 || !f.complete {
				continue
			}
			w, host := expect.Window{From: f.from, To: run.until(f)}, f.hosts[0]
			for _, e := range ejectedIn(seen[st.name].ejections, host, w.From, w.To) {
				ejections, flying = ejections+1, flying+e.InFlight
			}
			bad, allowed := 0, seen[st.name].explained(host, w, s.errors)
			for _, r := range expect.Sent(run.requests, w, st.name) {
				v.N++
				if failed(r) {
					bad++
				}
			}
			if v.Failed, v.Allowed = v.Failed+bad, v.Allowed+allowed; bad > allowed {
				why := fmt.Sprintf("%d requests failed at the %s's proxy when a host %s at %s, %d are explained", bad, st.at(), f.step.name, clock(f.from), allowed)
				found.fail(why, w.From, w.To)
			}
		}
	}
	v.Why = fmt.Sprintf("errors of the host up to %d in a row, and those in flight; %d ejections, %d in flight", s.errors, ejections, flying)
	c := v.Claim()
	if len(found.wrong) > 0 {
		c = found.claim(c)
	}
	return run.judged(run.finish(c, s), found.when...)
}

// judgeBack has every host serve again after each round, through every proxy.
func (run outlierRun) judgeBack() verdict.Claim {
	c := verdict.Claim{
		ID: "back", Statement: "traffic returns: every host serves again at each proxy", Statistic: "hosts that answered well once all were back, by stream and round",
		Bound: fmt.Sprintf("%d hosts in each of %d streams", len(run.pods), len(run.plan.streams())), Outcome: verdict.Pass,
	}
	ejected := false
	for _, list := range run.proxyEvents {
		ejected = ejected || len(list) > 0
	}
	var missing []string
	var when []time.Time
	for _, w := range run.rounds {
		for _, name := range run.plan.streams() {
			served := map[string]bool{}
			for _, r := range expect.Sent(run.requests, w, name) {
				if r.Class == expect.OK {
					c.N++
					served[r.Pod] = true
				}
			}
			for _, pod := range slices.Sorted(maps.Values(run.pods)) {
				if !served[pod] {
					missing = append(missing, fmt.Sprintf("%s got nothing from %s after %s", name, pod, clock(w.From)))
					when = append(when, w.From, w.To)
				}
			}
		}
		c.Window = &verdict.Window{From: w.From, To: w.To}
	}
	c.Observed = fmt.Sprintf("%d missing, %s answers", len(missing), verdict.Group(c.N))
	switch {
	case len(missing) > 0:
		c.Outcome, c.Reason = verdict.Fail, strings.Join(missing, "\n")
	case !ejected:
		c.Outcome, c.Reason = verdict.Inconclusive, "no host was ever out, so none returned"
	}
	return run.whole(run.judged(c, when...), len(run.rounds))
}

// judgeShown has an ejection be there for people to see while it lasts, at each proxy, and no longer.
func (run outlierRun) judgeShown() verdict.Claim {
	c := verdict.Claim{
		ID: "shown", Statement: "an ejection shows in /clusters, /stats and proxy-config endpoints of each proxy while it lasts, and no longer", Statistic: "exact",
		Observed: "failed_outlier_check, ejections_active and endpoints seen, and none in the end", Bound: "all at each proxy", Outcome: verdict.Pass,
	}
	var missing, untold []string
	for _, at := range places(run.plan.services[0]) {
		s, asked := run.shown[at]
		switch {
		case !asked:
			untold = append(untold, "the "+at+"'s proxy was not asked: the load was over before")
		case s.err != nil:
			untold = append(untold, fmt.Sprintf("the %s's proxy could not be asked: %v", at, s.err))
		}
		for _, m := range s.missing {
			missing = append(missing, "the "+at+"'s proxy: "+m)
		}
	}
	missing = append(missing, run.lingering...)
	switch {
	case !run.meshed:
		c.Outcome, c.Observed, c.Reason = verdict.Skip, "not asked", "there is no mesh in this lab, so no proxy to ask"
	case len(untold) > 0:
		c.Outcome, c.Observed, c.Reason = verdict.Inconclusive, "not asked", strings.Join(append(untold, missing...), "\n")
	case len(missing) > 0:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, fmt.Sprintf("%d missing or left", len(missing)), strings.Join(missing, "\n")
	}
	var when []time.Time
	for _, f := range run.faults[:min(1, len(run.faults))] {
		when = append(when, f.from, f.to)
	}
	return run.judged(c, when...)
}

// judgeProof has the pods' own counters agree with what clients saw: the fault happened, and where.
func (run outlierRun) judgeProof(step faultStep) verdict.Claim {
	faults := run.made(step)
	var when []time.Time
	kind := "status"
	switch {
	case step.fail.Reset:
		kind = "reset"
	case step.fail.Refuse:
		kind = "refuse"
	case step.fail.Hang != "":
		kind = "hang"
	}
	pods, clients := 0, 0
	for _, f := range faults {
		when = append(when, f.from, f.to)
		for h, c := range f.after {
			pods += c.Failed[kind] - f.before[h].Failed[kind]
		}
		w := expect.Window{From: f.from.Add(-run.plan.timeout), To: f.to}
		for _, r := range expect.Sent(run.requests, w, run.plan.streams()...) {
			// A status is signed by the pod that gave it; what is not is of another fault.
			if host := run.hostOf(r); failed(r) && slices.Contains(f.hosts, host) && (kind != "status" || r.Pod != "") {
				clients++
			}
		}
	}
	c := verdict.Claim{
		ID: "proof/" + strings.ReplaceAll(step.name, " ", "-"), Statement: "the fault happened, as the pods count it: " + step.name, N: pods,
		Statistic: "exact: the pods' counters against the failures that clients saw", Observed: fmt.Sprintf("pods failed %d, clients saw %d", pods, clients),
		Bound: "equal, and not none", Confounder: "retries, and failures that have another cause", Outcome: verdict.Pass,
	}
	low, high := clients, clients
	switch kind {
	case "reset":
		// A proxy sends a GET again whose used connection was reset under it: RFC 9110, 9.2.2.
		c.Bound, high = "as many, and up to one repetition of each", 2*clients
	case "refuse":
		c.Observed = fmt.Sprintf("told and done %d times, clients saw %d", pods, clients)
		c.Bound, low, high = "each time it was told, and not unseen", len(faults), len(faults)
	}
	switch {
	case pods == 0 || clients == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "no pod failed anything that a client saw: the fault was not met"
	case pods < low || pods > high:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("the pods say %d, the clients %d", pods, clients)
	}
	return run.whole(run.excused(c, when...), len(faults))
}

// judgeLost has nothing fail but under the faults, and until the hosts are back that were out for them.
func (run outlierRun) judgeLost() verdict.Claim {
	var spans []expect.Window
	for _, f := range run.faults {
		w := expect.Window{From: f.from.Add(-run.plan.timeout), To: f.to.Add(run.plan.timeout)}
		if f.step.all {
			for _, s := range run.plan.services {
				for _, at := range places(s) {
					for _, x := range run.stays(s, at) {
						if !x.from.Before(f.from) && !x.from.After(f.to) && x.to.After(w.To) {
							w.To = x.to.Add(settleSlack)
						}
					}
				}
			}
		}
		spans = append(spans, w)
	}
	var outside []evidence.Request
	for _, r := range run.requests {
		sent := time.Unix(0, r.Sent)
		if !slices.ContainsFunc(spans, func(w expect.Window) bool { return !sent.Before(w.From) && sent.Before(w.To) }) {
			outside = append(outside, r)
		}
	}
	failures, n := verdict.Failures(outside)
	c := verdict.Lost{ID: "lost", Statement: "nothing is lost but under the faults", N: n, Failures: failures, Events: run.events}.Claim()
	c = expect.Excuse(c, run.requests, failures, run.plan.streams()...)
	if c.Outcome == verdict.Fail {
		c = run.judged(c) // when hosts were back is what the proxies tell
	}
	return c
}
