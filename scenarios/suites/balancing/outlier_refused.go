package balancing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// tally is how many ejections the caps of the proxies have refused at some time.
type tally struct {
	from, to time.Time                 // while they were asked
	counts   map[string]map[string]int // by where the proxy stands, and by Service
	err      error                     // why there are none
}

// since is what was refused after an earlier tally.
func (t tally) since(earlier tally, at, service string) int {
	return t.counts[at][service] - earlier.counts[at][service]
}

// refusals are the tallies around a fault of all.
type refusals struct {
	fault         int // its place
	before, after tally
}

// tally asks every proxy. One that does not answer in time is noted, and is no error.
func (run *outlierRun) tally(ctx context.Context, e *env.Env, proxies []proxy) (tally, error) {
	t, err := expect.Converge(ctx, expect.Budget{Within: returnsWithin}, func(ctx context.Context) (tally, error) {
		t := tally{from: time.Now(), counts: map[string]map[string]int{}}
		for _, p := range proxies {
			stats, err := e.Client.Admin(ctx, p.namespace, p.pod, "/stats")
			if err != nil {
				return t, err
			}
			t.counts[p.name] = map[string]int{}
			for _, s := range run.plan.services {
				t.counts[p.name][s.name] = statOf(stats, "cluster."+clusterName(run.namespace, s.name, "")+".outlier_detection.ejections_overflow")
			}
		}
		t.to = time.Now()
		return t, nil
	})
	var timeout *expect.TimeoutError
	if errors.As(err, &timeout) && ctx.Err() == nil {
		return tally{err: err}, nil
	}
	return t, err
}

// gatewayRow is how many gateway errors in a row make an ejection that nobody asked for and that is not enforced: Envoy's default of
// consecutive_gateway_failure, which Istio leaves. The cap comes first, and counts what it refuses.
const gatewayRow = 5

// judgeRefused has each proxy count, with every host bad, just the ejections that its cap had to refuse.
func (run outlierRun) judgeRefused(seen map[string]history, s watched) verdict.Claim {
	c := verdict.Claim{
		ID: "refused/" + s.name, Statement: fmt.Sprintf("with every host bad each proxy counts exactly the ejections that its cap must refuse: %s", s.name),
		Statistic: "exact for each proxy and fault: ejections_overflow against the rows of errors that clients saw completed",
		Bound:     fmt.Sprintf("a row of %d, or of %d gateway errors, at a host that stays in", s.errors, gatewayRow), Confounder: "answers that overlap each other",
	}
	var found findings
	rounds, sums := 0, map[string]refused{}
	for _, r := range run.refusals {
		f := run.faults[r.fault]
		if !f.complete {
			continue
		}
		rounds++
		if err := errors.Join(r.before.err, r.after.err); err != nil {
			found.open = append(found.open, fmt.Sprintf("around the fault of %s a proxy could not be asked: %v", clock(f.from), err))
			continue
		}
		for _, st := range s.streams {
			got, due := r.after.since(r.before, st.at(), s.name), run.duty(s, st, seen[st.name], r)
			c.N += got
			sums[st.at()] = sums[st.at()].add(got, due)
			switch who := fmt.Sprintf("the %s's proxy in the fault of %s", st.at(), clock(f.from)); {
			case due.unknown > 0:
				found.open = append(found.open, fmt.Sprintf("%s: nobody signed %d answers", who, due.unknown))
			case got < due.low || got > due.high:
				found.fail(fmt.Sprintf("%s refused %d, %s were due", who, got, due), f.from, f.to)
			case due.low == 0:
				found.open = append(found.open, who+" had none to refuse")
			case due.high > 2*due.low:
				found.open = append(found.open, fmt.Sprintf("%s: so many answers overlapped that %s were due", who, due))
			}
		}
	}
	var observed []string
	for _, at := range places(s) {
		observed = append(observed, fmt.Sprintf("%s %d of %s", at, sums[at].n, sums[at].due))
	}
	c.Observed = strings.Join(observed, ", ")
	return run.whole(run.judged(run.finish(found.claim(c), s), found.when...), rounds)
}

// judgeUnrefused has no ejection be refused where every host may be out.
func (run outlierRun) judgeUnrefused() verdict.Claim {
	c := verdict.Claim{
		ID: "refused/none", Statement: "no ejection is refused where maxEjectionPercent is 100", Statistic: "exact: ejections_overflow of each proxy, from begin to end",
		Bound: "none", Outcome: verdict.Pass,
	}
	var found findings
	refused := 0
	for _, s := range run.plan.services {
		if s.most(len(run.pods)) < len(run.pods) {
			continue
		}
		for _, at := range places(s) {
			c.N += len(run.stays(s, at))
			if n := run.overflow[at][s.name]; n > 0 {
				refused += n
				found.fail(fmt.Sprintf("the %s's proxy refused %d of %s", at, n, s.name))
			}
		}
	}
	if c.Observed = fmt.Sprintf("%d refused, %d ejections", refused, c.N); c.N == 0 {
		found.open = append(found.open, "no host was taken out at all")
	}
	return run.whole(run.judged(run.finish(found.claim(c))), len(run.rounds))
}

