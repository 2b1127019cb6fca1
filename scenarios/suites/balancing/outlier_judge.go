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

const (
	// sweepSlack is how late a sweep may come; seen: some milliseconds.
	sweepSlack = 500 * time.Millisecond
	// settleSlack is what a change of hosts takes to reach the requests that were under way.
	settleSlack = 100 * time.Millisecond
)

const noEjection = "likely  there is no mesh in this lab, so nothing watches for errors: kube-proxy sends to every Ready pod"

// judgeOutlier turns what was observed into claims. It is pure.
func judgeOutlier(run outlierRun) []verdict.Claim {
	var claims []verdict.Claim
	for _, f := range run.steps() {
		if !f[0].step.all {
			for _, s := range run.plan.services {
				if n := s.after[f[0].step.name]; n > 0 {
					claims = append(claims, run.judgeEjected(s, f, n))
				}
			}
		}
	}
	claims = append(claims, run.judgeOthers(), run.judgeReturned(), run.judgeCost())
	claims = append(claims, run.judgeNoHost(), run.judgePanic(), run.judgeCap(), run.judgeBack(), run.judgeShown())
	for _, f := range run.steps() {
		claims = append(claims, run.judgeProof(f))
	}
	claims = append(claims, run.judgeLost())
	return append(claims, expect.Guard(run.requests, run.seen.Host, run.calibration, run.seen.Disturbed))
}

// steps groups the faults by their step, in order; a plan with rounds has several of each.
func (run outlierRun) steps() [][]fault {
	var out [][]fault
	for _, f := range run.faults {
		i := slices.IndexFunc(out, func(list []fault) bool { return list[0].step.name == f.step.name })
		if i < 0 {
			out = append(out, nil)
			i = len(out) - 1
		}
		out[i] = append(out[i], f)
	}
	return out
}

// failed says whether an answer was none, or not a good one.
func failed(r evidence.Request) bool { return r.Class != expect.OK && r.Class != "canceled" }

// hostOf is the address of the pod that a failed request failed at: who answered so, or, where nobody signed the answer, the one pod
// that was failing when the request was sent; "" if none can be told.
func (run outlierRun) hostOf(r evidence.Request) string {
	if r.Pod != "" {
		for addr, pod := range run.pods {
			if pod == r.Pod {
				return addr
			}
		}
		return ""
	}
	for _, f := range run.faults {
		// A request that is on its way when the fault begins may meet it.
		if at := time.Unix(0, r.Sent); !f.step.all && f.step.fail.Status == 0 && at.After(f.from.Add(-run.plan.timeout)) && at.Before(f.to) {
			return f.hosts[0]
		}
	}
	return ""
}

// stay is one time that a host was out, at the proxy that a stream meets.
type stay struct {
	from, to time.Time // to is zero while it lasts
	host     string
	number   int
}

// stays reads a proxy's event log for one cluster.
func (run outlierRun) stays(s watched, at string) []stay {
	name := clusterName(run.namespace, s.name, "")
	var out []stay
	open := map[string]int{}
	for _, ev := range run.proxyEvents[at] {
		if ev.Cluster != name {
			continue
		}
		host := run.hostAt(ev.Host)
		i, isOpen := open[host]
		switch {
		case ev.Action == "EJECT":
			open[host] = len(out)
			out = append(out, stay{from: ev.Timestamp, host: host, number: ev.Number})
		case isOpen:
			out[i].to = ev.Timestamp
			delete(open, host)
		}
	}
	return out
}

// hostAt is the pod's address that an upstream's stands for, whichever port it is.
func (run outlierRun) hostAt(upstream string) string {
	for addr := range run.pods {
		if slices.Equal(ips([]string{addr}), ips([]string{upstream})) {
			return addr
		}
	}
	return upstream
}

// until is when the last failure of a fault can have been seen: a timeout after its end, but not beyond the beginning of the next.
func (run outlierRun) until(f fault) time.Time {
	end := f.to.Add(run.plan.timeout + settleSlack)
	for _, next := range run.faults {
		if next.from.After(f.from) && next.from.Before(end) {
			end = next.from
		}
	}
	return end
}

