package balancing

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// liveBound is how long a change may take to its last acknowledgement; seen: tens of milliseconds.
const liveBound = 5 * time.Second

// noMesh is what a claim that fails without a mesh says.
const noMesh = "likely  there is no mesh in this lab, so nothing keeps a session on its host: kube-proxy spreads connections over all pods of a Service"

// judgeSticky turns what was observed into claims. It is pure.
func judgeSticky(run stickyRun) []verdict.Claim {
	var claims, alone []verdict.Claim
	for _, s := range run.plan.services {
		claims = append(claims, run.judgeStays(s, s.names()))
		if len(s.streams) > 1 {
			for _, st := range s.streams {
				alone = append(alone, run.judgeStays(s, []string{st.name}))
			}
		}
		if s.by == byCookie {
			claims = append(claims, run.judgeForm(s))
		}
	}
	main := run.plan.services[0]
	claims = append(claims, run.judgeSpread(main))
	for _, s := range run.plan.services[:2] {
		claims = append(claims, run.judgeMoved(s, "joined", "one that joins takes only its own share of sessions"),
			run.judgeMoved(s, "left", "only the sessions of a host that leaves move"))
	}
	for _, s := range run.plan.services {
		if s.weighted {
			claims = append(claims, run.judgeShares(s)...)
			claims = append(claims, run.judgeDrift(s))
		}
		if s.ttl == shortTTL {
			claims = append(claims, run.judgeTTL(s))
		}
	}
	for _, s := range run.plan.services {
		claims = append(claims, run.judgePrescribed(s))
	}
	claims = append(claims, run.judgeLost(), run.judgeLive())
	claims = append(claims, alone...)
	return append(claims, expect.Guard(run.requests, run.seen.Host, run.calibration, run.seen.Disturbed))
}

// within are the answered requests of some streams that a span holds from their sending to their answer.
func (run stickyRun) within(w expect.Window, streams ...string) []evidence.Request {
	var out []evidence.Request
	for _, r := range expect.Sent(run.requests, w, streams...) {
		if r.Class == expect.OK && r.Done < w.To.UnixNano() {
			out = append(out, r)
		}
	}
	return out
}

// session is what must stay on one host: of a Service with weights, for each version.
func (run stickyRun) session(s stickyService, r evidence.Request) string {
	id, _, ok := s.hashOf(r, run.agentIP)
	if !ok {
		id = "the client"
		if r.Session > 0 {
			id = fmt.Sprintf("session %d", r.Session)
		}
	}
	if s.weighted {
		id += " " + r.Version
	}
	return id
}

// judgeStays has a session stay on its host as long as the hosts are the same.
func (run stickyRun) judgeStays(s stickyService, streams []string) verdict.Claim {
	v := verdict.Sticky{ID: "sticky/" + s.name, Statement: "every session stays on one host: " + s.text()}
	if len(streams) < len(s.streams) {
		v.ID += "/" + streams[0]
		v.Statement += ", " + streams[0] + " alone"
	}
	for _, sp := range run.spans {
		for _, r := range run.within(sp.window, streams...) {
			v.Visits = append(v.Visits, verdict.Visit{Session: run.session(s, r), Span: sp.name, Host: r.Pod, At: time.Unix(0, r.Sent)})
		}
	}
	return run.finish(v.Claim(), streams)
}

// text says what a Service hashes, for people.
func (s stickyService) text() string {
	switch {
	case s.weighted:
		return "cookie with weights, in each version, " + s.table
	case s.by == byCookie && s.ttl == 0:
		return "cookie of a browser session, " + s.table
	case s.by == byCookie:
		return fmt.Sprintf("cookie for %.0f s, %s", s.ttl.Seconds(), s.table)
	case s.by == byHeader:
		return "header, " + s.table
	case s.by == byQuery:
		return "query parameter, " + s.table
	}
	return "source address, " + s.table
}

// finish adds where the samples are, and why a lab without a mesh cannot pass.
func (run stickyRun) finish(c verdict.Claim, streams []string) verdict.Claim {
	for _, s := range streams {
		c.Evidence = append(c.Evidence, evidence.RequestsFile(s))
	}
	if c.Outcome == verdict.Fail && !run.meshed {
		c.Reason += "\n" + noMesh
	}
	return c
}

