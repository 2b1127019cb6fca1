package balancing

import (
	"fmt"
	"maps"
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
	off     bool                         // nothing is ever ejected
	extra   int                          // errors beyond the threshold
	stay    time.Duration                // instead of the base time
	cap     float64                      // of halfAtMost, instead of 0.5
	panics  bool                         // without panic mode where it is asked for
	another func(host string) string     // who is ejected for the errors of a host
	counts  func(step string, n int) int // what the pods say they failed
}

// simulateOutlier makes the evidence of a quick run: hosts have their turns, and every proxy does as Envoy does.
func simulateOutlier(w outlierWorld) outlierRun {
	run := outlierRun{
		plan: newOutlierPlan(lab.Quick), namespace: "outlier-hello", pods: map[string]string{}, proxyEvents: map[string][]outlierEvent{},
		meshed: true, looked: true, overflow: 7, seen: drive.Seen{Host: record.Host{CPUStall: 0.3}},
	}
	var hosts []string
	for i := range run.plan.pods {
		hosts = append(hosts, fmt.Sprintf("10.0.0.%d:8080", i+1))
		run.pods[hosts[i]] = fmt.Sprint("pod-", i+1)
	}
	start := time.Unix(1_800_000_000, 0)
	at := start.Add(run.plan.calm)
	for i, step := range run.plan.faults {
		f := fault{step: step, hosts: []string{hosts[i%len(hosts)]}, before: map[string]service.Counters{}, after: map[string]service.Counters{}}
		if step.all {
			f.hosts, at = hosts, at.Add(8*time.Second)
		}
		f.from, f.to = at, at.Add(step.lasts)
		at = f.to.Add(step.pause)
		run.faults = append(run.faults, f)
	}
	run.ended = at.Add(10 * time.Second)
	failed := map[string]int{}
	for _, s := range run.plan.services {
		for _, st := range s.streams {
			run.simulateStream(w, s, st, start, hosts, failed)
		}
	}
	for at := range run.proxyEvents {
		slices.SortStableFunc(run.proxyEvents[at], func(a, b outlierEvent) int { return a.Timestamp.Compare(b.Timestamp) })
	}
	for i := range run.faults {
		f := &run.faults[i]
		for _, h := range f.hosts {
			n := failed[f.step.name+h]
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

// simulateStream sends one request after the other to the hosts that are in, each of which fails while its fault lasts.
func (run *outlierRun) simulateStream(w outlierWorld, s watched, st watchedStream, start time.Time, hosts []string, failures map[string]int) {
	type state struct {
		row, ejections, backoff int
		out, back               time.Time
	}
	states := map[string]*state{}
	for _, h := range hosts {
		states[h] = &state{}
	}
	turn := 0
	event := func(t time.Time, host, action string, n int) {
		run.proxyEvents[st.at()] = append(run.proxyEvents[st.at()], outlierEvent{
			Timestamp: t, Cluster: clusterName(run.namespace, s.name, ""), Host: host, Action: action, Number: n, Enforced: true,
		})
	}
	most := len(hosts)
	if s.name == halfAtMost {
		most = 2
		if w.cap > 0 {
			most = int(w.cap * float64(len(hosts)))
		}
	}
	threshold := func(step string) int {
		if s.judged {
			return s.after[step]
		}
		return map[bool]int{true: 3}[step == allBad]
	}
	for at := start; at.Before(run.ended); at = at.Add(time.Duration(float64(time.Second) / st.rate)) {
		// The sweeps, every interval from the start.
		var in []string
		for _, h := range hosts {
			x := states[h]
			base := run.plan.base
			if w.stay > 0 {
				base = w.stay
			}
			if !x.out.IsZero() {
				sweep := start
				for sweep.Before(x.out.Add(base * time.Duration(x.backoff))) {
					sweep = sweep.Add(run.plan.interval)
				}
				if !at.Before(sweep) {
					event(sweep, h, "UNEJECT", x.ejections)
					x.out, x.back, x.row = time.Time{}, sweep, 0
				}
			}
			if x.out.IsZero() {
				in = append(in, h)
			}
		}
		r := evidence.Request{Stream: st.name, Intended: at.UnixNano(), Sent: at.UnixNano(), Done: at.Add(time.Millisecond).UnixNano(), Code: 200, Class: expect.OK}
		if s.name == withPanic && len(in) < 2 && !w.panics {
			in = hosts
		}
		if len(in) == 0 {
			r.Code, r.Class = 503, "status"
			run.requests = append(run.requests, r)
			continue
		}
		host := in[turn%len(in)]
		turn++
		r.Pod, r.Version = run.pods[host], "v1"
		x := states[host]
		var met *fault
		for i := range run.faults {
			f := &run.faults[i]
			// Who refuses does so on the second address alone.
			if slices.Contains(f.hosts, host) && !at.Before(f.from) && at.Before(f.to) && (s.second || !f.step.fail.Refuse) {
				met = f
			}
		}
		if met == nil {
			x.row = 0
			run.requests = append(run.requests, r)
			continue
		}
		r.Code, r.Class = 503, "status"
		if met.step.fail.Status == 0 {
			r.Pod = ""
		}
		run.requests = append(run.requests, r)
		failures[met.step.name+host]++
		n := threshold(met.step.name)
		if x.row++; n == 0 || w.off || !x.out.IsZero() || x.row < n+w.extra {
			continue
		}
		out := 0
		for _, y := range states {
			if !y.out.IsZero() {
				out++
			}
		}
		if out >= most {
			continue
		}
		target := host
		if w.another != nil {
			target = w.another(host)
		}
		y := states[target]
		if !y.out.IsZero() {
			continue
		}
		// Backoff shrinks with each sweep that found the host well.
		if !y.back.IsZero() {
			for t := y.back.Add(run.plan.interval); t.Before(at); t = t.Add(run.plan.interval) {
				y.backoff = max(0, y.backoff-1)
			}
		}
		y.ejections, y.backoff, y.out = y.ejections+1, y.backoff+1, at.Add(500*time.Microsecond)
		event(y.out, target, "EJECT", y.ejections)
	}
}

func TestAnHonestMeshEjects(t *testing.T) {
	run := simulateOutlier(outlierWorld{})
	claims := judgeOutlier(run)
	for _, c := range claims {
		if c.Outcome != verdict.Pass {
			t.Errorf("%s is %s: %s; %s", c.ID, c.Outcome, c.Observed, c.Reason)
		}
	}
	if len(claims) < 25 {
		t.Errorf("%d claims: %v", len(claims), slices.Sorted(maps.Keys(outcomes(claims))))
	}
}

// Each way to break a mesh, or the harness, fails the claims that name it.
func TestOutlierMutants(t *testing.T) {
	for name, c := range map[string]struct {
		w    outlierWorld
		want map[string]string
	}{
		"nothing is ejected": {outlierWorld{off: true}, map[string]string{
			"ejected/answers-503/all-5xx": "gateway never took the host out\nagent never", "ejected/refuses-connections/local-errors": "agent never took",
			"cost/all-5xx": "requests failed", "all-bad/all-5xx": "never had all 4 hosts out", "all-bad/half-at-most": "the cap was never tried",
		}},
		"one error late":       {outlierWorld{extra: 1}, map[string]string{"ejected/answers-503/all-5xx": "after 6 errors", "ejected/resets/old-name": "after 3 errors"}},
		"one error early":      {outlierWorld{extra: -1}, map[string]string{"ejected/answers-503/all-5xx": "after 4 errors", "ejected/hangs/gateway-errors": "after 2 errors"}},
		"out for too short":    {outlierWorld{stay: 500 * time.Millisecond}, map[string]string{"returned": "was out for"}},
		"out for too long":     {outlierWorld{stay: 4 * time.Second}, map[string]string{"returned": "was out for"}},
		"the cap does nothing": {outlierWorld{cap: 1}, map[string]string{"all-bad/half-at-most": "4 hosts were out at once"}},
		"no panic":             {outlierWorld{panics: true}, map[string]string{"all-bad/with-panic": "to no host"}},
		"the next host": {outlierWorld{another: func(h string) string {
			return map[string]string{"10.0.0.1:8080": "10.0.0.2:8080"}[h] + map[bool]string{true: h}[h != "10.0.0.1:8080"]
		}}, map[string]string{"others": "pod-2"}},
		"the fault elsewhere": {outlierWorld{counts: func(step string, n int) int { return n / 2 }}, map[string]string{"proof/answers-503": "the clients", "proof/hangs": "the clients"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := outcomes(judgeOutlier(simulateOutlier(c.w)))
			for id, words := range c.want {
				if c := got[id]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, words) {
					t.Errorf("%s is %s: %s; %s", id, c.Outcome, c.Observed, c.Reason)
				}
			}
		})
	}
}

func TestOutlierWithoutMesh(t *testing.T) {
	run := simulateOutlier(outlierWorld{off: true})
	run.meshed, run.looked, run.proxyEvents, run.overflow = false, false, nil, 0
	got := outcomes(judgeOutlier(run))
	if c := got["ejected/answers-503/all-5xx"]; c.Outcome != verdict.Fail || !strings.Contains(c.Reason, "no mesh in this lab") {
		t.Errorf("%s: %s", c.Outcome, c.Reason)
	}
	if c := got["shown"]; c.Outcome != verdict.Skip {
		t.Errorf("shown is %s", c.Outcome)
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
