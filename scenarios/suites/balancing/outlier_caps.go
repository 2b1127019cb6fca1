package balancing

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// allAt is the step in which all pods fail.
func (pl outlierPlan) allAt() faultStep {
	return pl.faults[slices.IndexFunc(pl.faults, func(f faultStep) bool { return f.all })]
}

// out is the time in which every host of a Service was out at a proxy, under a fault of all; false if there was none.
func (run outlierRun) out(s watched, at string, f fault) (expect.Window, bool) {
	last := map[string]stay{}
	for _, x := range run.stays(s, at) {
		if !x.from.After(f.to) && (x.to.IsZero() || x.to.After(f.from)) {
			last[x.host] = x
		}
	}
	var w expect.Window
	for _, x := range last {
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
	return w, len(last) == len(run.pods) && w.From.Before(w.To)
}

// allOut judges what requests meet while every host of a Service is out.
func (run outlierRun) allOut(v verdict.Strays, s watched, stray func(evidence.Request) string) verdict.Claim {
	v.Seen, v.Movable = map[string]int{}, true
	var missing []string
	var when []time.Time
	faults := run.made(run.plan.allAt())
	for _, f := range faults {
		for _, st := range s.streams {
			w, ok := run.out(s, st.at(), f)
			if !ok {
				missing, when = append(missing, fmt.Sprintf("the %s's proxy never had all %d hosts out", st.at(), len(run.pods))), append(when, f.from, f.to)
				continue
			}
			for _, r := range answered(run.requests, w, st.name) {
				v.N++
				if what := stray(r); what != "" {
					v.Seen[what]++
					when = append(when, time.Unix(0, r.Sent))
				}
			}
		}
	}
	c := v.Claim()
	if len(missing) > 0 {
		c.Outcome, c.Reason = verdict.Fail, strings.Join(missing, "\n")
	}
	return run.whole(run.judged(run.finish(c, s), when...), len(faults))
}

// judgeNoHost has a proxy without panic send nothing to hosts that are all out.
func (run outlierRun) judgeNoHost() verdict.Claim {
	return run.allOut(verdict.Strays{ID: "all-bad/" + all5xx, Statement: "with every host out and no panic, nothing is sent to any"}, run.plan.service(all5xx),
		func(r evidence.Request) string { return r.Pod })
}

// judgePanic has a proxy with minHealthPercent send to every host again once too few are well.
func (run outlierRun) judgePanic() verdict.Claim {
	s := run.plan.service(withPanic)
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
		c = run.judged(c, run.moments(run.plan.allAt())...)
	}
	return c
}

// moments are when the faults of a step began and ended.
func (run outlierRun) moments(step faultStep) []time.Time {
	var out []time.Time
	for _, f := range run.made(step) {
		out = append(out, f.from, f.to)
	}
	return out
}

// judgeOneBad has a proxy with minHealthPercent send nothing to a host that is out while the others are well: that is no panic.
func (run outlierRun) judgeOneBad() verdict.Claim {
	s, step := run.plan.service(withPanic), run.plan.faults[0]
	v := verdict.Strays{ID: "one-bad/" + s.name, Statement: "with one host out, no panic: nothing is sent to it", Seen: map[string]int{}, Movable: true}
	var when []time.Time
	faults := run.made(step)
	for _, st := range s.streams {
		list := run.stays(s, st.at())
		for _, f := range faults {
			for _, x := range list {
				if x.host != f.hosts[0] || x.from.Before(f.from) || x.from.After(f.to) || x.to.IsZero() {
					continue
				}
				for _, r := range answered(run.requests, expect.Window{From: x.from.Add(settleSlack), To: x.to.Add(-settleSlack)}, st.name) {
					sent, done := time.Unix(0, r.Sent), time.Unix(0, r.Done)
					if slices.ContainsFunc(list, func(o stay) bool { return o.host != x.host && (o.holds(sent) || o.holds(done)) }) {
						continue // another is out as well
					}
					v.N++
					if r.Pod == run.pods[x.host] {
						v.Seen[r.Pod]++
						when = append(when, sent)
					}
				}
			}
		}
	}
	c := v.Claim()
	if v.N == 0 {
		c.Reason = "no host was out alone, so nothing was looked at"
	}
	return run.whole(run.judged(run.finish(c, s), when...), len(faults))
}