// form is what the Set-Cookie of a Service must look like: Envoy's makeSetCookieValue, with the hash in sixteen hexadecimal digits.
func (s stickyService) form() *regexp.Regexp {
	text := `^` + s.cookie + `="[0-9a-f]{16}"`
	if s.ttl > 0 {
		text += fmt.Sprintf(`; Max-Age=%d`, int(s.ttl.Seconds()))
	}
	if s.path != "" {
		text += `; Path=` + s.path
	}
	return regexp.MustCompile(text + `; HttpOnly$`)
}

// judgeForm has a request without the cookie get one, in the right form, and a request with it get none.
func (run stickyRun) judgeForm(s stickyService) verdict.Claim {
	form, n := s.form(), 0
	wrong := map[string]int{}
	first := ""
	for _, r := range expect.Of(run.requests, s.names()...) {
		if r.Class != expect.OK {
			continue
		}
		n++
		var text string
		switch has := cookieOf(r.Cookie, s.cookie) != ""; {
		case has && r.SetCookie != "":
			text = "a cookie although the request had one"
		case !has && r.SetCookie == "":
			text = "no cookie although the request had none"
		case !has && !form.MatchString(r.SetCookie):
			text = "a cookie of another form"
		default:
			continue
		}
		wrong[text]++
		if first == "" {
			first = fmt.Sprintf("where   first at %s, session %d: sent %q, got %q", time.Unix(0, r.Sent).UTC().Format("15:04:05.000"), r.Session, r.Cookie, r.SetCookie)
		}
	}
	c := verdict.Strays{
		ID: "form/" + s.name, Statement: "who has no cookie gets one, and nobody else: " + strings.Trim(form.String(), "^$"), N: n, Seen: wrong,
	}.Claim()
	if first != "" {
		c.Reason = strings.ReplaceAll(c.Reason, " to ", " got ") + "\n" + first
	}
	return run.finish(c, s.names())
}

// tableOf is the table that a proxy has of a Service in a span; of one version where weights choose it first.
func (run stickyRun) tableOf(s stickyService, sp span, at, version string) *table {
	subset := ""
	if s.weighted {
		subset = version
	}
	return newTable(s.table, sp.hosts.proxies[at][clusterName(run.namespace, s.name, subset)])
}

// judgePrescribed has each answer come from the host that the table gives its hash.
func (run stickyRun) judgePrescribed(s stickyService) verdict.Claim {
	v := verdict.Strays{ID: "table/" + s.name, Statement: "each answer is of the host that the table gives its hash: " + s.text(), Seen: map[string]int{}, Movable: true}
	if !run.meshed {
		return verdict.Claim{ID: v.ID, Statement: v.Statement, Outcome: verdict.Skip, Observed: "no table", Reason: "there is no mesh in this lab, so no proxy has a table"}
	}
	first := ""
	for _, sp := range run.spans {
		for _, st := range s.streams {
			tables := map[string]*table{"": run.tableOf(s, sp, st.at(), "")}
			if s.weighted {
				tables = map[string]*table{"v1": run.tableOf(s, sp, st.at(), "v1"), "v2": run.tableOf(s, sp, st.at(), "v2")}
			}
			for _, r := range run.within(sp.window, st.name) {
				v.N++
				version := ""
				if s.weighted {
					version = r.Version
				}
				id, hash, ok := s.hashOf(r, run.agentIP)
				t := tables[version]
				if !ok || t == nil {
					v.Seen["an answer with nothing to hash by"]++
					continue
				}
				if want := sp.hosts.pods[t.owner(hash)]; r.Pod != want {
					v.Seen[r.Pod]++
					if first == "" {
						first = fmt.Sprintf("where   %s, hash %016x, in span %s: %s answered, %s owns it at the %s", id, hash, sp.name, r.Pod, want, st.at())
					}
				}
			}
		}
	}
	c := v.Claim()
	if first != "" {
		c.Reason += "\n" + first
	}
	return run.finish(c, s.names())
}

