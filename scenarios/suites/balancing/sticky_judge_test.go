package balancing

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
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
	meshed bool
}

// simulateSticky makes the evidence of a quick run.
func simulateSticky(w stickyWorld, seed uint64) stickyRun {
	rng := rand.New(rand.NewPCG(seed, 2))
	run := stickyRun{plan: newStickyPlan(lab.Quick), namespace: testNamespace, agentIP: "10.0.0.99", meshed: w.meshed, seen: drive.Seen{Host: record.Host{CPUStall: 0.3}}}
	start := time.Unix(1_800_000_000, 0)
	addr := func(i int) string { return fmt.Sprintf("10.0.0.%d:8080", i) }
	sets := [][]int{{1, 2, 3, 4}, {1, 2, 3, 4, 5}, {2, 3, 4, 5}} // 1, 2 and 5 are v1
	at := start
	for i, name := range []string{"calm", "joined", "left"} {
		h := settled{pods: map[string]string{}, versions: map[string]string{}, proxies: map[string]clusterHosts{}}
		v := map[string][]string{}
		for _, n := range sets[i] {
			version := "v1"
			if n == 3 || n == 4 {
				version = "v2"
			}
			h.pods[addr(n)], h.versions[addr(n)] = fmt.Sprint("pod-", n), version
			v[""], v[version] = append(v[""], addr(n)), append(v[version], addr(n))
		}
		for _, p := range []string{atGateway, atAgent} {
			h.proxies[p] = clusterHosts{}
			for _, s := range run.plan.services {
				for subset, hosts := range v {
					h.proxies[p][clusterName(testNamespace, s.name, subset)] = hosts
				}
			}
		}
		length := []time.Duration{run.plan.calm, run.plan.joined, run.plan.left}[i]
		run.spans = append(run.spans, span{name: name, window: expect.Window{From: at, To: at.Add(length)}, hosts: h})
		at = at.Add(length + time.Second)
	}
	run.shared = [2]expect.Window{run.spans[0].window, run.spans[1].window}
	run.weights = drive.Change{Applied: run.spans[1].window.From, Acked: run.spans[1].window.From, Acks: []verdict.ProxyAck{{Proxy: "p", Acked: true, At: run.spans[1].window.From.Add(time.Millisecond)}}}
	for _, s := range run.plan.services {
		for _, st := range s.streams {
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
			tables[v] = newTable(s.table, sp.hosts.proxies[st.at()][clusterName(run.namespace, s.name, v)])
		}
		for at := sp.window.From; at.Before(sp.window.To.Add(-10 * time.Millisecond)); at = at.Add(time.Duration(float64(time.Second) / st.rate)) {
			r := evidence.Request{Stream: st.name, Seq: uint64(n), Intended: at.UnixNano(), Sent: at.UnixNano(), Done: at.Add(time.Millisecond).UnixNano(), Code: 200, Class: expect.OK, App: "hello"}
			if st.sessions > 0 {
				r.Session = n%st.sessions + 1
			}
			n++
			if s.by == byCookie {
				if j := jars[r.Session]; j != nil && (s.ttl == 0 || at.Before(j.until)) {
					r.Cookie = fmt.Sprintf(`%s="%s"`, s.cookie, j.value)
				} else {
					j := &jar{value: fmt.Sprintf("%016x", rng.Uint64()), until: at.Add(time.Millisecond).Add(s.ttl)}
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
			_, hash, ok := s.hashOf(r, run.agentIP)
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
	for seed := range uint64(5) {
		for _, c := range judgeSticky(simulateSticky(stickyWorld{meshed: true}, seed)) {
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
			"sticky/by-cookie": "went from", "sticky/by-header": "went from", "sticky/by-source": "10.0.0.99 went from",
			"form/by-cookie": "no cookie although the request had none", "ttl/by-short": "no session was given a cookie", "table/by-query": "owns it at the gateway",
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
			for _, id := range []string{"lost", "live/weights", expect.GuardID} {
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
		sum := 0.0
		tab := newTable(kind, hosts)
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
		fewer := newTable(kind, hosts[:5])
		if m := tab.moved(fewer); m < tab.shares()[hosts[5]]*0.99 || m > tab.shares()[hosts[5]]+0.12 {
			t.Errorf("%s: %v of hashes move when a host with %v leaves", kind, m, tab.shares()[hosts[5]])
		}
	}
	if newTable(ringHash, nil) != nil {
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
