package balancing

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

const testNamespace = "sticky-hello"

// stickyWorld is a mesh as a simulation has it; nil fields are those of an honest one.
type stickyWorld struct {
	owner  func(s stickyService, owner string, hosts []string, n int) string // who answers request n
	cookie func(s stickyService, line string) string                         // what is set
	share  func(want float64) float64
	ttl    time.Duration // that clients keep a cookie too long, or too short if negative
	late   time.Duration // that every send is late
	meshed bool

	profile lab.Profile // "" is quick
}

// simulateSticky makes the evidence of a run.
func simulateSticky(w stickyWorld, seed uint64) stickyRun {
	rng := rand.New(rand.NewPCG(seed, 2))
	run := stickyRun{plan: newStickyPlan(w.profile), namespace: testNamespace, addresses: map[string]string{}, meshed: w.meshed, seen: drive.Seen{Host: record.Host{CPUStall: 0.3}}}
	start := time.Unix(1_800_000_000, 0)
	addr := func(i int) string { return fmt.Sprintf("10.0.0.%d:8080", i) }
	sets := [][]int{{1, 2, 3, 4}, {1, 2, 3, 4, 5}, {2, 3, 4, 5}} // 1, 2 and 5 are v1
	at := start
	for i, name := range []string{"calm", "joined", "left"} {
		h := settled{pods: map[string]string{}, versions: map[string]string{}, proxies: map[string]clusterHosts{}, known: map[string]time.Time{}, ready: at, at: at}
		v := map[string][]string{}
		for _, n := range sets[i] {
			version := "v1"
			if n == 3 || n == 4 {
				version = "v2"
			}
			h.pods[addr(n)], h.versions[addr(n)] = fmt.Sprint("pod-", n), version
			v[""], v[version] = append(v[""], addr(n)), append(v[version], addr(n))
		}
		for _, p := range []string{atGateway, agentAt(0), agentAt(1), agentAt(2)} {
			h.known[p] = at
			h.proxies[p] = clusterHosts{}
			for _, s := range run.plan.services {
				for subset, hosts := range v {
					h.proxies[p][clusterName(testNamespace, s.name, subset)] = hosts
				}
			}
		}
		length := []time.Duration{run.plan.calm, run.plan.joined, run.plan.left}[i]
		run.spans = append(run.spans, span{name: name, window: expect.Window{From: at, To: at.Add(length)}, hosts: h})
		run.arrivals = append(run.arrivals, arrival{name: name, hosts: h})
		at = at.Add(length + time.Second)
	}
	acks := []verdict.ProxyAck{{Proxy: "p", Acked: true, At: start.Add(time.Millisecond)}}
	run.policies = drive.Change{Applied: start, Acked: start, Acks: acks, Taken: true}
	run.shared = [2]expect.Window{run.spans[0].window, run.spans[1].window}
	run.weights = drive.Change{Applied: run.spans[1].window.From, Acked: run.spans[1].window.From, Taken: true, Acks: []verdict.ProxyAck{{Proxy: "p", Acked: true, At: run.spans[1].window.From.Add(time.Millisecond)}}}
	for _, s := range run.plan.services {
		for _, st := range s.streams {
			if st.source == drive.Agent {
				run.addresses[st.name] = fmt.Sprintf("10.0.0.%d", 99-st.agent)
			}
			run.requests = append(run.requests, w.stream(run, s, st, rng)...)
		}
	}
	return run
}