// judgeSpread has the cookies that were given out in the calm fall on hosts as the ring's shares say. Each cookie counts once.
func (run stickyRun) judgeSpread(s stickyService) verdict.Claim {
	v := verdict.Spread{
		ID: "spread/" + s.name, Statement: "sessions spread over hosts as the " + s.table + " divides hashes", Catch: run.plan.spreadCatch,
		Want: map[string]float64{}, Count: map[string]int{},
	}
	if len(run.spans) == 0 {
		return v.Claim()
	}
	calm := run.spans[0]
	if !run.meshed {
		return verdict.Claim{ID: v.ID, Statement: v.Statement, Outcome: verdict.Skip, Observed: "no table", Reason: "there is no mesh in this lab, so no proxy has a table"}
	}
	if t := run.tableOf(s, calm, s.streams[0].at(), ""); t != nil {
		for addr, share := range t.shares() {
			v.Want[calm.hosts.pods[addr]] = share
		}
	}
	seen := map[string]bool{}
	for _, r := range run.within(calm.window, s.names()...) {
		_, hash, ok := s.hashOf(r, run.agentIP)
		if key := fmt.Sprint(hash); ok && !seen[key] {
			seen[key] = true
			v.Count[r.Pod]++
		}
	}
	return run.finish(v.Claim(), s.names())
}

// judgeMoved compares where each session was before and after the hosts changed.
func (run stickyRun) judgeMoved(s stickyService, name, statement string) verdict.Claim {
	v := verdict.Moved{ID: name + "/" + s.name, Statement: statement + ": " + s.text()}
	i := slices.IndexFunc(run.spans, func(sp span) bool { return sp.name == name })
	if !run.meshed {
		return verdict.Claim{ID: v.ID, Statement: v.Statement, Outcome: verdict.Skip, Observed: "no table", Reason: "there is no mesh in this lab, so no proxy has a table"}
	}
	if i < 1 {
		return v.Claim()
	}
	before, after := run.spans[i-1], run.spans[i]
	for _, st := range s.streams {
		a, b := run.tableOf(s, before, st.at(), ""), run.tableOf(s, after, st.at(), "")
		if a == nil || b == nil {
			continue
		}
		v.Share = max(v.Share, a.moved(b))
		owners := map[string]*verdict.Owner{}
		for _, r := range run.within(before.window, st.name) {
			if id, hash, ok := s.hashOf(r, run.agentIP); ok {
				owners[id] = &verdict.Owner{Session: id, Before: r.Pod, OwnedBefore: before.hosts.pods[a.owner(hash)], OwnedAfter: after.hosts.pods[b.owner(hash)]}
			}
		}
		for _, r := range run.within(after.window, st.name) {
			if id, _, ok := s.hashOf(r, run.agentIP); ok && owners[id] != nil && owners[id].After == "" {
				owners[id].After = r.Pod
			}
		}
		for _, r := range run.within(before.window, st.name) { // in a fixed order
			if id, _, ok := s.hashOf(r, run.agentIP); ok && owners[id] != nil {
				v.Owners = append(v.Owners, *owners[id])
				delete(owners, id)
			}
		}
	}
	c := v.Claim()
	c.Window = &verdict.Window{From: before.window.From, To: after.window.To}
	return run.finish(c, s.names())
}

// judgeShares has the weights hold although sessions are sticky.
func (run stickyRun) judgeShares(s stickyService) []verdict.Claim {
	var out []verdict.Claim
	for i, w := range [][2]int{weightsBefore, weightsAfter} {
		v := verdict.Share{
			ID: fmt.Sprintf("share/%s/%d-%d", s.name, w[0], w[1]), Statement: fmt.Sprintf("share of v2 at %d/%d is %d%%, sticky as it is", w[0], w[1], w[1]),
			Want: float64(w[1]) / 100, Catch: run.plan.shareCatch,
		}
		rs := run.within(run.shared[i], s.names()...)
		v.Count, v.N = expect.Versions(rs)["v2"], len(rs)
		c := v.Claim()
		c.Window = &verdict.Window{From: run.shared[i].From, To: run.shared[i].To}
		out = append(out, run.finish(c, s.names()))
	}
	return out
}

