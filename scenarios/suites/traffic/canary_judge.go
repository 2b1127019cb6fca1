package traffic

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

const liveBound = 5 * time.Second // from a change to its last acknowledgement; seen: tens of milliseconds

// samples is how many samples the test of a share needs.
func samples(want, catch float64) int {
	return verdict.Share{Want: want, Catch: catch}.Required()
}

// judgeCanary turns what the canary observed into claims, those about shares first. It is pure.
func judgeCanary(run canaryRun) []verdict.Claim {
	var claims, alone []verdict.Claim
	for _, sp := range run.plan.splits {
		for i, s := range canarySteps() {
			claims = append(claims, run.judgeShare(sp, s, sp.weighted(), run.plan.delta))
			if i == 0 {
				continue // the lead-in is too short for its sources alone
			}
			for _, src := range sp.weighted() {
				alone = append(alone, run.judgeShare(sp, s, []source{src}, src.delta))
			}
		}
		if sp.user != "" {
			claims = append(claims, run.judgeUser(sp))
		}
	}
	claims = append(claims, run.judgeLost(), run.judgeStrays())
	claims = append(claims, run.judgeConverged()...)
	claims = append(claims, alone...)
	return append(claims, expect.Guard(run.requests, run.seen.Host, run.calibration, run.seen.Disturbed))
}

// weighted are the sources whose requests are split by weight.
func (sp split) weighted() []source {
	return slices.DeleteFunc(slices.Clone(sp.streams), func(s source) bool { return s.user })
}

// judgeShare judges the share of the new version at one step over some sources. Counts over several sources see small
// deviations but could hide that two proxies err in opposite directions, so each source has a coarser claim alone.
func (run canaryRun) judgeShare(sp split, s step, sources []source, catch float64) verdict.Claim {
	id := fmt.Sprintf("share/%s/%d-%d/%s", sp.app, s.old, s.new, sp.new)
	statement := fmt.Sprintf("share of %s %s at %s is %d%%", sp.app, sp.new, s, s.new)
	var names []string
	for _, src := range sources {
		names = append(names, src.name)
	}
	if len(sources) == 1 {
		id += "/" + names[0]
		statement += ", " + names[0] + " alone"
	}
	sh := verdict.Share{ID: id, Statement: statement, Want: s.share(), Catch: catch}
	if sh.Want == 0 || sh.Want == 1 {
		sh.Catch = max(catch, 0.05) // one stray fails anyway; this is the bound that a pass states
	}
	var windows []expect.Window
	for _, c := range run.changes {
		if c.step != s {
			continue
		}
		windows = append(windows, c.window)
		rs := expect.Sent(run.requests, c.window, names...)
		sh.Count += expect.Versions(rs)[sp.new]
		sh.N += expect.Answered(rs)
	}
	c := sh.Claim()
	if len(sources) > 1 {
		c.Confounder += "; counts of " + strings.Join(names, " and ") + " are pooled, each of whose proxies draws for each request"
	}
	c.Evidence = evidenceFiles(names)
	if len(windows) > 0 {
		c.Window = &verdict.Window{From: windows[0].From, To: windows[len(windows)-1].To}
		if c.Outcome == verdict.Fail {
			c.Reason += "\n" + run.why(s, windows[0], sources)
		}
	}
	return c
}

func evidenceFiles(streams []string) []string {
	var out []string
	for _, s := range streams {
		out = append(out, evidence.RequestsFile(s))
	}
	return out
}

// why says what a person asks first of a share that is wrong.
func (run canaryRun) why(s step, w expect.Window, sources []source) string {
	lines := []string{fmt.Sprintf("since   %s (weights %s)", w.From.UTC().Format("15:04:05.000"), s)}
	var where []string
	for _, src := range sources {
		rs := expect.Sent(run.requests, w, src.name)
		n := expect.Answered(rs)
		if n == 0 {
			where = append(where, src.name+" saw no answer")
			continue
		}
		versions := expect.Versions(rs)
		var parts []string
		for _, v := range sortedKeys(versions) {
			parts = append(parts, fmt.Sprintf("%s %.1f%%", v, 100*float64(versions[v])/float64(n)))
		}
		if lost := len(rs) - n; lost > 0 {
			parts = append(parts, fmt.Sprintf("and lost %s, of whichever version", verdict.Group(lost)))
		}
		where = append(where, src.name+" saw "+strings.Join(parts, ", "))
	}
	lines = append(lines, "where   "+strings.Join(where, "; "))
	for _, c := range run.changes {
		if c.step == s && c.Err != nil {
			lines = append(lines, "likely  the change did not reach every proxy: "+c.Err.Error())
		}
	}
	if run.meshed {
		return strings.Join(append(lines, "see     meshproof mesh proxy-status; meshproof mesh proxy-config routes POD.NAMESPACE"), "\n")
	}
	return strings.Join(append(lines, "likely  there is no mesh in this lab, so nothing obeys weights: kube-proxy spreads connections over all pods of a Service"), "\n")
}