func (w stickyWorld) stream(run stickyRun, s stickyService, st stickyStream, rng *rand.Rand) []evidence.Request {
	var out []evidence.Request
	type jar struct {
		value string
		until time.Time
	}
	jars := map[int]*jar{}
	n := 0
	for i, sp := range run.spans {
		tables := map[string]*table{}
		for _, v := range []string{"", "v1", "v2"} {
			tables[v] = newTable(s, sp.hosts.proxies[st.at()][clusterName(run.namespace, s.name, v)])
		}
		for at := sp.window.From; at.Before(sp.window.To.Add(-10 * time.Millisecond)); at = at.Add(time.Duration(float64(time.Second) / st.rate)) {
			r := evidence.Request{Stream: st.name, Seq: uint64(n), Intended: at.Add(-w.late).UnixNano(), Sent: at.UnixNano(), Done: at.Add(time.Millisecond).UnixNano(), Code: 200, Class: expect.OK, App: "hello"}
			if st.sessions > 0 {
				r.Session = n%st.sessions + 1
			}
			n++
			if s.by == byCookie {
				if j := jars[r.Session]; j != nil && (s.ttl == 0 || at.Before(j.until)) {
					r.Cookie = fmt.Sprintf(`%s="%s"`, s.cookie, j.value)
				} else {
					j := &jar{value: fmt.Sprintf("%016x", rng.Uint64()), until: at.Add(time.Millisecond).Add(s.ttl + w.ttl)}
					r.SetCookie = fmt.Sprintf(`%s="%s"`, s.cookie, j.value)
					if s.ttl > 0 {
						r.SetCookie += fmt.Sprintf("; Max-Age=%d", int(s.ttl.Seconds()))
					}
					if s.path != "" {
						r.SetCookie += "; Path=" + s.path
					}
					r.SetCookie += "; HttpOnly"
					if w.cookie != nil {
						r.SetCookie = w.cookie(s, r.SetCookie)
					}
					if r.SetCookie != "" {
						jars[r.Session] = j
					}
				}
			}
			version := ""
			if s.weighted {
				want := float64([]int{weightsBefore[1], weightsAfter[1], weightsAfter[1]}[i]) / 100
				if w.share != nil {
					want = w.share(want)
				}
				version = "v1"
				if rng.Float64() < want {
					version = "v2"
				}
			}
			_, hash, ok := s.hashOf(r, run.addresses[st.name])
			if !ok {
				hash = rng.Uint64()
			}
			t := tables[version]
			owner := t.owner(hash)
			if w.owner != nil {
				owner = w.owner(s, owner, t.hosts, n)
			}
			r.Pod, r.Version = sp.hosts.pods[owner], sp.hosts.versions[owner]
			out = append(out, r)
		}
	}
	return out
}

func outcomes(claims []verdict.Claim) map[string]verdict.Claim {
	out := map[string]verdict.Claim{}
	for _, c := range claims {
		out[c.ID] = c
	}
	return out
}

func TestAnHonestMeshIsSticky(t *testing.T) {
	for seed, profile := range []lab.Profile{lab.Quick, lab.Quick, lab.Quick, lab.Nightly} {
		for _, c := range judgeSticky(simulateSticky(stickyWorld{meshed: true, profile: profile}, uint64(seed))) {
			if c.Outcome != verdict.Pass {
				t.Errorf("seed %d: %s is %s: %s; %s", seed, c.ID, c.Outcome, c.Observed, c.Reason)
			}
		}
	}
}