// spell is a time in which the same hosts were out at a proxy.
type spell struct {
	expect.Window
	out []string
}

// spells are the times, from a fault of all on, in which exactly n hosts of a Service were out at a proxy, less what a change takes.
func (run outlierRun) spells(s watched, at string, f fault, n int) []spell {
	list := slices.DeleteFunc(run.stays(s, at), func(x stay) bool { return x.from.Before(f.from) || x.from.After(run.until(f)) })
	var edges []time.Time
	for i, x := range list {
		if x.to.IsZero() {
			list[i].to = run.ended
		}
		edges = append(edges, x.from, list[i].to)
	}
	slices.SortFunc(edges, time.Time.Compare)
	var out []spell
	for i := range len(edges) - 1 {
		sp := spell{Window: expect.Window{From: edges[i].Add(settleSlack), To: edges[i+1].Add(-settleSlack)}}
		for _, x := range list {
			if x.holds(edges[i]) {
				sp.out = append(sp.out, x.host)
			}
		}
		if len(sp.out) == n && sp.From.Before(sp.To) {
			out = append(out, sp)
		}
	}
	return out
}

// fewest is how many requests for each host show whom a proxy sends to.
const fewest = 5

// answered are the requests of a stream that a time holds from their sending to their answer: one that is sent while its host is out
// can meet the proxy when the host is back.
func answered(requests []evidence.Request, w expect.Window, stream string) []evidence.Request {
	return slices.DeleteFunc(expect.Sent(requests, w, stream), func(r evidence.Request) bool { return r.Done >= w.To.UnixNano() })
}

// whileOut judges what requests meet while exactly so many hosts of a Service are out, in each fault of all. stray names what is wrong
// with one that met a pod, whole what is wrong with all that a proxy sent in one fault, by pod; "" is nothing.
func (run outlierRun) whileOut(
	v verdict.Strays, s watched, out int, stray func(pod string, sp spell) string, whole func(at string, f fault, met map[string]int) string,
) verdict.Claim {
	v.Seen, v.Movable = map[string]int{}, true
	var found findings
	faults := run.made(run.plan.allAt())
	for _, f := range faults {
		for _, st := range s.streams {
			met, n := map[string]int{}, 0
			spells := run.spells(s, st.at(), f, out)
			for _, sp := range spells {
				for _, r := range answered(run.requests, sp.Window, st.name) {
					v.N++
					n++
					met[r.Pod]++
					what := "no host"
					if r.Pod != "" {
						what = stray(r.Pod, sp)
					}
					if what != "" {
						v.Seen[what]++
						found.when = append(found.when, time.Unix(0, r.Sent))
					}
				}
			}
			switch why := whole(st.at(), f, met); {
			case len(spells) == 0:
				found.fail(fmt.Sprintf("the %s's proxy never had exactly %d of %d hosts out", st.at(), out, len(run.pods)), f.from, f.to)
			case n < fewest*len(run.pods):
				found.open = append(found.open, fmt.Sprintf("only %d requests met the %s's proxy while %d hosts were out", n, st.at(), out))
			case why != "":
				found.fail(why, f.from, f.to)
			}
		}
	}
	c := v.Claim()
	if c.Outcome == verdict.Fail {
		found.wrong = append(found.wrong, c.Reason)
	}
	if len(found.wrong) > 0 || len(found.open) > 0 {
		c = found.claim(c)
	}
	return run.whole(run.judged(run.finish(c, s), found.when...), len(faults))
}

// judgeHalf has a proxy with minHealthPercent 50 send nothing to the hosts that are out while just half of them are: panic takes fewer.
func (run outlierRun) judgeHalf() verdict.Claim {
	s := run.plan.service(halfAtMost)
	return run.whileOut(
		verdict.Strays{ID: "half-out/" + s.name, Statement: "with exactly half of the hosts out, minHealthPercent 50 is no panic: nothing is sent to those that are out"},
		s, len(run.pods)/2, func(pod string, sp spell) string {
			if slices.ContainsFunc(sp.out, func(host string) bool { return run.pods[host] == pod }) {
				return pod + ", which was out"
			}
			return ""
		}, func(string, fault, map[string]int) string { return "" })
}

