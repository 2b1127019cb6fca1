package balancing

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/fixtures/apps/service"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

// outlierWorld is a mesh as a simulation has it. Zero fields are those of an honest one.
type outlierWorld struct {
	profile lab.Profile   // quick if ""
	phase   time.Duration // of the sweeps
	slow    time.Duration // mean time of an answer on each side of the proxy, beside the half millisecond
	seed    uint64
	off     bool                         // nothing is ever ejected
	offIn   int                          // nothing is ejected in this round, from 1
	extra   int                          // errors beyond the threshold
	early   int                          // errors below it, for a host that hangs
	totals  bool                         // errors count that are not in a row
	once    bool                         // a host is ejected once in a fault
	ungrown bool                         // each time for the base time
	stay    time.Duration                // instead of the base time
	cap     float64                      // of halfAtMost, instead of 0.5
	small   bool                         // one host is ejected whatever its share
	panics  bool                         // without panic mode where it is asked for
	eager   bool                         // panic as soon as one host is out
	atHalf  bool                         // panic with just as many hosts well as minHealthPercent
	sparing bool                         // panic only where nobody is left
	silent  string                       // place of a proxy that does not count what it refuses
	counted func(refusal) int            // how often a refusal is counted, and one that was none; nil is as it should be
	another func(host string) string     // who is ejected for the errors of a host
	counts  func(step string, n int) int // what the pods say they failed
	heals   time.Duration                // how late each fault is healed
}

// simulateOutlier makes the evidence of a run: hosts have their turns, and every proxy does as Envoy does.
func simulateOutlier(w outlierWorld) outlierRun {
	run := outlierRun{
		plan: newOutlierPlan(cmp.Or(w.profile, lab.Quick)), namespace: "outlier-hello", pods: map[string]string{}, proxyEvents: map[string][]outlierEvent{},
		meshed: true, shown: map[string]showing{atGateway: {}, atAgent: {}}, overflow: map[string]map[string]int{}, seen: drive.Seen{Host: record.Host{CPUStall: 0.3}},
	}
	var hosts []string
	for i := range run.plan.pods {
		hosts = append(hosts, fmt.Sprintf("10.0.0.%d:8080", i+1))
		run.pods[hosts[i]] = fmt.Sprint("pod-", i+1)
	}
	start := time.Unix(1_800_000_000, 0)
	at := start.Add(run.plan.calm)
	for range run.plan.repeat {
		for i, step := range run.plan.faults {
			f := fault{step: step, hosts: []string{hosts[i%len(hosts)]}, complete: true, before: map[string]service.Counters{}, after: map[string]service.Counters{}}
			if step.all {
				f.hosts, at = hosts, at.Add(8*time.Second)
			}
			f.from, f.to = at, at.Add(step.lasts+w.heals)
			at = f.to.Add(step.pause)
			if step.all {
				before := tally{from: f.from.Add(-20 * time.Millisecond), to: f.from.Add(-10 * time.Millisecond)}
				after := tally{from: f.to.Add(8 * time.Second), to: f.to.Add(8*time.Second + 10*time.Millisecond)}
				run.refusals = append(run.refusals, refusals{fault: len(run.faults), before: before, after: after})
			}
			run.faults = append(run.faults, f)
		}
		at = at.Add(8 * time.Second)
		run.rounds = append(run.rounds, expect.Window{From: at, To: at.Add(run.plan.after)})
		at = at.Add(run.plan.after)
	}
	run.ended = at
	run.read = at
	failures := map[int]map[string]int{}
	for _, s := range run.plan.services {
		for _, st := range s.streams {
			sim := simulation{run: &run, world: w, service: s, stream: st, hosts: hosts, states: map[string]*simulatedHost{}, failures: failures, rng: rand.New(rand.NewPCG(7, w.seed))}
			sim.carryOut(start)
			for i := range run.refusals {
				for _, t := range []*tally{&run.refusals[i].before, &run.refusals[i].after} {
					put(&t.counts, st.at(), s.name, sim.refusedBy(t.to))
				}
			}
			put(&run.overflow, st.at(), s.name, sim.refusedBy(run.read))
		}
	}
	for at := range run.proxyEvents {
		slices.SortStableFunc(run.proxyEvents[at], func(a, b outlierEvent) int { return a.Timestamp.Compare(b.Timestamp) })
	}
	for i := range run.faults {
		f := &run.faults[i]
		for _, h := range f.hosts {
			n := failures[i][h]
			if w.counts != nil {
				n = w.counts(f.step.name, n)
			}
			kind := map[bool]string{true: "status"}[f.step.fail.Status != 0]
			switch {
			case f.step.fail.Reset:
				kind = "reset"
			case f.step.fail.Refuse:
				kind, n = "refuse", 1
			case f.step.fail.Hang != "":
				kind = "hang"
			}
			f.before[h], f.after[h] = service.Counters{Failed: map[string]int{}}, service.Counters{Failed: map[string]int{kind: n}}
		}
	}
	return run
}