// Each way to break a mesh fails the claims that name it, and says what was seen.
func TestStickyMutants(t *testing.T) {
	turns := func(s stickyService, _ string, hosts []string, n int) string { return hosts[n/3%len(hosts)] }
	for name, c := range map[string]struct {
		w    stickyWorld
		want map[string]string // claims that fail, and words of their reason
	}{
		"no hash at all": {stickyWorld{meshed: true, owner: turns, cookie: func(stickyService, string) string { return "" }}, map[string]string{
			"sticky/by-cookie": "went from", "sticky/by-header": "went from", "sticky/by-source": "10.0.0.97 went from",
			"sticky/by-client": "10.0.0.97 went from",
			"form/by-cookie":   "no cookie although the request had none", "ttl/by-short": "no session was given a cookie", "table/by-query": "owns it at the gateway",
		}},
		"another table": {stickyWorld{meshed: true, owner: func(s stickyService, owner string, hosts []string, _ int) string {
			for i, h := range hosts {
				if h == owner {
					return hosts[(i+1)%len(hosts)]
				}
			}
			return owner
		}}, map[string]string{"table/by-cookie": "owns it", "table/by-session": "owns it", "joined/by-cookie": "its hash is"}},
		"a cookie without HttpOnly": {stickyWorld{meshed: true, cookie: func(_ stickyService, line string) string { return strings.TrimSuffix(line, "; HttpOnly") }},
			map[string]string{"form/by-cookie": "a cookie of another form", "form/by-session": "another form"}},
		"a session cookie with an end": {stickyWorld{meshed: true, cookie: func(s stickyService, line string) string {
			if s.ttl == 0 {
				return strings.Replace(line, "; Path", "; Max-Age=0; Path", 1)
			}
			return line
		}}, map[string]string{"form/by-session": "Max-Age=0"}},
		"weights that stickiness bends": {stickyWorld{meshed: true, share: func(float64) float64 { return 0.5 }}, map[string]string{"share/by-weight/20-80": "outside"}},
		"a modulo instead of a table": {stickyWorld{meshed: true, owner: func(s stickyService, owner string, hosts []string, n int) string {
			return hosts[(n*7)%s.streams[0].sessionsOr(1)%len(hosts)]
		}}, map[string]string{"kept/joined/by-query": "other sessions moved", "kept/left/by-query": "other sessions moved", "kept/left/by-header": "other sessions moved"}},
		"every address on one host": {stickyWorld{meshed: true, owner: func(s stickyService, owner string, hosts []string, _ int) string {
			if s.by == bySource {
				return hosts[len(hosts)-1]
			}
			return owner
		}}, map[string]string{"table/by-source": "owns it at the agent", "table/by-client": "owns it at the gateway"}},
		"half of the sessions on one host": {stickyWorld{meshed: true, owner: func(s stickyService, owner string, hosts []string, n int) string {
			if owner == hosts[0] {
				return hosts[1]
			}
			return owner
		}}, map[string]string{"even/by-cookie": "1 of 4 hosts have none", "even/by-header": "outside", "spread/by-cookie": "outside"}},
		"a cookie that is sent too long": {stickyWorld{meshed: true, ttl: 4 * time.Second}, map[string]string{"ttl/by-short": "still sent its cookie after"}},
		"a path that nobody asked for": {stickyWorld{meshed: true, cookie: func(_ stickyService, line string) string { return strings.Replace(line, "Path=/short", "Path=/", 1) }},
			map[string]string{"form/by-short": "Path=/; HttpOnly"}},
		"one host of five": {stickyWorld{meshed: true, owner: func(s stickyService, owner string, hosts []string, n int) string {
			if n%97 == 0 {
				return hosts[0]
			}
			return owner
		}}, map[string]string{"sticky/by-cookie": "went from", "drift/by-weight": "went from"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := outcomes(judgeSticky(simulateSticky(c.w, 7)))
			for id, words := range c.want {
				if c := got[id]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, words) {
					t.Errorf("%s is %s: %s; %s", id, c.Outcome, c.Observed, c.Reason)
				}
			}
			for _, id := range []string{"lost", "live/weights", "live/policies", "live/calm", "live/joined", "live/left", expect.GuardID} {
				if got[id].Outcome != verdict.Pass {
					t.Errorf("%s is %s", id, got[id].Outcome)
				}
			}
		})
	}
}

// A starved host excuses all but the cookies, whose form no lack of CPU changes.
func TestStickyWithoutMesh(t *testing.T) {
	w := stickyWorld{
		owner:  func(_ stickyService, _ string, hosts []string, n int) string { return hosts[n%len(hosts)] },
		cookie: func(stickyService, string) string { return "" },
	}
	s := verdict.Scenario{Claims: judgeSticky(simulateSticky(w, 3))}
	verdict.Judge(&s, expect.GuardID)
	if s.Outcome != verdict.Fail {
		t.Fatalf("outcome %s", s.Outcome)
	}
	for _, c := range s.Claims {
		if c.Outcome == verdict.Fail && strings.HasPrefix(c.ID, "sticky/") && !strings.Contains(c.Reason, "no mesh in this lab") {
			t.Errorf("%s: %s", c.ID, c.Reason)
		}
		if strings.HasPrefix(c.ID, "table/") && c.Outcome != verdict.Skip {
			t.Errorf("%s is %s", c.ID, c.Outcome)
		}
	}
}

// The table is Envoy's: a published point of its ring test, and shares that add up.
func TestTable(t *testing.T) {
	var hosts []string
	for p := 90; p <= 95; p++ {
		hosts = append(hosts, fmt.Sprintf("127.0.0.1:%d", p))
	}
	for _, kind := range []string{ringHash, maglev} {
		sum, s := 0.0, stickyService{table: kind}
		tab := newTable(s, hosts)
		for _, share := range tab.shares() {
			sum += share
			if share < 0.1 || share > 0.24 {
				t.Errorf("%s: a host has %v of all hashes", kind, share)
			}
		}
		if sum < 0.999 || sum > 1.001 {
			t.Errorf("%s: shares add up to %v", kind, sum)
		}
		// More than the host's own share moves: every other host has more points on a ring of as many.
		fewer := newTable(s, hosts[:5])
		if m := tab.moved(fewer); m < tab.shares()[hosts[5]]*0.99 || m > tab.shares()[hosts[5]]+0.12 {
			t.Errorf("%s: %v of hashes move when a host with %v leaves", kind, m, tab.shares()[hosts[5]])
		}
	}
	if newTable(stickyService{table: ringHash}, nil) != nil {
		t.Error("a table of no hosts")
	}
	if loadgen.SessionName(17) != "session-17" {
		t.Error("sessions are named otherwise")
	}
}