// duty is how many ejections a cap had to refuse, at least and at most, and how many answers may have been of any host.
type duty struct{ low, high, unknown int }

// refused is how many ejections a proxy refused, and how many were due.
type refused struct {
	n   int
	due duty
}

func (r refused) add(n int, d duty) refused {
	return refused{r.n + n, duty{low: r.due.low + d.low, high: r.due.high + d.high}}
}

func (d duty) String() string {
	if d.low == d.high {
		return fmt.Sprint(d.low)
	}
	return fmt.Sprintf("%d to %d", d.low, d.high)
}

// duty counts what the cap of a stream's proxy had to refuse between two tallies: each row that a host completed while it was in, but
// those that took it out.
func (run outlierRun) duty(s watched, st watchedStream, h history, r refusals) duty {
	var d duty
	for _, q := range expect.Sent(run.requests, expect.Window{From: r.before.from, To: r.after.to}, st.name) {
		if q.Pod == "" {
			d.unknown++
		}
	}
	never := r.after.to.Add(time.Hour)
	// Of hosts that stay in, the first row is refused because the cap is reached; it is until a host returns.
	full := never
	for _, x := range h.stays {
		if s.most(len(run.pods)) > 0 && x.to.After(r.before.from) && x.to.Before(full) {
			full = x.to
		}
	}
	for host := range run.pods {
		list := during(h.answers[host], r.before.from.Add(-returnsWithin), r.after.to)
		in := inside{first: r.before.from, begun: r.before.to}
		for _, x := range append(slices.Clone(h.stays), stay{host: host, from: never}) {
			if x.host != host || !x.to.IsZero() && x.to.Before(r.before.from) {
				continue
			}
			in.ended, in.last, in.out, in.full = x.from, x.from, true, time.Time{}
			if x.from.After(r.after.to) {
				in.ended, in.last, in.out, in.full = r.after.from, r.after.to, false, full
			}
			if in.first.Before(in.last) {
				low, high := in.rows(list, s.errors)
				d.low, d.high = d.low+low, d.high+high
			}
			if !in.out || x.to.IsZero() {
				break
			}
			in = inside{first: x.to, begun: x.to, back: true}
		}
	}
	return d
}

// inside is a time in which a host was in: it began between first and begun, and ended between ended and last.
type inside struct {
	first, begun, ended, last time.Time
	back                      bool      // it began with the host's return
	out                       bool      // it ended with an ejection
	full                      time.Time // until then there was surely no room for an ejection after the host's first row
}

// rows is how many rows of a host were completed in the time without taking it out, at least and at most.
func (in inside) rows(list []answer, errors int) (low, high int) {
	var goods, bads []answer
	since := in.first // that errors which are possibly in a row can have come
	for _, a := range list {
		if a.bad {
			bads = append(bads, a)
			continue
		}
		goods = append(goods, a)
	}
	if !in.back { // a return ends all rows; else the last good answer before did
		since = time.Time{}
		for _, g := range goods {
			if g.to.Before(in.first) && g.from.After(since) {
				since = g.from
			}
		}
	}
	possible := 0
	sure, refused := map[int]int{}, map[int]int{} // by how many good answers came before: those of one number are in a row
	var last time.Time
	for _, b := range bads {
		if b.to.Before(since.Add(-clockSlack)) || b.from.After(in.last.Add(clockSlack)) {
			continue
		}
		possible++
		overlaps := func(g answer) bool { return !g.to.Before(b.from) && !g.from.After(b.to) }
		// Of two at once, one can be lost in the ejection that the other is tried for.
		if b.unsure || b.from.Before(in.begun.Add(clockSlack)) || b.to.After(in.ended.Add(-clockSlack)) || b.from.Before(last) || slices.ContainsFunc(goods, overlaps) {
			continue
		}
		n := 0
		for _, g := range goods {
			if g.to.Before(b.from) {
				n++
			}
		}
		if sure[n]++; b.to.Before(in.full.Add(-clockSlack)) {
			refused[n]++
		}
		last = b.to
	}
	high = possible / errors
	if in.out {
		high = max(0, high-1)
	}
	high += possible / gatewayRow
	for n := range sure {
		low += sure[n]/errors + refused[n]/gatewayRow
	}
	return low, high
}