// ejections are the stays of one stream's hosts with the errors that led to each, counted where the requests start.
func (run outlierRun) ejections(s watched, st watchedStream) []verdict.Ejection {
	byHost := map[string][]evidence.Request{}
	for _, r := range expect.Of(run.requests, st.name) {
		if failed(r) {
			host := run.hostOf(r)
			byHost[host] = append(byHost[host], r)
		}
	}
	var out []verdict.Ejection
	last := map[string]time.Time{} // when the host came back
	for _, x := range run.stays(s, st.at()) {
		e := verdict.Ejection{Proxy: st.at(), Host: x.host, At: x.from, Returned: x.to, Number: x.number}
		until := x.to
		if until.IsZero() {
			until = run.ended
		}
		flying, since := 0, last[x.host]
		for _, f := range run.faults {
			// Errors of an earlier fault that did not count are no part of this row.
			if begun := f.from.Add(-run.plan.timeout); slices.Contains(f.hosts, x.host) && !x.from.Before(f.from) && begun.After(since) {
				since = begun
			}
		}
		for _, r := range byHost[x.host] {
			sent, done := time.Unix(0, r.Sent), time.Unix(0, r.Done)
			// One that was under way when the host came back failed before it, or is the first of the next time.
			if sent.Before(since.Add(-run.plan.timeout)) || done.Before(since) || !sent.Before(until) {
				continue
			}
			e.Errors++
			if !sent.After(x.from) && done.After(x.from) {
				flying++
			}
		}
		// The error that takes the host out is answered to the client after that.
		e.InFlight = max(0, flying-1)
		out = append(out, e)
		last[x.host] = x.to
	}
	return out
}

func (run outlierRun) finish(c verdict.Claim, s watched) verdict.Claim {
	for _, st := range s.streams {
		c.Evidence = append(c.Evidence, evidence.RequestsFile(st.name))
	}
	if c.Outcome == verdict.Fail && !run.meshed {
		c.Reason += "\n" + noEjection
	}
	return c
}

// judgeEjected has every proxy take the failing host out after exactly so many errors.
func (run outlierRun) judgeEjected(s watched, faults []fault, threshold int) verdict.Claim {
	f := faults[0]
	v := verdict.Ejected{
		ID:        "ejected/" + strings.ReplaceAll(f.step.name, " ", "-") + "/" + s.name,
		Statement: fmt.Sprintf("a host that %s is out after %d errors at each proxy: %s", f.step.name, threshold, s.name),
		Threshold: threshold, Host: f.hosts[0],
	}
	for _, x := range faults {
		v.Faults = append(v.Faults, verdict.Span{From: x.from, To: run.until(x)})
	}
	for _, st := range s.streams {
		v.Proxies = append(v.Proxies, st.at())
		v.Within = max(v.Within, run.plan.slowest(threshold, st.rate))
		v.Ejections = append(v.Ejections, run.ejections(s, st)...)
	}
	return run.finish(v.Claim(), s)
}

// due says whether a host that a Service's proxy took out at a time was failing in a way that must have led to it.
func (run outlierRun) due(s watched, x stay) (string, bool) {
	for _, f := range run.faults {
		if !slices.Contains(f.hosts, x.host) || x.from.Before(f.from) || x.from.After(run.until(f)) {
			continue
		}
		return f.step.name, !s.judged || s.after[f.step.name] > 0
	}
	return "no fault of its own", false
}

// judgeOthers has nobody be taken out but for errors that count.
func (run outlierRun) judgeOthers() verdict.Claim {
	v := verdict.Strays{ID: "others", Statement: "nobody else is taken out, and nobody for errors that do not count", Seen: map[string]int{}, Movable: true}
	for _, s := range run.plan.services {
		for _, at := range places(s) {
			for _, x := range run.stays(s, at) {
				v.N++
				if why, ok := run.due(s, x); !ok {
					v.Seen[fmt.Sprintf("%s of %s at the %s's proxy, under %s", run.pods[x.host], s.name, at, why)]++
				}
			}
		}
	}
	c := v.Claim()
	c.Reason = strings.ReplaceAll(c.Reason, " to ", " times ")
	if v.N == 0 {
		c.Reason = "no host was taken out at all"
	}
	return c
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
		Base: run.plan.base, Interval: run.plan.interval, Slack: sweepSlack, Until: run.ended,
	}
	for _, s := range run.plan.services {
		for _, at := range places(s) {
			for _, x := range run.stays(s, at) {
				v.Ejections = append(v.Ejections, verdict.Ejection{Proxy: at + " " + s.name, Host: run.pods[x.host], At: x.from, Returned: x.to, Number: x.number})
			}
		}
	}
	return v.Claim()
}

