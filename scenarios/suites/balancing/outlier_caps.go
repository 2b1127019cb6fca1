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
			for _, r := range expect.Sent(run.requests, w, st.name) {
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
				for _, r := range expect.Sent(run.requests, expect.Window{From: x.from.Add(settleSlack), To: x.to.Add(-settleSlack)}, st.name) {
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

// judgeSmall has nobody be out where one host is more than maxEjectionPercent, and the proxy say that it refused.
func (run outlierRun) judgeSmall() verdict.Claim {
	s := run.plan.service(tenthAtMost)
	refused := run.overflow[s.name]
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
	if refused == 0 {
		c.Outcome, c.Reason = verdict.Fail, "the proxy counts no ejections_overflow"
	}
	step := run.plan.faults[0]
	return run.whole(run.judged(run.finish(c, s), run.moments(step)...), len(run.made(step)))
}

// judgeCap has no more than half of the hosts be out at once, and the proxy say that it refused more.
func (run outlierRun) judgeCap() verdict.Claim {
	s := run.plan.service(halfAtMost)
	limit, refused := len(run.pods)/2, run.overflow[halfAtMost]
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
	case refused == 0:
		c.Outcome, c.Reason = verdict.Fail, "the proxy counts no ejections_overflow"
	}
	if most > limit {
		return run.judged(run.finish(c, s), when...)
	}
	return run.whole(run.judged(run.finish(c, s), run.moments(run.plan.allAt())...), len(faults))
}