func sortedKeys(m map[string]int) []string {
	var out []string
	for v := range m {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

func (run canaryRun) judgeUser(sp split) verdict.Claim {
	var names []string
	for _, src := range sp.streams {
		if src.user {
			names = append(names, src.name)
		}
	}
	rs := expect.Of(run.requests, names...)
	c := verdict.Share{
		ID:        fmt.Sprintf("user/%s/%s", sp.app, sp.user),
		Statement: fmt.Sprintf("every request of user %s reaches %s %s", sp.user, sp.app, sp.userGets),
		Want:      1, Catch: 0.05, Count: expect.Versions(rs)[sp.userGets], N: expect.Answered(rs),
	}.Claim()
	c.Evidence = evidenceFiles(names)
	if strays := expect.Strays(rs, sp.userGets); len(strays) > 0 {
		c.Reason += "\nwhere   " + firstOf(strays)
		if !run.meshed {
			c.Reason += "\nlikely  there is no mesh in this lab, so nothing reads the header end-user"
		}
	}
	return c
}

// firstOf describes the first of some answers.
func firstOf(rs []evidence.Request) string {
	r := rs[0]
	return fmt.Sprintf("first at %s in stream %s, request %d: answered by %s %s, pod %s",
		time.Unix(0, r.Sent).UTC().Format("15:04:05.000"), r.Stream, r.Seq, r.App, r.Version, r.Pod)
}

func (run canaryRun) judgeLost() verdict.Claim {
	failures, n := verdict.Failures(run.requests)
	var changes []evidence.Event
	for _, e := range run.events {
		if e.Kind == "apply" || e.Kind == "ack" {
			changes = append(changes, e)
		}
	}
	c := verdict.Lost{
		ID: "lost", Statement: fmt.Sprintf("nothing lost across %d changes of two routes", max(0, len(run.changes)-1)),
		N: n, Failures: failures, Events: changes,
	}.Claim()
	return expect.Excuse(c, run.requests, failures, run.streams()...)
}

// streams names every stream of the plan.
func (run canaryRun) streams() []string {
	var out []string
	for _, sp := range run.plan.splits {
		for _, src := range sp.streams {
			out = append(out, src.name)
		}
	}
	return out
}

func (run canaryRun) judgeStrays() verdict.Claim {
	s := verdict.Strays{ID: "stray", Statement: "no stray to a version that the route does not list", Seen: map[string]int{}}
	var strays []evidence.Request
	for _, sp := range run.plan.splits {
		var names []string
		for _, src := range sp.weighted() {
			names = append(names, src.name)
		}
		rs := expect.Of(run.requests, names...)
		s.N += expect.Answered(rs)
		for _, r := range expect.Strays(rs, sp.listed...) {
			s.Seen[r.App+" "+r.Version]++
			strays = append(strays, r)
		}
	}
	c := s.Claim()
	if len(strays) > 0 {
		c.Reason += "\nwhere   " + firstOf(strays)
		if !run.meshed {
			c.Reason += "\nlikely  there is no mesh in this lab, so subsets mean nothing"
		}
	}
	return c
}

// judgeConverged has a claim for each change under load: when every proxy acknowledged, and, where one request can tell,
// the first that obeyed and the last that did not.
func (run canaryRun) judgeConverged() []verdict.Claim {
	var claims []verdict.Claim
	for i, ch := range run.changes {
		if i == 0 || i >= len(canarySteps()) {
			continue // before the load, or a later round
		}
		before := run.changes[i-1].step
		v := verdict.Converged{
			ID: fmt.Sprintf("live/%d-%d", ch.step.old, ch.step.new), Statement: fmt.Sprintf("%s is live everywhere", ch.step),
			Applied: ch.Applied, Within: liveBound, Proxies: ch.Acks,
		}
		if !run.meshed {
			claims = append(claims, verdict.Claim{
				ID: v.ID, Statement: v.Statement, Outcome: verdict.Skip, Observed: "no control plane",
				Reason: "there is no mesh in this lab, so nobody acknowledges a change",
			})
			continue
		}
		obeyed := run.judgeObeyed(before, ch)
		for _, o := range obeyed {
			if o.Last {
				v.LastDisobeying = o.Seen
			} else {
				v.FirstObeying = o.Seen
			}
		}
		c := v.Claim()
		if ch.Err != nil && c.Outcome == verdict.Pass {
			c.Outcome = verdict.Fail
		}
		if ch.Err != nil {
			c.Reason += "\nlikely  " + ch.Err.Error() + "\nsee     meshproof mesh proxy-status"
		}
		claims = append(claims, c)
		for _, o := range obeyed {
			oc := o.Claim()
			oc.Evidence = evidenceFiles(run.streams())
			claims = append(claims, oc)
		}
	}
	return claims
}

// judgeObeyed looks for the requests that alone tell a change: the first that the new version got, where it had no share before, and
// the last that the old one got, where it has no share after.
func (run canaryRun) judgeObeyed(before step, ch change) []verdict.Obeyed {
	first := verdict.Obeyed{
		ID: fmt.Sprintf("first/%d-%d", ch.step.old, ch.step.new), Statement: fmt.Sprintf("the first request obeys %s soon", ch.step),
		Applied: ch.Applied, Within: liveBound,
	}
	last := verdict.Obeyed{
		ID: fmt.Sprintf("last/%d-%d", ch.step.old, ch.step.new), Statement: fmt.Sprintf("no request obeys what was before %s for long", ch.step),
		Applied: ch.Applied, Within: liveBound, Last: true,
	}
	if ch.Err == nil {
		first.Acked, last.Acked = ch.Acked, ch.Acked
	}
	for _, sp := range run.plan.splits {
		var names []string
		for _, src := range sp.weighted() {
			names = append(names, src.name)
		}
		rs := expect.Sent(run.requests, expect.Window{From: ch.Applied, To: ch.window.To}, names...)
		first.N, last.N = first.N+len(rs), last.N+len(rs)
		if at, ok := expect.First(rs, sp.new, ch.Applied); ok && (first.Seen.IsZero() || at.Before(first.Seen)) {
			first.Seen = at
		}
		if at, ok := expect.Last(rs, sp.old, ch.Applied); ok && at.After(last.Seen) {
			last.Seen = at
		}
	}
	var out []verdict.Obeyed
	if before.new == 0 && ch.step.new > 0 {
		out = append(out, first)
	}
	if before.old > 0 && ch.step.old == 0 {
		out = append(out, last)
	}
	return out
}