// judgeCost bounds what faults of one pod cost the requests of all5xx.
func (run outlierRun) judgeCost() verdict.Claim {
	s := run.plan.services[0]
	v := verdict.FailedShare{ID: "cost/" + s.name, Statement: "faults of one host cost no more than their ejections explain: " + s.name}
	ejections, flying := 0, 0
	for _, f := range run.faults {
		if f.step.all {
			continue
		}
		w := expect.Window{From: f.from, To: run.until(f)}
		for _, st := range s.streams {
			for _, r := range expect.Sent(run.requests, w, st.name) {
				v.N++
				if failed(r) {
					v.Failed++
				}
			}
			for _, e := range run.ejections(s, st) {
				if e.Host == f.hosts[0] && !e.At.Before(f.from) && e.At.Before(w.To) {
					ejections, flying = ejections+1, flying+e.InFlight
					v.Allowed += s.after[f.step.name] + e.InFlight
				}
			}
		}
	}
	v.Why = fmt.Sprintf("%d ejections after %d errors, and %d in flight", ejections, s.after[answers503], flying)
	return run.finish(v.Claim(), s)
}

// out is the time in which every host of a Service was out at a proxy, under the fault of all; false if there was none.
func (run outlierRun) out(s watched, at string) (expect.Window, bool) {
	for _, f := range run.faults {
		if !f.step.all {
			continue
		}
		var w expect.Window
		hosts := map[string]bool{}
		for _, x := range run.stays(s, at) {
			if x.from.Before(f.from) || x.from.After(f.to) || hosts[x.host] {
				continue
			}
			hosts[x.host] = true
			if x.from.After(w.From) {
				w.From = x.from
			}
			end := x.to
			if end.IsZero() {
				end = run.ended
			}
			if w.To.IsZero() || end.Before(w.To) {
				w.To = end
			}
		}
		w.From, w.To = w.From.Add(settleSlack), w.To.Add(-settleSlack)
		return w, len(hosts) == len(run.pods) && w.From.Before(w.To)
	}
	return expect.Window{}, false
}

func (run outlierRun) service(name string) watched {
	i := slices.IndexFunc(run.plan.services, func(s watched) bool { return s.name == name })
	return run.plan.services[i]
}

// allOut judges what requests meet while every host of a Service is out.
func (run outlierRun) allOut(v verdict.Strays, s watched, stray func(evidence.Request) string) verdict.Claim {
	v.Seen, v.Movable = map[string]int{}, true
	var missing []string
	for _, st := range s.streams {
		w, ok := run.out(s, st.at())
		if !ok {
			missing = append(missing, fmt.Sprintf("the %s's proxy never had all %d hosts out", st.at(), len(run.pods)))
			continue
		}
		for _, r := range expect.Sent(run.requests, w, st.name) {
			v.N++
			if what := stray(r); what != "" {
				v.Seen[what]++
			}
		}
	}
	c := v.Claim()
	if len(missing) > 0 {
		c.Outcome, c.Reason = verdict.Fail, strings.Join(missing, "\n")
	}
	return run.finish(c, s)
}

// judgeNoHost has a proxy without panic send nothing to hosts that are all out.
func (run outlierRun) judgeNoHost() verdict.Claim {
	return run.allOut(verdict.Strays{ID: "all-bad/" + all5xx, Statement: "with every host out and no panic, nothing is sent to any"}, run.service(all5xx),
		func(r evidence.Request) string { return r.Pod })
}

