package balancing

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// noMesh is what a claim that fails without a mesh says.
const noMesh = "likely  there is no mesh in this lab, so nothing keeps a session on its host: kube-proxy spreads connections over all pods of a Service"

// judgeSticky turns what was observed into claims. It is pure.
func judgeSticky(run stickyRun) []verdict.Claim {
	var claims, alone []verdict.Claim
	for _, s := range run.plan.services {
		claims = append(claims, run.judgeStays(s, s.names()))
		if len(s.streams) > 1 && s.by != bySource { // an address is a stream's own
			for _, st := range s.streams {
				alone = append(alone, run.judgeStays(s, []string{st.name}))
			}
		}
		if s.by == byCookie {
			claims = append(claims, run.judgeForm(s))
		}
	}
	cookie, header, query := run.plan.service("by-cookie"), run.plan.service("by-header"), run.plan.service("by-query")
	claims = append(claims, run.judgeSpread(cookie), run.judgeEven(cookie), run.judgeEqual(header))
	for _, s := range []stickyService{cookie, header, query} {
		claims = append(claims, run.judgeMoved(s, "joined", "when a host joins only sessions move whose hash changed owner"),
			run.judgeMoved(s, "left", "when a host leaves only sessions move whose hash changed owner"))
	}
	for _, s := range []stickyService{query, header} {
		claims = append(claims, run.judgeKept(s, "joined", "when a host joins sessions move to it alone"),
			run.judgeKept(s, "left", "when a host leaves only its sessions move"))
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
	claims = append(claims, run.judgeLost())
	claims = append(claims, run.judgeLive()...)
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
	id, _, ok := s.hashOf(r, run.addresses[r.Stream])
	if !ok {
		id = "the client of " + r.Stream
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
	v := verdict.Sticky{ID: "sticky/" + s.name, Statement: "every session stays on one host: " + s.text(), Bound: run.plan.catch.moves}
	if len(streams) < len(s.streams) {
		v.ID += "/" + streams[0]
		v.Statement += ", " + streams[0] + " alone"
	}
	for _, sp := range run.spans {
		for _, r := range run.within(sp.window, streams...) {
			v.Visits = append(v.Visits, verdict.Visit{Session: run.session(s, r), Span: sp.name, Host: r.Pod, At: sentAt(r)})
		}
	}
	return run.finish(v.Claim(), streams, v.Wrong())
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
	if s.streams[0].through {
		return "source address at the gateway, " + s.table
	}
	return "source address, " + s.table
}

// finish adds where the samples are, and why a lab without a mesh cannot pass. wrong are the moments of what fails it, which a host
// that stalled then excuses; nil where no lack of CPU can explain it.
func (run stickyRun) finish(c verdict.Claim, streams []string, wrong []verdict.Failure) verdict.Claim {
	c = expect.Excuse(c, run.requests, wrong, run.plan.streams()...)
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
	form, n, given := s.form(), 0, 0
	wrong := map[string]int{}
	first := ""
	for _, r := range expect.Of(run.requests, s.names()...) {
		if r.Class != expect.OK {
			continue
		}
		n++
		var text string
		has := cookieOf(r.Cookie, s.cookie) != ""
		if !has {
			given++
		}
		switch {
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
			first = fmt.Sprintf("where   first at %s, session %d: sent %q, got %q", sentAt(r).UTC().Format("15:04:05.000"), r.Session, r.Cookie, r.SetCookie)
		}
	}
	c := verdict.Strays{
		ID: "form/" + s.name, Statement: "who has no cookie gets one, and nobody else: " + strings.Trim(form.String(), "^$"), N: n, Seen: wrong,
		Catch: run.plan.catch.form,
	}.Claim()
	if need := required(run.plan.catch.form); c.Outcome == verdict.Pass && given < need {
		c.Outcome, c.Reason = verdict.Inconclusive, fmt.Sprintf("%s requests had no cookie; %s are needed", verdict.Group(given), verdict.Group(need))
	}
	if first != "" {
		c.Reason = strings.ReplaceAll(c.Reason, " to ", " got ") + "\n" + first
	}
	return run.finish(c, s.names(), nil)
}

// required is how many samples show something that has a share of catch, if it should never be.
func required(catch float64) int { return verdict.Share{Catch: catch}.Required() }

// tableOf is the table that a proxy has of a Service in a span; of one version where weights choose it first.
func (run stickyRun) tableOf(s stickyService, sp span, at, version string) *table {
	subset := ""
	if s.weighted {
		subset = version
	}
	return newTable(s, sp.hosts.proxies[at][clusterName(run.namespace, s.name, subset)])
}

// judgePrescribed has each answer come from the host that the table gives its hash.
func (run stickyRun) judgePrescribed(s stickyService) verdict.Claim {
	v := verdict.Strays{
		ID: "table/" + s.name, Statement: "each answer is of the host that the table gives its hash: " + s.text(),
		Seen: map[string]int{}, Movable: true, Catch: run.plan.catch.table,
	}
	if !run.meshed {
		return noTable(v.ID, v.Statement)
	}
	first := ""
	var wrong []evidence.Request
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
				id, hash, ok := s.hashOf(r, run.addresses[r.Stream])
				t := tables[version]
				if !ok || t == nil {
					v.Seen["an answer with nothing to hash by"]++
					wrong = append(wrong, r)
					continue
				}
				if want := sp.hosts.pods[t.owner(hash)]; r.Pod != want {
					v.Seen[r.Pod]++
					wrong = append(wrong, r)
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
	return run.finish(c, s.names(), moments(wrong))
}

// moments are when all of these requests left.
func moments(rs []evidence.Request) []verdict.Failure {
	return expect.Moments(rs, func(evidence.Request) bool { return true })
}

// judgeShares has the weights hold although sessions are sticky.
func (run stickyRun) judgeShares(s stickyService) []verdict.Claim {
	var out []verdict.Claim
	for i, w := range [][2]int{weightsBefore, weightsAfter} {
		v := verdict.Share{
			ID: fmt.Sprintf("share/%s/%d-%d", s.name, w[0], w[1]), Statement: fmt.Sprintf("share of v2 at %d/%d is %d%%, sticky as it is", w[0], w[1], w[1]),
			Want: float64(w[1]) / 100, Catch: run.plan.catch.share,
		}
		rs := run.within(run.shared[i], s.names()...)
		v.Count, v.N = expect.Versions(rs)["v2"], len(rs)
		c := v.Claim()
		if run.shared[i] != (expect.Window{}) {
			c.Window = &verdict.Window{From: run.shared[i].From, To: run.shared[i].To}
		}
		if w == weightsAfter && run.weights.Err != nil && !run.weights.Taken {
			c.Outcome, c.Reason = verdict.Inconclusive, "the API server did not take the weights: "+run.weights.Err.Error()
		}
		out = append(out, run.finish(c, s.names(), moments(rs)))
	}
	return out
}

// judgeDrift has no session leave its host in version v2, whose hosts never change, while weights change around it.
func (run stickyRun) judgeDrift(s stickyService) verdict.Claim {
	v := verdict.Sticky{
		ID: "drift/" + s.name, Statement: "no session drifts within v2 while weights and the hosts of v1 change", Bound: run.plan.catch.moves,
	}
	for _, r := range expect.Of(run.requests, s.names()...) {
		if r.Class == expect.OK && r.Version == "v2" {
			v.Visits = append(v.Visits, verdict.Visit{Session: run.session(s, r), Host: r.Pod, At: sentAt(r)})
		}
	}
	return run.finish(v.Claim(), s.names(), v.Wrong())
}

// judgeTTL has a cookie be sent for its whole time, and replaced after it. Who drops it is the client, as the cookie tells it; that
// the session had one host until then is judged with the others. The bounds are exact: a client gets a cookie between its request and
// the end of the answer.
func (run stickyRun) judgeTTL(s stickyService) verdict.Claim {
	need := required(run.plan.catch.form)
	c := verdict.Claim{
		ID: "ttl/" + s.name, Statement: fmt.Sprintf("a cookie is kept for %.0f s and then replaced", s.ttl.Seconds()), Statistic: "exact: time from one Set-Cookie to the next of a session",
		Bound: "none earlier, none sent later", Confounder: "a client that does not keep to Max-Age",
	}
	told := map[int]evidence.Request{} // by session: the answer that its cookie came with
	var wrong []string
	shortest := time.Duration(0)
	for _, r := range inOrder(expect.Of(run.requests, s.names()...)) {
		last, had := told[r.Session]
		if r.SetCookie != "" {
			told[r.Session] = r
		}
		switch {
		case !had:
		case r.SetCookie != "" && r.Sent > last.Done: // else two first ones were on their way together
			c.N++
			took := time.Duration(r.Done - last.Sent)
			if took < s.ttl {
				wrong = append(wrong, fmt.Sprintf("session %d was given another after %s", r.Session, verdict.Seconds(took.Seconds())))
			}
			if shortest == 0 || took < shortest {
				shortest = took
			}
		case r.SetCookie == "" && time.Duration(r.Sent-last.Done) > s.ttl && cookieOf(r.Cookie, s.cookie) != "":
			after := time.Duration(r.Sent - last.Done)
			wrong = append(wrong, fmt.Sprintf("session %d still sent its cookie after %s", r.Session, verdict.Seconds(after.Seconds())))
		}
	}
	c.Observed = fmt.Sprintf("%s replaced, none before %s", verdict.Group(c.N), verdict.Seconds(shortest.Seconds()))
	switch {
	case len(wrong) > 0:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, fmt.Sprintf("%s at another time", verdict.Group(len(wrong))), wrong[0]
	case len(told) == 0 && expect.Answered(expect.Of(run.requests, s.names()...)) > 0:
		c.Outcome, c.Observed, c.Reason = verdict.Fail, "no cookie", "no session was given a cookie"
	case c.N < need:
		c.Outcome, c.Reason = verdict.Inconclusive, fmt.Sprintf("%s cookies were seen to be replaced; %s are needed", verdict.Group(c.N), verdict.Group(need))
	default:
		c.Outcome = verdict.Pass
	}
	return run.finish(c, s.names(), nil)
}

func inOrder(rs []evidence.Request) []evidence.Request {
	out := slices.Clone(rs)
	slices.SortStableFunc(out, func(a, b evidence.Request) int { return cmp.Compare(a.Done, b.Done) })
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
	c := verdict.Lost{
		ID: "lost", Statement: "nothing lost while a host joins, weights change and a host leaves", N: n,
		Failures: failures, Events: changes, Bound: run.plan.catch.lost,
	}.Claim()
	return expect.Excuse(c, run.requests, failures, run.plan.streams()...)
}