func put(counts *map[string]map[string]int, at, service string, n int) {
	if *counts == nil {
		*counts = map[string]map[string]int{}
	}
	if (*counts)[at] == nil {
		(*counts)[at] = map[string]int{}
	}
	(*counts)[at][service] = n
}

// refusal is a row that was completed, and did not take its host out.
type refusal struct {
	at      time.Time
	host    string
	gateway bool // a row of gateway errors, which is not enforced
	earlier int  // refusals of the host
	none    bool // it is an error that completed no row
	ejected bool // the host was out already, or is now
	percent int  // maxEjectionPercent
}

// simulation is one stream, whose requests go to the hosts that are in, one after the other.
type simulation struct {
	run      *outlierRun
	world    outlierWorld
	service  watched
	stream   watchedStream
	hosts    []string
	states   map[string]*simulatedHost
	pending  []simulatedAnswer
	failures map[int]map[string]int // by the fault's place, and host
	rng      *rand.Rand
	turn     int
	refused  []time.Time
}

// refusedBy is how many refusals were counted up to a time.
func (m *simulation) refusedBy(t time.Time) int {
	n := 0
	for _, at := range m.refused {
		if !at.After(t) {
			n++
		}
	}
	return n
}

// refuse counts a refusal, or what may be taken for one.
func (m *simulation) refuse(r refusal) {
	r.percent = m.service.percent
	n := map[bool]int{true: 1}[!r.none && !r.ejected]
	if m.world.counted != nil {
		n = m.world.counted(r)
	}
	if m.stream.at() == m.world.silent {
		n = 0
	}
	for range n {
		m.refused = append(m.refused, r.at)
	}
}

type simulatedHost struct {
	row, ejections, backoff int
	gateway, refused        int // gateway errors in a row, and refusals in all
	out, back               time.Time
	outIn                   *fault // that it was last ejected for
}

// simulatedAnswer is one that the proxy will count.
type simulatedAnswer struct {
	at   time.Time
	host string
	code int
	met  *fault // nil for a good one
}

func (m *simulation) carryOut(start time.Time) {
	for _, h := range m.hosts {
		m.states[h] = &simulatedHost{}
	}
	for at := start; at.Before(m.run.ended); at = at.Add(time.Duration(float64(time.Second) / m.stream.rate)) {
		slices.SortStableFunc(m.pending, func(a, b simulatedAnswer) int { return a.at.Compare(b.at) })
		for len(m.pending) > 0 && m.pending[0].at.Before(at) {
			a := m.pending[0]
			m.pending = m.pending[1:]
			m.sweep(start.Add(m.world.phase), a.at)
			m.count(a)
		}
		m.sweep(start.Add(m.world.phase), at)
		m.send(at)
	}
}

func (m *simulation) event(t time.Time, host, action string, n int) {
	at := m.stream.at()
	m.run.proxyEvents[at] = append(m.run.proxyEvents[at], outlierEvent{
		Timestamp: t, Cluster: clusterName(m.run.namespace, m.service.name, ""), Host: host, Action: action, Number: n, Enforced: true,
	})
}

// sweep lets hosts return in the sweeps, which are every interval from the start.
func (m *simulation) sweep(start, at time.Time) {
	for _, h := range m.hosts {
		x := m.states[h]
		if x.out.IsZero() {
			continue
		}
		due, every := x.out.Add(cmp.Or(m.world.stay, m.run.plan.base)*time.Duration(x.backoff)), m.run.plan.interval
		if sweep := start.Add((due.Sub(start) + every - 1) / every * every); !sweep.After(at) {
			m.event(sweep, h, "UNEJECT", x.ejections)
			x.out, x.back, x.row, x.gateway = time.Time{}, sweep, 0, 0
		}
	}
}

func (m *simulation) send(at time.Time) {
	var in []string
	for _, h := range m.hosts {
		if m.states[h].out.IsZero() {
			in = append(in, h)
		}
	}
	percent := 100 * len(in) / len(m.hosts)
	few := percent < m.service.health || m.world.eager && percent < 100 || m.world.atHalf && percent == m.service.health
	if m.world.sparing {
		few = len(in) == 0
	}
	if m.service.health > 0 && few && !m.world.panics {
		in = m.hosts
	}
	r := evidence.Request{Stream: m.stream.name, Intended: at.UnixNano(), Sent: at.UnixNano(), Done: at.Add(time.Millisecond).UnixNano(), Code: 200, Class: expect.OK}
	if len(in) == 0 {
		r.Code, r.Class = 503, "status"
		m.run.requests = append(m.run.requests, r)
		return
	}
	host := in[m.turn%len(in)]
	m.turn++
	r.Pod, r.Version = m.run.pods[host], "v1"
	a := simulatedAnswer{at: at.Add(500 * time.Microsecond), host: host, code: 200}
	for i := range m.run.faults {
		f := &m.run.faults[i]
		// Who refuses does so on the second address alone.
		if !slices.Contains(f.hosts, host) || at.Before(f.from) || !at.Before(f.to) || f.step.fail.Refuse && !m.service.second {
			continue
		}
		if f.step.share > 0 && m.rng.Float64() >= f.step.share {
			continue
		}
		a.met, a.code = f, cmp.Or(f.step.fail.Status, 503)
		if f.step.fail.Status == 0 {
			r.Pod = ""
		}
		if f.step.fail.Hang != "" {
			a.code, a.at, r.Done = 504, a.at.Add(m.run.plan.timeout), r.Done+int64(m.run.plan.timeout)
		}
		r.Code, r.Class = a.code, "status"
		if m.failures[i] == nil {
			m.failures[i] = map[string]int{}
		}
		m.failures[i][host]++
	}
	for _, part := range []*time.Time{&a.at, nil} {
		d := time.Duration(m.rng.ExpFloat64() * float64(m.world.slow))
		if r.Done += int64(d); part != nil {
			*part = part.Add(d)
		}
	}
	m.run.requests = append(m.run.requests, r)
	m.pending = append(m.pending, a)
}