// judgeMoreThanHalf has it send to all of them with one more out.
func (run outlierRun) judgeMoreThanHalf() verdict.Claim {
	s := run.plan.service(threeQuarters)
	n := len(run.pods)/2 + 1
	return run.whileOut(
		verdict.Strays{ID: "more-than-half-out/" + s.name, Statement: "with one more out than half, minHealthPercent 50 is panic: requests go to every host, those that are out too"},
		s, n, func(string, spell) string { return "" }, func(at string, f fault, met map[string]int) string {
			delete(met, "")
			if len(met) == len(run.pods) {
				return ""
			}
			return fmt.Sprintf("with %d of %d hosts out the %s's proxy reached only %d in the fault of %s", n, len(run.pods), at, len(met), clock(f.from))
		})
}

// refused is how many ejections of a Service's hosts its proxies refused, from begin to end, and which of them none.
func (run outlierRun) refused(s watched) (int, string) {
	total := 0
	var none []string
	for _, at := range places(s) {
		n := run.overflow[at][s.name]
		if total += n; n == 0 {
			none = append(none, fmt.Sprintf("the %s's proxy counts no ejections_overflow", at))
		}
	}
	return total, strings.Join(none, "\n")
}

// judgeSmall has nobody be out where one host is more than maxEjectionPercent, and the proxy say that it refused.
func (run outlierRun) judgeSmall() verdict.Claim {
	s := run.plan.service(tenthAtMost)
	refused, uncounted := run.refused(s)
	c := verdict.Claim{
		ID: "small/" + s.name, Statement: "of fewer than ten hosts none is taken out where maxEjectionPercent is 10, as it is by default",
		Statistic: "exact: hosts taken out", N: refused, Bound: "none, and some refused", Confounder: "a proxy that always takes one host out: Envoy before 1.28", Outcome: verdict.Pass,
	}
	var when []time.Time
	for _, at := range places(s) {
		for _, x := range run.stays(s, at) {
			when = append(when, x.from)
		}
	}
	c.Observed = fmt.Sprintf("%d out, %d refused", len(when), refused)
	if len(when) > 0 {
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("%d times a host was taken out", len(when))
		return run.judged(run.finish(c, s), when...)
	}
	if uncounted != "" {
		c.Outcome, c.Reason = verdict.Fail, uncounted
	}
	step := run.plan.faults[0]
	return run.whole(run.judged(run.finish(c, s), run.moments(step)...), len(run.made(step)))
}

// judgeCap has no more than half of the hosts be out at once, and the proxy say that it refused more.
func (run outlierRun) judgeCap() verdict.Claim {
	s := run.plan.service(halfAtMost)
	limit := s.most(len(run.pods))
	refused, uncounted := run.refused(s)
	faults := run.made(run.plan.allAt())
	most, least := 0, limit // of the most in each fault of all
	var when []time.Time
	for _, at := range places(s) {
		list := run.stays(s, at)
		within := make([]int, len(faults))
		for _, x := range list {
			n := 0
			for _, y := range list {
				if y.holds(x.from) {
					n++
				}
			}
			if most = max(most, n); n > limit {
				when = append(when, x.from)
			}
			for i, f := range faults {
				if !x.from.Before(f.from) && !x.from.After(f.to) {
					within[i] = max(within[i], n)
				}
			}
		}
		least = min(least, slices.Min(append(within, limit)))
	}
	c := verdict.Claim{
		ID: "all-bad/" + halfAtMost, Statement: "maxEjectionPercent holds although every host fails", N: most, Statistic: "exact: hosts out at once",
		Observed: fmt.Sprintf("at most %d of %d out, %d refused", most, len(run.pods), refused), Bound: fmt.Sprintf("%d out, and some refused", limit),
		Confounder: "hosts that left or joined meanwhile", Outcome: verdict.Pass,
	}
	switch {
	case most > limit:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("%d hosts were out at once", most)
	case least < limit:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("only %d hosts were out, so the cap was never tried", least)
	case uncounted != "":
		c.Outcome, c.Reason = verdict.Fail, uncounted
	}
	if most > limit {
		return run.judged(run.finish(c, s), when...)
	}
	return run.whole(run.judged(run.finish(c, s), run.moments(run.plan.allAt())...), len(faults))
}