// judgePanic has a proxy with minHealthPercent send to every host again once too few are well.
func (run outlierRun) judgePanic() verdict.Claim {
	s := run.service(withPanic)
	reached := map[string]bool{}
	c := run.allOut(verdict.Strays{ID: "all-bad/" + withPanic, Statement: "with fewer well than minHealthPercent, panic: requests go to every host"}, s,
		func(r evidence.Request) string {
			if r.Pod == "" {
				return "no host"
			}
			reached[r.Pod] = true
			return ""
		})
	if c.Outcome == verdict.Pass && len(reached) < len(run.pods) {
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("only %d of %d hosts were reached", len(reached), len(run.pods))
	}
	return c
}

// judgeCap has no more than half of the hosts be out at once, and the proxy say that it refused more.
func (run outlierRun) judgeCap() verdict.Claim {
	s := run.service(halfAtMost)
	most, limit := 0, len(run.pods)/2
	for _, at := range places(s) {
		list := run.stays(s, at)
		for _, x := range list {
			n := 0
			for _, y := range list {
				if !y.from.After(x.from) && (y.to.IsZero() || y.to.After(x.from)) {
					n++
				}
			}
			most = max(most, n)
		}
	}
	c := verdict.Claim{
		ID: "all-bad/" + halfAtMost, Statement: "maxEjectionPercent holds although every host fails", N: most, Statistic: "exact: hosts out at once",
		Observed: fmt.Sprintf("at most %d of %d out, %d refused", most, len(run.pods), run.overflow), Bound: fmt.Sprintf("%d out, and some refused", limit),
		Confounder: "hosts that left or joined meanwhile", Outcome: verdict.Pass,
	}
	switch {
	case most > limit:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("%d hosts were out at once", most)
	case most < limit:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("only %d hosts were out, so the cap was never tried", most)
	case run.overflow == 0:
		c.Outcome, c.Reason = verdict.Fail, "the proxy counts no ejections_overflow"
	}
	return run.finish(c, s)
}

// judgeBack has every host serve again in the end, through every proxy.
func (run outlierRun) judgeBack() verdict.Claim {
	c := verdict.Claim{
		ID: "back", Statement: "traffic returns: every host serves again at each proxy", Statistic: "hosts that answered well in the last seconds, by stream",
		Bound: fmt.Sprintf("%d hosts in each of %d streams", len(run.pods), len(run.plan.streams())), Outcome: verdict.Pass,
	}
	ejected := false
	for _, list := range run.proxyEvents {
		ejected = ejected || len(list) > 0
	}
	w := expect.Window{From: run.ended.Add(-run.plan.after), To: run.ended}
	var missing []string
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
				missing = append(missing, name+" got nothing from "+pod)
			}
		}
	}
	c.Window = &verdict.Window{From: w.From, To: w.To}
	c.Observed = fmt.Sprintf("%d missing, %s answers", len(missing), verdict.Group(c.N))
	switch {
	case len(missing) > 0:
		c.Outcome, c.Reason = verdict.Fail, strings.Join(missing, "\n")
	case !ejected:
		c.Outcome, c.Reason = verdict.Inconclusive, "no host was ever out, so none returned"
	}
	return c
}

// judgeShown has an ejection be there for people to see while it lasts.
func (run outlierRun) judgeShown() verdict.Claim {
	c := verdict.Claim{
		ID: "shown", Statement: "an ejection shows in /clusters and /stats of the proxy while it lasts", Statistic: "exact",
		Observed: "failed_outlier_check and ejections_active seen", Bound: "both", Outcome: verdict.Pass,
	}
	switch {
	case !run.looked:
		c.Outcome, c.Observed, c.Reason = verdict.Skip, "not asked", "there is no mesh in this lab, so no proxy to ask"
	case len(run.shown) > 0:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, fmt.Sprintf("%d missing", len(run.shown)), strings.Join(run.shown, "\n")
	}
	return c
}

// judgeProof has the pods' own counters agree with what clients saw: the fault happened, and where.
func (run outlierRun) judgeProof(faults []fault) verdict.Claim {
	step := faults[0].step
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
	return c
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
	return expect.Excuse(c, run.requests, failures, run.plan.streams()...)
}