// count has the proxy count an answer, and eject the host if that completes a row.
func (m *simulation) count(a simulatedAnswer) {
	x := m.states[a.host]
	counts := a.code >= 500
	switch name, _, _ := strings.Cut(m.service.policy, ":"); name {
	case "consecutiveGatewayErrors", "consecutiveErrors":
		counts = a.code >= 502
	case "splitExternalLocalOriginErrors":
		counts = a.met != nil && a.met.step.fail.Refuse
	}
	if m.service.kind == serverErrors {
		m.gatewayRow(x, a)
	}
	if !counts {
		if !m.world.totals {
			x.row = 0
		}
		return
	}
	x.row++
	limit := m.service.errors + m.world.extra
	if a.met.step.fail.Hang != "" {
		limit -= m.world.early
	}
	round := 1 + slices.IndexFunc(m.run.rounds, func(w expect.Window) bool { return a.at.Before(w.To) })
	if x.row != limit || m.world.off || m.world.offIn == round || !x.out.IsZero() || m.world.once && x.outIn == a.met {
		return
	}
	x.row = 0
	if m.reached() {
		m.refuse(refusal{at: a.at, host: a.host, earlier: x.refused})
		x.refused++
		return
	}
	host := a.host
	if m.world.another != nil {
		host = m.world.another(a.host)
	}
	y := m.states[host]
	if !y.out.IsZero() {
		return
	}
	// Backoff shrinks with each sweep that found the host well.
	if !y.back.IsZero() {
		for t := y.back.Add(m.run.plan.interval); t.Before(a.at); t = t.Add(m.run.plan.interval) {
			y.backoff = max(0, y.backoff-1)
		}
	}
	if y.ejections, y.backoff, y.out, y.outIn = y.ejections+1, y.backoff+1, a.at, a.met; m.world.ungrown {
		y.backoff = 1
	}
	m.event(y.out, host, "EJECT", y.ejections)
	m.refuse(refusal{at: a.at, host: host, ejected: true})
}

// gatewayRow has the cap refuse, after five gateway errors, what would not be enforced.
func (m *simulation) gatewayRow(x *simulatedHost, a simulatedAnswer) {
	if a.code >= 500 && x.out.IsZero() {
		m.refuse(refusal{at: a.at, host: a.host, none: true})
	}
	if a.code < 502 {
		x.gateway = 0
		return
	}
	if x.gateway++; x.gateway != gatewayRow || m.world.off {
		return
	}
	switch {
	case !x.out.IsZero():
		m.refuse(refusal{at: a.at, host: a.host, gateway: true, ejected: true})
	case m.reached():
		x.gateway = 0
		m.refuse(refusal{at: a.at, host: a.host, gateway: true, earlier: x.refused})
		x.refused++
	default:
		x.gateway = 0
	}
}

// reached says whether as many hosts are out as may be.
func (m *simulation) reached() bool {
	out := 0
	for _, y := range m.states {
		if !y.out.IsZero() {
			out++
		}
	}
	most := m.service.most(len(m.hosts))
	switch {
	case m.service.name == halfAtMost && m.world.cap > 0:
		most = int(m.world.cap * float64(len(m.hosts)))
	case m.service.name == tenthAtMost && m.world.small:
		most = 1
	}
	return out >= most
}

func TestAnHonestMeshEjects(t *testing.T) {
	worlds := []outlierWorld{{profile: lab.Nightly}}
	for phase := time.Duration(0); phase < time.Second; phase += 130 * time.Millisecond {
		worlds = append(worlds, outlierWorld{phase: phase})
	}
	for _, w := range worlds {
		claims := judgeOutlier(simulateOutlier(w))
		for _, c := range claims {
			if c.Outcome != verdict.Pass {
				t.Errorf("%+v: %s is %s: %s; %s", w, c.ID, c.Outcome, c.Observed, c.Reason)
			}
		}
		if len(claims) < 39 {
			t.Errorf("%d claims: %v", len(claims), slices.Sorted(maps.Keys(outcomes(claims))))
		}
	}
}