func TestCookieOf(t *testing.T) {
	for in, want := range map[string]string{`user="ab"`: "ab", `a=b; user=cd`: "cd", `xuser="ab"`: "", ``: "", `user=`: ""} {
		if got := cookieOf(in, "user"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestParseClusters(t *testing.T) {
	got := parseClusters([]byte("outbound|8080||a.b.svc.cluster.local::observability_name::x\noutbound|8080||a.b.svc.cluster.local::10.0.0.1:8080::rq_total::5\n" +
		"outbound|8080||a.b.svc.cluster.local::10.0.0.1:8080::health_flags::healthy\noutbound|8080||a.b.svc.cluster.local::10.0.0.2:8080::health_flags::/failed_eds_health\n" +
		"outbound|8080||a.b.svc.cluster.local::10.0.0.3:8080::health_flags::/failed_outlier_check\n"))
	if hosts := got[clusterName("b", "a", "")]; strings.Join(hosts, " ") != "10.0.0.1:8080 10.0.0.3:8080" {
		t.Errorf("hosts %v", hosts)
	}
}

// sessionsOr is how many sessions a stream has, n for one that has none.
func (st stickyStream) sessionsOr(n int) int {
	if st.sessions > 0 {
		return st.sessions
	}
	return n
}

// What was not come to is no failure, and what was seen before is judged.
func TestStickyBrokenOff(t *testing.T) {
	refused := errors.New("connection refused")
	timeout := func(last error) error {
		return &expect.TimeoutError{Budget: expect.Budget{Within: settleWithin}, Last: last}
	}
	behind := &behindError{proxy: atGateway, cluster: "c", got: []string{"10.0.0.1"}, want: []string{"10.0.0.1", "10.0.0.2"}}
	cut := func(run *stickyRun, after string, err error, known ...string) { // the hosts of the next span were not known
		i := slices.IndexFunc(run.spans, func(sp span) bool { return sp.name == after }) + 1
		name, hosts := run.spans[i].name, run.spans[i].hosts
		end := run.spans[i].window.From
		run.spans, run.arrivals, run.shared[1] = run.spans[:i], run.arrivals[:i], expect.Window{}
		run.requests = slices.DeleteFunc(run.requests, func(r evidence.Request) bool { return r.Done > end.UnixNano() })
		if name == "joined" {
			run.weights = drive.Change{}
		}
		hosts.known = map[string]time.Time{}
		for _, p := range known {
			hosts.known[p] = hosts.ready
		}
		if len(known) == 0 {
			hosts.ready = time.Time{}
		}
		run.arrivals = append(run.arrivals, arrival{name: name, hosts: hosts, err: err})
	}
	for name, c := range map[string]struct {
		cut  func(run *stickyRun)
		fail []string // the only claims that do
		want map[string]verdict.Outcome
	}{
		"before anything": {func(run *stickyRun) {
			*run = stickyRun{plan: run.plan, namespace: run.namespace, meshed: true, policies: drive.Change{Applied: time.Unix(1_800_000_000, 0), Err: refused}}
		}, nil, map[string]verdict.Outcome{"live/policies": verdict.Inconclusive, "ttl/by-short": verdict.Inconclusive, "form/by-cookie": verdict.Inconclusive, "lost": verdict.Inconclusive}},
		"no pod joined": {func(run *stickyRun) { cut(run, "calm", timeout(errors.New("4 pods are Ready, not 5"))) }, nil,
			map[string]verdict.Outcome{"sticky/by-weight": verdict.Pass, "spread/by-cookie": verdict.Pass, "even/by-cookie": verdict.Pass, "form/by-cookie": verdict.Pass,
				"live/calm": verdict.Pass, "live/joined": verdict.Inconclusive, "live/left": verdict.Inconclusive, "live/weights": verdict.Inconclusive, "joined/by-cookie": verdict.Inconclusive,
				"kept/left/by-query": verdict.Inconclusive, "share/by-weight/50-50": verdict.Pass, "share/by-weight/20-80": verdict.Inconclusive}},
		"one proxy never knew who joined": {func(run *stickyRun) { cut(run, "calm", timeout(behind), agentAt(0), agentAt(1), agentAt(2)) }, []string{"live/joined"},
			map[string]verdict.Outcome{"table/by-cookie": verdict.Pass}},
		"no proxy could be asked": {func(run *stickyRun) { cut(run, "joined", timeout(refused), agentAt(0)) }, nil,
			map[string]verdict.Outcome{"live/left": verdict.Inconclusive, "live/joined": verdict.Pass, "kept/joined/by-query": verdict.Pass, "left/by-cookie": verdict.Inconclusive}},
		"the API server did not take the weights": {func(run *stickyRun) {
			run.weights.Taken, run.weights.Acks, run.weights.Err = false, nil, refused
		}, nil, map[string]verdict.Outcome{"live/weights": verdict.Inconclusive, "share/by-weight/20-80": verdict.Inconclusive}},
		"a proxy never acknowledged the weights": {func(run *stickyRun) {
			run.weights.Err = timeout(errors.New("p has not acknowledged"))
			run.weights.Acks = []verdict.ProxyAck{{Proxy: "p"}}
		}, []string{"live/weights"}, nil},
		"the control plane did not say who acknowledged": {func(run *stickyRun) { run.weights.Err = timeout(refused) }, nil,
			map[string]verdict.Outcome{"live/weights": verdict.Inconclusive, "share/by-weight/20-80": verdict.Pass}},
		"the control plane refused the weights": {func(run *stickyRun) { run.weights.Err = &env.RefusedError{Why: "no such host"} }, []string{"live/weights"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := stickyWorld{meshed: true}
			if strings.Contains(name, "did not take") { // weights stay what they were
				w.share = func(float64) float64 { return 0.5 }
			}
			run := simulateSticky(w, 11)
			c.cut(&run)
			got := outcomes(judgeSticky(run))
			for id, want := range c.want {
				if got[id].Outcome != want {
					t.Errorf("%s is %s, not %s: %s; %s", id, got[id].Outcome, want, got[id].Observed, got[id].Reason)
				}
			}
			if r := got["live/joined"]; r.Outcome == verdict.Fail && !strings.Contains(r.Reason, "gateway does not know them") {
				t.Errorf("%s: %s", r.Observed, r.Reason)
			}
			for id, c2 := range got {
				if (c2.Outcome == verdict.Fail) != slices.Contains(c.fail, id) {
					t.Errorf("%s is %s: %s; %s", id, c2.Outcome, c2.Observed, c2.Reason)
				}
			}
		})
	}
}

// A host that stalls excuses all but what no lack of CPU explains: the form of a cookie, and when it ends.
func TestStickyStalled(t *testing.T) {
	w := stickyWorld{meshed: true, late: 2 * expect.LateBound, owner: func(_ stickyService, _ string, hosts []string, n int) string { return hosts[n/3%len(hosts)] }}
	w.cookie = func(_ stickyService, line string) string { return strings.TrimSuffix(line, "; HttpOnly") }
	w.share = func(float64) float64 { return 0.6 }
	run := simulateSticky(w, 5)
	run.weights.Acks[0].At = run.weights.Applied.Add(2 * liveBound)
	excused := 0
	for _, c := range judgeSticky(run) {
		firm := strings.HasPrefix(c.ID, "form/")
		if (c.Outcome == verdict.Fail) != firm {
			t.Errorf("%s is %s: %s; %s", c.ID, c.Outcome, c.Observed, c.Reason)
		}
		if strings.Contains(c.Reason, "the host stalled") {
			excused++
		}
	}
	if excused < 20 {
		t.Errorf("%d claims were excused", excused)
	}
}

// The time of a cookie is exact: a client keeps it from some moment between its request and the end of the answer.
func TestStickyTTL(t *testing.T) {
	run := stickyRun{plan: newStickyPlan(lab.Quick)}
	s := run.plan.service("by-short")
	const answer = 40 * time.Millisecond
	for name, c := range map[string]struct {
		sessions  int
		gap, kept time.Duration // from one first request to the next; and, if not 0, to one that still has the cookie
		want      verdict.Outcome
	}{
		"as it says":         {135, s.ttl - answer, 0, verdict.Pass},
		"a moment too early": {135, s.ttl - answer - 1, 0, verdict.Fail},
		"sent to the end":    {135, 2 * s.ttl, s.ttl + answer, verdict.Pass},
		"sent beyond it":     {135, 2 * s.ttl, s.ttl + answer + 1, verdict.Fail},
		"too few":            {134, s.ttl, 0, verdict.Inconclusive},
		"both on their way":  {135, answer - 1, 0, verdict.Inconclusive},
	} {
		run.requests = nil
		for n := range c.sessions {
			add := func(after time.Duration, cookie, set string) {
				sent := time.Unix(1_800_000_000, 0).Add(after)
				run.requests = append(run.requests, evidence.Request{Stream: s.streams[0].name, Session: n + 1, Class: expect.OK,
					Sent: sent.UnixNano(), Done: sent.Add(answer).UnixNano(), Cookie: cookie, SetCookie: set})
			}
			add(0, "", `short="a"`)
			add(c.gap, "", `short="b"`)
			if c.kept > 0 {
				add(c.kept, `short="a"`, "")
			}
		}
		if got := run.judgeTTL(s); got.Outcome != c.want {
			t.Errorf("%s: %s: %s; %s", name, got.Outcome, got.Observed, got.Reason)
		}
	}
}

// On the exact ring a host that joins or leaves moves its own hashes alone, whatever the addresses; other tables move what they promise.
func TestTablesKeepTheirPromise(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var hosts []string
		for len(hosts) < podsAfter {
			if h := fmt.Sprintf("10.244.%d.%d:8080", rng.IntN(4), rng.IntN(250)+2); !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
		}
		for _, s := range []stickyService{{table: ringHash, ring: exactRing}, {table: ringHash}, {table: maglev}} {
			all := newTable(s, hosts)
			for i := range hosts {
				fewer := newTable(s, slices.Delete(slices.Clone(hosts), i, i+1))
				moved, astray := 0, 0
				const step = 1 << 50
				for h := uint64(step / 2); ; h += step {
					if a, b := all.owner(h), fewer.owner(h); a != b {
						moved++
						if a != hosts[i] {
							astray++
						}
					}
					if h > ^uint64(0)-step {
						break
					}
				}
				n := float64(uint64(1) << 14)
				switch share, other := float64(moved)/n, float64(astray)/n; {
				case s.ring == exactRing && other > 0:
					t.Fatalf("%v: %v of hashes moved that were of a host that stayed", hosts, other)
				case s.table == maglev && other > maglevError:
					t.Errorf("%v: Maglev moved %v beside", hosts, other)
				case s.promised() > 0 && share > s.promised():
					t.Errorf("%v: %s moved %v, promised %v", hosts, s.table, share, s.promised())
				}
			}
		}
	}
}

func TestSettled(t *testing.T) {
	s := settled{proxies: map[string]clusterHosts{}, known: map[string]time.Time{}}
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	two, versions := map[string]string{"10.0.0.1:8080": "a", "10.0.0.2:8080": "b"}, map[string]string{"10.0.0.1:8080": "v1", "10.0.0.2:8080": "v2"}
	parts := []part{{service: "s"}, {"s", "v1"}}
	whole := clusterHosts{parts[0].cluster("ns"): {"10.0.0.2:8080", "10.0.0.1:8080"}}
	if err := s.see(two, versions, 3, at(1)); err == nil || !s.ready.IsZero() {
		t.Errorf("two of three pods are enough: %v", err)
	}
	if err := s.see(two, versions, 2, at(2)); err != nil || s.ready != at(2) {
		t.Errorf("Ready at %s: %v", s.ready, err)
	}
	var behind *behindError
	if err := s.hear("ns", "p", whole, parts, at(3)); !errors.As(err, &behind) || behind.cluster != parts[1].cluster("ns") {
		t.Errorf("a cluster of a version is not there: %v", err)
	}
	whole[parts[1].cluster("ns")] = []string{"10.0.0.1:8080"}
	for n := range 2 {
		if err := s.hear("ns", "p", whole, parts, at(4+n)); err != nil {
			t.Error(err)
		}
	}
	if acks := s.acks(); len(acks) != 1 || !acks[0].Acked || acks[0].At != at(4) {
		t.Errorf("known as %v", acks)
	}
	if err := s.see(map[string]string{"10.0.0.1:8080": "a", "10.0.0.3:8080": "c"}, versions, 2, at(7)); err != nil || s.ready != at(7) || s.acks()[0].Acked {
		t.Errorf("other pods are not new: ready at %s, %v", s.ready, err)
	}
}