// judgeDrift has no session leave its host in version v2, whose hosts never change, while weights change around it.
func (run stickyRun) judgeDrift(s stickyService) verdict.Claim {
	v := verdict.Sticky{ID: "drift/" + s.name, Statement: "no session drifts within v2 while weights and the hosts of v1 change"}
	for _, r := range expect.Of(run.requests, s.names()...) {
		if r.Class == expect.OK && r.Version == "v2" {
			v.Visits = append(v.Visits, verdict.Visit{Session: run.session(s, r), Host: r.Pod, At: time.Unix(0, r.Sent)})
		}
	}
	return run.finish(v.Claim(), s.names())
}

// judgeTTL has a cookie be sent for its whole time, and replaced after it. Who drops it is the client, as the cookie tells it; that
// the session had one host until then is judged with the others.
func (run stickyRun) judgeTTL(s stickyService) verdict.Claim {
	c := verdict.Claim{
		ID: "ttl/" + s.name, Statement: fmt.Sprintf("a cookie is kept for %.0f s and then replaced", s.ttl.Seconds()), Statistic: "exact: time from one Set-Cookie to the next of a session",
		Bound: "none earlier, nor without a new one later", Confounder: "a client that does not keep to Max-Age",
	}
	told := map[int]time.Time{}
	var early []string
	shortest := time.Duration(0)
	for _, r := range inOrder(expect.Of(run.requests, s.names()...)) {
		if r.Class != expect.OK || r.SetCookie == "" {
			continue
		}
		at := time.Unix(0, r.Done)
		last, again := told[r.Session]
		told[r.Session] = at
		if !again {
			continue
		}
		// Two first requests that are on their way together each get one, the same for as long as the connection is.
		gap := at.Sub(last)
		if gap < s.ttl-time.Second {
			if time.Unix(0, r.Sent).After(last) {
				early = append(early, fmt.Sprintf("session %d was given another after %s", r.Session, verdict.Seconds(gap.Seconds())))
			}
			continue
		}
		c.N++
		if shortest == 0 || gap < shortest {
			shortest = gap
		}
	}
	c.Observed = fmt.Sprintf("%s replaced, none before %s", verdict.Group(c.N), verdict.Seconds(shortest.Seconds()))
	switch {
	case len(early) > 0:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, fmt.Sprintf("%d replaced too early", len(early)), early[0]
	case c.N == 0 && len(told) == 0:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, "no cookie", "no session was given a cookie"
	case c.N == 0:
		c.Outcome, c.Reason = verdict.Inconclusive, "no session was watched for long enough"
	default:
		c.Outcome = verdict.Pass
	}
	return run.finish(c, s.names())
}

func inOrder(rs []evidence.Request) []evidence.Request {
	out := slices.Clone(rs)
	slices.SortStableFunc(out, func(a, b evidence.Request) int { return int(a.Done - b.Done) })
	return out
}

func (run stickyRun) judgeLost() verdict.Claim {
	failures, n := verdict.Failures(run.requests)
	var changes []evidence.Event
	for _, e := range run.events {
		if e.Kind == "apply" || e.Kind == "ack" {
			changes = append(changes, e)
		}
	}
	c := verdict.Lost{ID: "lost", Statement: "nothing lost while a host joins, weights change and a host leaves", N: n, Failures: failures, Events: changes}.Claim()
	return expect.Excuse(c, run.requests, failures, run.plan.streams()...)
}

func (run stickyRun) judgeLive() verdict.Claim {
	v := verdict.Converged{ID: "live/weights", Statement: "new weights are live everywhere", Applied: run.weights.Applied, Within: liveBound, Proxies: run.weights.Acks}
	if !run.meshed {
		return verdict.Claim{ID: v.ID, Statement: v.Statement, Outcome: verdict.Skip, Observed: "no control plane", Reason: "there is no mesh in this lab, so nobody acknowledges a change"}
	}
	c := v.Claim()
	if run.weights.Err != nil {
		c.Outcome = verdict.Fail
		c.Reason += "\nlikely  " + run.weights.Err.Error() + "\nsee     meshproof mesh proxy-status"
	}
	return c
}