// A proxy that does as Envoy does is never found wrong, however long answers take and whatever overtakes what.
func TestOutlierNeverWrongsAnHonestMesh(t *testing.T) {
	for _, slow := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
		for seed := range uint64(10) {
			if wrong := wrongly(judgeOutlier(simulateOutlier(outlierWorld{slow: slow, seed: seed}))); wrong != "" {
				t.Errorf("answers take %s, seed %d: %s", slow, seed, wrong)
			}
		}
	}
}

// Each way to break a mesh, or the harness, fails the claims that name it.
func TestOutlierMutants(t *testing.T) {
	for name, c := range map[string]struct {
		w    outlierWorld
		want map[string]string
	}{
		"nothing is ejected": {outlierWorld{off: true}, map[string]string{
			"ejected/answers-503/all-5xx": "gateway never took the host out", "ejected/refuses-connections/local-errors": "agent never took", "in-a-row": "did not take the host out",
			"cost/all-5xx": "requests failed", "grown": "took the host out 0 times", "all-bad/all-5xx": "never had all 4 hosts out", "all-bad/half-at-most": "the cap was never tried",
			"small/tenth-at-most": "no ejections_overflow", "half-out/half-at-most": "never had exactly 2", "more-than-half-out/three-quarters": "never had exactly 3",
			"refused/half-at-most": "refused 0", "refused/three-quarters": "refused 0", "refused/tenth-at-most": "refused 0",
		}},
		"one error late": {outlierWorld{extra: 1}, map[string]string{
			"ejected/answers-503/all-5xx": "after 6 errors", "ejected/resets/old-name": "after 3 errors", "ejected/hangs/all-5xx": "after 6 errors",
			"ejected/refuses-connections/local-errors": "after 4 errors",
		}},
		"one error early": {outlierWorld{extra: -1}, map[string]string{"ejected/answers-503/all-5xx": "after 4 errors", "ejected/hangs/gateway-errors": "after 2 errors"}},
		// Ten more are on their way by then, and fail as well.
		"hangs count too early": {outlierWorld{early: 1}, map[string]string{"ejected/hangs/all-5xx": "after 4 errors", "ejected/hangs/old-name": "after 1 errors"}},
		"totals count":          {outlierWorld{totals: true}, map[string]string{"in-a-row": "all-5xx: agent took"}},
		"out for too short":     {outlierWorld{stay: 500 * time.Millisecond}, map[string]string{"returned": "was out for"}},
		"out for too long":      {outlierWorld{stay: 4500 * time.Millisecond}, map[string]string{"returned": "was out for"}},
		"never a second time":   {outlierWorld{once: true}, map[string]string{"grown": "took the host out 1 times", "cost/all-5xx": "requests failed"}},
		"no growth":             {outlierWorld{ungrown: true}, map[string]string{"grown": "took the host out again for", "returned": "was out for"}},
		"the cap does nothing":  {outlierWorld{cap: 1}, map[string]string{"all-bad/half-at-most": "4 hosts were out at once"}},
		"a host fewer is out": {outlierWorld{cap: 0.25}, map[string]string{
			"all-bad/half-at-most": "only 1 hosts were out", "half-out/half-at-most": "gateway's proxy never had exactly 2 of 4 hosts out",
		}},
		"refused without being counted": {outlierWorld{counted: func(refusal) int { return 0 }}, map[string]string{
			"refused/half-at-most": "gateway's proxy in the fault of 08:00:29.000 refused 0, ", "refused/tenth-at-most": "agent's proxy in the fault of 08:00:29.000 refused 0, ",
			"refused/three-quarters": "refused 0, ", "small/tenth-at-most": "agent's proxy counts no ejections_overflow",
		}},
		"the gateway counts nothing": {outlierWorld{silent: atGateway}, map[string]string{
			"refused/half-at-most": "gateway's proxy in the fault of 08:00:29.000 refused 0, ", "all-bad/half-at-most": "gateway's proxy counts no", "small/tenth-at-most": "gateway's proxy counts no",
		}},
		// A row that is not reset when it is refused has no end a second time.
		"refused once a host": {outlierWorld{counted: func(r refusal) int {
			return map[bool]int{true: 1}[!r.none && !r.ejected && r.earlier == 0]
		}}, map[string]string{"refused/half-at-most": "refused 1, 38 were due", "refused/three-quarters": "were due", "refused/tenth-at-most": "refused 0, 40 were due"}},
		"each error is refused": {outlierWorld{counted: func(r refusal) int { return map[bool]int{true: 1}[r.none && r.percent < 75 && r.percent > 0] }}, map[string]string{
			"refused/half-at-most": "were due", "refused/three-quarters": "refused 0",
		}},
		"rows that are not enforced are not counted": {outlierWorld{counted: func(r refusal) int { return map[bool]int{true: 1}[!r.none && !r.ejected && !r.gateway] }}, map[string]string{
			"refused/half-at-most": "refused 24, 38 were due", "refused/tenth-at-most": "refused 24, 40 were due", "refused/three-quarters": "were due",
		}},
		"an ejection counts as refused": {outlierWorld{counted: func(r refusal) int { return map[bool]int{true: 1}[!r.none] }}, map[string]string{
			"refused/half-at-most": "refused 40, 38 were due", "refused/none": "gateway's proxy refused", "refused/three-quarters": "were due",
		}},
		"twice each": {outlierWorld{counted: func(r refusal) int { return map[bool]int{true: 2}[!r.none && !r.ejected] }}, map[string]string{
			"refused/half-at-most": "refused 76, 38 were due", "refused/tenth-at-most": "refused 80, 40 were due", "refused/three-quarters": "were due",
		}},
		"panic with just half well":  {outlierWorld{atHalf: true}, map[string]string{"half-out/half-at-most": "pod-1, which was out"}},
		"no panic while one is left": {outlierWorld{sparing: true}, map[string]string{"more-than-half-out/three-quarters": "with 3 of 4 hosts out the agent's proxy reached only 1"}},
		"one is always ejected":      {outlierWorld{small: true}, map[string]string{"small/tenth-at-most": "times a host was taken out", "others": "tenth-at-most"}},
		"no panic":                   {outlierWorld{panics: true}, map[string]string{"all-bad/with-panic": "to no host", "more-than-half-out/three-quarters": "reached only 1"}},
		"panic for one host":         {outlierWorld{eager: true}, map[string]string{"one-bad/with-panic": "to pod-1", "half-out/half-at-most": "which was out", "ejected/answers-503/with-panic": "more errors from"}},
		"nothing in round three": {outlierWorld{profile: lab.Nightly, offIn: 3}, map[string]string{
			"ejected/answers-503/all-5xx": "gateway never took the host out in the fault of", "ejected/hangs/old-name": "agent never", "cost/all-5xx": "requests failed",
			"grown": "took the host out 0 times", "all-bad/all-5xx": "never had all 4 hosts out", "all-bad/half-at-most": "the cap was never tried",
		}},
		"the next host": {outlierWorld{another: func(h string) string {
			return map[string]string{"10.0.0.1:8080": "10.0.0.2:8080"}[h] + map[bool]string{true: h}[h != "10.0.0.1:8080"]
		}}, map[string]string{"others": "pod-2"}},
		"the fault elsewhere": {outlierWorld{counts: func(step string, n int) int { return n / 2 }}, map[string]string{"proof/answers-503": "the clients", "proof/hangs": "the clients"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.w.slow = time.Millisecond
			got := outcomes(judgeOutlier(simulateOutlier(c.w)))
			for id, words := range c.want {
				if c := got[id]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, words) {
					t.Errorf("%s is %s: %s; %s", id, c.Outcome, c.Observed, c.Reason)
				}
			}
		})
	}
}

// wrongly are the claims that fail.
func wrongly(claims []verdict.Claim) string {
	var out []string
	for _, c := range claims {
		if c.Outcome == verdict.Fail {
			out = append(out, fmt.Sprintf("%s: %s; %s", c.ID, c.Observed, c.Reason))
		}
	}
	return strings.Join(out, "\n")
}

// What a fault costs follows from the ejections, also where it was healed late: the bound is not a matter of time.
func TestOutlierHealedLate(t *testing.T) {
	for _, late := range []time.Duration{400 * time.Millisecond, 900 * time.Millisecond, 1700 * time.Millisecond, 2500 * time.Millisecond} {
		got := outcomes(judgeOutlier(simulateOutlier(outlierWorld{heals: late})))
		if c := got["cost/all-5xx"]; c.Outcome != verdict.Pass {
			t.Errorf("%s late: %s: %s; %s", late, c.Outcome, c.Observed, c.Reason)
		}
	}
	pl := newOutlierPlan(lab.Quick)
	for i, f := range pl.faults {
		times := 1
		if i == 0 {
			times = 3 // the base time, and twice that
		}
		if most := time.Duration(times) * pl.base; f.lasts >= most {
			t.Errorf("%s lasts %s, a host is back after %s", f.name, f.lasts, most)
		}
	}
}

// cutOff is a run whose load was over at a time.
func cutOff(run outlierRun, at time.Time) outlierRun {
	run.requests = slices.DeleteFunc(slices.Clone(run.requests), func(r evidence.Request) bool { return r.Done > at.UnixNano() })
	run.faults = slices.DeleteFunc(slices.Clone(run.faults), func(f fault) bool { return f.from.After(at) })
	run.rounds = slices.DeleteFunc(slices.Clone(run.rounds), func(w expect.Window) bool { return w.To.After(at) })
	run.proxyEvents = maps.Clone(run.proxyEvents)
	for name, list := range run.proxyEvents {
		run.proxyEvents[name] = slices.DeleteFunc(slices.Clone(list), func(ev outlierEvent) bool { return ev.Timestamp.After(at) })
	}
	for i := range run.faults {
		if f := &run.faults[i]; f.to.After(at) {
			f.to, f.complete, f.after = time.Time{}, false, nil
		}
	}
	if len(run.made(run.plan.faults[0])) == 0 {
		run.shown, run.overflow = nil, nil
	}
	run.refusals = slices.DeleteFunc(slices.Clone(run.refusals), func(r refusals) bool { return r.after.to.After(at) })
	run.end(at, true)
	run.read = at
	return run
}

// A load that was over before the steps were leaves claims open, and fails none.
func TestOutlierCutOff(t *testing.T) {
	whole := simulateOutlier(outlierWorld{})
	for d := time.Duration(0); d < whole.ended.Sub(whole.faults[0].from); d += 300 * time.Millisecond {
		claims := judgeOutlier(cutOff(whole, whole.faults[0].from.Add(d)))
		if wrong := wrongly(claims); wrong != "" {
			t.Errorf("cut off %s after the first fault began: %s", d, wrong)
		}
		if c := outcomes(claims)["back"]; c.Outcome != verdict.Inconclusive {
			t.Errorf("cut off %s after the first fault began: back is %s", d, c.Outcome)
		}
	}
	// What went wrong before is wrong.
	late := simulateOutlier(outlierWorld{extra: 1})
	if c := outcomes(judgeOutlier(cutOff(late, late.faults[2].from)))["ejected/answers-503/all-5xx"]; c.Outcome != verdict.Fail {
		t.Errorf("a late ejection before the load was over is %s", c.Outcome)
	}
}

// A proxy that could not be asked fails nothing.
func TestOutlierUnread(t *testing.T) {
	run := simulateOutlier(outlierWorld{})
	run.unread = map[string]error{atAgent: errors.New("connection refused"), "stats": errors.New("connection refused")}
	run.proxyEvents[atAgent], run.overflow = nil, nil
	run.shown[atAgent] = showing{err: errors.New("connection refused")}
	claims := judgeOutlier(run)
	if wrong := wrongly(claims); wrong != "" {
		t.Error(wrong)
	}
	for _, id := range []string{"ejected/hangs/old-name", "others", "returned", "grown", "all-bad/with-panic", "all-bad/half-at-most", "small/tenth-at-most", "shown",
		"half-out/half-at-most", "more-than-half-out/three-quarters", "refused/half-at-most", "refused/none"} {
		if c := outcomes(claims)[id]; c.Outcome != verdict.Inconclusive || !strings.Contains(c.Reason, "could not be asked") {
			t.Errorf("%s is %s: %s", id, c.Outcome, c.Reason)
		}
	}
}

// A stall of the host around what is wrong leaves the claim open; one elsewhere does not.
func TestOutlierStall(t *testing.T) {
	for name, w := range map[string]outlierWorld{
		"late": {extra: 1}, "off": {off: true}, "once": {once: true}, "early": {early: 1}, "other": {another: func(string) string { return "10.0.0.4:8080" }}, "short": {stay: 100 * time.Millisecond},
		"cap": {cap: 1}, "small": {small: true}, "panic": {panics: true}, "eager": {eager: true}, "half": {atHalf: true}, "sparing": {sparing: true}, "silent": {silent: atAgent}, "counts": {counts: func(_ string, n int) int { return n + 9 }},
	} {
		run := simulateOutlier(w)
		run.shown[atAgent] = showing{missing: []string{"nothing"}}
		for i := range run.requests {
			run.requests[i].Intended -= int64(2 * expect.LateBound)
		}
		if wrong := wrongly(judgeOutlier(run)); wrong != "" {
			t.Errorf("%s: %s", name, wrong)
		}
	}
	run := simulateOutlier(outlierWorld{extra: 1})
	for i := range run.requests {
		if time.Unix(0, run.requests[i].Sent).After(run.faults[6].from) {
			run.requests[i].Intended -= int64(2 * expect.LateBound)
		}
	}
	if c := outcomes(judgeOutlier(run))["ejected/answers-503/all-5xx"]; c.Outcome != verdict.Fail {
		t.Errorf("a stall at the end excuses what went wrong at the beginning: %s: %s", c.Outcome, c.Reason)
	}
}

// A row is counted from the last good answer, in the order in which answers came; what overlaps may be in it or not.
func TestRow(t *testing.T) {
	ms := func(n int) time.Time { return time.Unix(1_800_000_000, 0).Add(time.Duration(n) * time.Millisecond) }
	at := func(from, to int, bad bool) answer {
		return answer{sent: ms(from), from: ms(from), to: ms(to), bad: bad}
	}
	for name, c := range map[string]struct {
		list           []answer
		since, at      int
		sure, possible int
	}{
		"three":                        {[]answer{at(100, 101, true), at(200, 201, true), at(300, 310, true)}, 0, 305, 2, 3},
		"after a good one":             {[]answer{at(100, 101, true), at(150, 151, false), at(200, 201, true), at(300, 310, true)}, 0, 305, 1, 2},
		"a good one that came earlier": {[]answer{at(100, 151, false), at(120, 140, true), at(200, 201, true), at(300, 310, true)}, 0, 305, 1, 3},
		"since the host was back":      {[]answer{at(100, 101, true), at(200, 201, true), at(300, 310, true)}, 150, 305, 1, 2},
		"on its way when it was back":  {[]answer{at(100, 180, true), at(200, 201, true), at(300, 310, true)}, 150, 305, 1, 3},
		"one without an answer":        {[]answer{at(100, 101, true), {sent: ms(200), from: ms(200), to: ms(201), bad: true, unsure: true}, at(300, 310, true)}, 0, 305, 1, 3},
		"later":                        {[]answer{at(200, 201, true), at(400, 401, true)}, 0, 305, 1, 1},
	} {
		if sure, possible := row(c.list, ms(c.since), ms(c.at)); sure != c.sure || possible != c.possible {
			t.Errorf("%s: %d to %d, want %d to %d", name, sure, possible, c.sure, c.possible)
		}
	}
}

// A request may have been sent while its host was out, and have met the proxy when it was back: it begins another row.
func TestExplained(t *testing.T) {
	ms := func(n int) time.Time { return time.Unix(1_800_000_000, 0).Add(time.Duration(n) * time.Millisecond) }
	w := expect.Window{From: ms(0), To: ms(10_000)}
	for name, c := range map[string]struct {
		sent, answered int
		want           int
	}{
		"in flight when it was taken out":      {340, 430, 6},
		"while it was out":                     {2000, 2010, 5},
		"while it was out, answered just then": {2950, 2990, 5},
		"before it was back":                   {2990, 3020, 6},
		"after it was back":                    {3010, 3020, 6},
	} {
		h := history{stays: []stay{{host: "h", from: ms(330), to: ms(3000)}}, answers: map[string][]answer{}}
		for _, a := range [][2]int{{10, 12}, {90, 92}, {170, 172}, {250, 252}, {329, 332}, {c.sent, c.answered}} {
			h.answers["h"] = append(h.answers["h"], answer{sent: ms(a[0]), from: ms(a[0]), to: ms(a[1]), bad: true})
		}
		if got := h.explained("h", w, 5); got != c.want {
			t.Errorf("%s: %d explained, want %d", name, got, c.want)
		}
	}
}

// A request that is answered when its host is back may have been sent to it rightly, however early it left.
func TestOutlierBackMeanwhile(t *testing.T) {
	for _, c := range []struct {
		id, service, stream string
		all                 bool // of the fault of all, or the first
	}{
		{"one-bad/with-panic", withPanic, "outlier-panic-mesh", false}, {"half-out/half-at-most", halfAtMost, "outlier-half-mesh", true},
		{"all-bad/all-5xx", all5xx, "outlier-5xx-mesh", true},
	} {
		for _, late := range []bool{false, true} {
			run := simulateOutlier(outlierWorld{})
			f := run.faults[0]
			if c.all {
				f = run.made(run.plan.allAt())[0]
			}
			list := run.stays(run.plan.service(c.service), atAgent)
			x := list[slices.IndexFunc(list, func(x stay) bool { return x.from.After(f.from) })]
			for _, y := range list { // the first of those that are out together returns at last
				if y.from.After(f.from) && y.from.Before(f.to) && c.all && y.to.Before(x.to) {
					x.to = y.to
				}
			}
			r := evidence.Request{Stream: c.stream, Code: 200, Class: expect.OK, Pod: run.pods[x.host], Version: "v1"}
			r.Sent, r.Done = x.to.Add(-3*settleSlack).UnixNano(), x.to.Add(-2*settleSlack).UnixNano()
			want := verdict.Fail
			if late {
				r.Done, want = x.to.Add(settleSlack).UnixNano(), verdict.Pass
			}
			r.Intended = r.Sent
			run.requests = append(run.requests, r)
			if got := outcomes(judgeOutlier(run))[c.id]; got.Outcome != want {
				t.Errorf("%s, answered late: %v: %s: %s; %s", c.id, late, got.Outcome, got.Observed, got.Reason)
			}
		}
	}
}

func TestOutlierWithoutMesh(t *testing.T) {
	run := simulateOutlier(outlierWorld{off: true})
	run.meshed, run.shown, run.proxyEvents, run.overflow = false, nil, nil, nil
	got := outcomes(judgeOutlier(run))
	if c := got["ejected/answers-503/all-5xx"]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, "no mesh in this lab") {
		t.Errorf("%s: %s", c.Outcome, c.Reason)
	}
	// Connections may lead to another host, and stay there.
	run.requests = slices.DeleteFunc(run.requests, func(r evidence.Request) bool { return r.Code != 200 })
	got = outcomes(judgeOutlier(run))
	if c := got["ejected/answers-503/all-5xx"]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, "gateway never took the host out") {
		t.Errorf("without errors: %s: %s", c.Outcome, c.Reason)
	}
	if c := got["shown"]; c.Outcome != verdict.Skip {
		t.Errorf("shown is %s", c.Outcome)
	}
}

// Each place where people look for an ejection is looked at, at each proxy.
func TestOutlierShown(t *testing.T) {
	const cluster, host = "outbound|8080||all-5xx.outlier-hello.svc.cluster.local", "10.0.0.1:8080"
	good := view{
		clusters:  []byte(cluster + "::" + host + "::health_flags::/failed_outlier_check\n"),
		stats:     []byte("cluster." + cluster + ".outlier_detection.ejections_active: 1\n"),
		endpoints: []byte(`{"cluster_statuses":[{"name":"` + cluster + `","host_statuses":[{"address":{"socket_address":{"address":"10.0.0.1","port_value":8080}},"health_status":{"failed_outlier_check":true}}]}]}`),
	}
	if missing, err := good.missing(cluster, host); len(missing) > 0 || err != nil {
		t.Errorf("%v, error %v", missing, err)
	}
	if left := good.showing(atAgent, "outlier-hello"); len(left) != 3 {
		t.Errorf("shown: %v", left)
	}
	well := view{
		clusters: []byte(cluster + "::" + host + "::health_flags::healthy\n"), stats: []byte("cluster." + cluster + ".outlier_detection.ejections_active: 0\n"),
		endpoints: []byte(strings.ReplaceAll(string(good.endpoints), "true", "false")),
	}
	if missing, err := well.missing(cluster, host); len(missing) != 3 || err != nil {
		t.Errorf("%v, error %v", missing, err)
	}
	if left := well.showing(atAgent, "outlier-hello"); len(left) != 0 {
		t.Errorf("shown: %v", left)
	}
	if _, err := (view{endpoints: []byte("{}")}).missing(cluster, host); err == nil {
		t.Error("a page without clusters is an answer")
	}
	for name, c := range map[string]struct {
		change func(*outlierRun)
		want   verdict.Outcome
	}{
		"all":                  {func(*outlierRun) {}, verdict.Pass},
		"missing at one proxy": {func(run *outlierRun) { run.shown[atGateway] = showing{missing: []string{"x"}} }, verdict.Fail},
		"left in the end":      {func(run *outlierRun) { run.lingering = []string{"x"} }, verdict.Fail},
		"one not asked":        {func(run *outlierRun) { delete(run.shown, atGateway) }, verdict.Inconclusive},
	} {
		run := simulateOutlier(outlierWorld{})
		c.change(&run)
		if got := run.judgeShown(); got.Outcome != c.want {
			t.Errorf("%s: %s: %s", name, got.Outcome, got.Reason)
		}
	}
}

func TestParseEvents(t *testing.T) {
	const log = `{"type":"CONSECUTIVE_5XX","timestamp":"2026-11-21T10:00:00.5Z","cluster_name":"outbound|8080||all-5xx.outlier-hello.svc.cluster.local","upstream_url":"10.0.0.9:8080","action":"EJECT","num_ejections":1,"enforced":true}
{"type":"CONSECUTIVE_5XX","timestamp":"2026-11-21T11:00:00.5Z","cluster_name":"outbound|8080||all-5xx.outlier-hello.svc.cluster.local","upstream_url":"10.0.0.1:8080","action":"EJECT","num_ejections":1,"enforced":true,"eject_consecutive_event":{}}
{"type":"CONSECUTIVE_GATEWAY_FAILURE","timestamp":"2026-11-21T11:00:00.6Z","cluster_name":"outbound|8080||all-5xx.outlier-hello.svc.cluster.local","upstream_url":"10.0.0.1:8080","action":"EJECT","num_ejections":1,"enforced":false}
{"type":"CONSECUTIVE_5XX","timestamp":"2026-11-21T11:00:00.7Z","cluster_name":"outbound|8080||x.elsewhere.svc.cluster.local","upstream_url":"10.0.0.1:8080","action":"EJECT","num_ejections":1,"enforced":true}
{"timestamp":"2026-11-21T11:00:03Z","secs_since_last_action":"2","cluster_name":"outbound|8080||all-5xx.outlier-hello.svc.cluster.local","upstream_url":"10.0.0.1:8080","action":"UNEJECT","num_ejections":1}
`
	since := time.Date(2026, 11, 21, 11, 0, 0, 0, time.UTC) // an hour after a scenario of that name in the same lab
	events, err := parseEvents(strings.NewReader(log), "outlier-hello", since)
	if err != nil || len(events) != 2 || events[0].Action != "EJECT" || events[1].Action != "UNEJECT" || events[1].Timestamp.Sub(events[0].Timestamp) != 2500*time.Millisecond {
		t.Errorf("%+v, error %v", events, err)
	}
	if _, err := parseEvents(strings.NewReader(`{"type":`), "x", since); err == nil {
		t.Error("a torn log is accepted")
	}
	if got := merged(events[:1], events); !slices.Equal(got, events) {
		t.Errorf("read twice: %+v", got)
	}
	if got := merged(events, events[1:]); !slices.Equal(got, events) {
		t.Errorf("the log forgot its first: %+v", got)
	}
}
