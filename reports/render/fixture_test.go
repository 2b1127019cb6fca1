package render

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/series"
	"github.com/meshproof/meshproof/reports/verdict"
)

// sample is a report of two canaries, one good and one whose east-west leg splits wrongly, judged by the real procedures
// on simulated requests: deterministic in its seed.
func sample(t *testing.T) verdict.Report {
	t.Helper()
	start := time.Date(2026, 11, 20, 18, 3, 11, 0, time.UTC)
	good := canary(t, start.Add(12*time.Second), 1, false)
	bad := canary(t, start.Add(48*time.Second), 2, true)
	bad.ID, bad.Title = "canary-reviews", "Weighted canary of reviews, east-west"
	good.Lab, bad.Lab = "one", "two"
	good.Key = "share/east-west/10/90"
	r := verdict.Report{
		Schema: SchemaV1, Version: "0.1.0", Run: "2026-11-20T18-03-11-canary", Lab: "demo-7f3a", Profile: "quick", Seed: 41873, Mesh: "bundled 0.1.0",
		Cluster: "local/east", Command: "meshproof run canary --cluster local --mesh bundled --proxy meshproxy --profile quick --seed 41873",
		Host:    map[string]string{"cores": "2", "cpu": "x86_64", "kernel": "linux 6.18", "memory": "24 GiB", "go": "go1.26.8"},
		Started: start, Finished: start.Add(83 * time.Second),
		Setup: []verdict.Phase{{Name: "build", Detail: "kubernetes 1.36.3, containerd 2.3.7, etcd 3.7.3 (cached)", Seconds: 0.2},
			{Name: "cluster", Detail: "local/east, 1 node, API ready 2.4s, node Ready 3.5s, DNS 4.1s", Seconds: 4.1},
			{Name: "mesh", Detail: "bundled 0.1.0, revision default", Seconds: 2.8}, {Name: "apps", Detail: "bookinfo 6/6, hello 4/4", Seconds: 3.2}},
		Scenarios: []verdict.Scenario{good, bad}, Previous: "2026-11-19T18-02-40-canary",
		Changes: []verdict.Change{{Scenario: "canary", What: "share of v2 at 10/90 is 90%, east-west", Before: "90.12% (n=2,742)", After: good.Claims[2].Observed},
			{Scenario: "canary-reviews", What: "outcome", Before: "pass", After: "fail"}},
	}
	for i := range r.Setup {
		r.Setup[i].Lab = []string{"one", "two"}[i/2]
	}
	r.Scenarios[0].Memory = &verdict.LoadMemory{Before: 612 << 20, After: 655 << 20}
	r.Costs = []verdict.LabCost{{Lab: "one", Seconds: 41.3, Memory: &verdict.LabMemory{Rest: 498 << 20, Highest: 655 << 20}}, {Lab: "two", Seconds: 41.7}}
	verdict.JudgeRun(&r)
	return r
}

func canary(t *testing.T, start time.Time, seed uint64, broken bool) verdict.Scenario {
	t.Helper()
	const rate, step = 1200.0, 6.0
	rng := rand.New(rand.NewPCG(seed, 0))
	weights := []float64{0.1, 0.5, 0.9, 1}
	need := make([]int, len(weights))
	for i, w := range weights {
		need[i] = verdict.Share{Want: w, Catch: 0.05}.Required()
	}
	names := []string{"90/10", "50/50", "10/90", "0/100"}
	s := verdict.Scenario{ID: "canary", Title: "Weighted canary of hello, through the gateway and east-west", Started: start,
		Finished: start.Add(time.Duration(step*float64(len(weights))*1e9) + 400*time.Millisecond), Timings: map[string]float64{"warm-up": 1.2, "sampling": 24}}
	for i := range weights {
		at := start.Add(time.Duration(float64(i) * step * 1e9)).Add(180 * time.Millisecond)
		s.Events = append(s.Events, evidence.Event{Time: at, Kind: "apply", Name: names[i], Detail: map[string]string{"object": "VirtualService hello", "generation": fmt.Sprint(i + 2)}},
			evidence.Event{Time: at.Add(41 * time.Millisecond), Kind: "ack", Name: "12 of 12", Detail: map[string]string{"proxies": "12"}})
	}
	for _, name := range []string{"north-south", "east-west"} {
		var requests []evidence.Request
		counts, totals := make([]int, len(weights)), make([]int, len(weights))
		for q := range int(rate * step * float64(len(weights))) {
			intended := start.Add(time.Duration(float64(q) / rate * 1e9))
			i := min(int(float64(q)/rate/step), len(weights)-1)
			since := intended.Sub(s.Events[2*i].Time)
			w := weights[i]
			if since < 40*time.Millisecond && i > 0 {
				w = weights[i-1]
			}
			if broken && name == "east-west" && i == 2 {
				w = 0.849
			}
			lat := time.Duration((1.6 + rng.ExpFloat64()*0.7) * 1e6)
			if rng.Float64() < 0.01 {
				lat += time.Duration(rng.ExpFloat64() * 6e6)
			}
			if since > 0 && since < 250*time.Millisecond {
				lat += time.Duration(rng.ExpFloat64() * 3e6)
			}
			late := time.Duration(rng.ExpFloat64() * 9e4)
			version := "v1"
			if rng.Float64() < w {
				version = "v2"
			}
			r := evidence.Request{Stream: name, Seq: uint64(q), Intended: intended.UnixNano(), Sent: intended.Add(late).UnixNano(), Done: intended.Add(late + lat).UnixNano(),
				Code: 200, Class: "ok", App: "hello", Version: version, Pod: "hello-" + version + "-0"}
			if broken && name == "east-west" && i == 3 && since > 0 && since < 14*time.Millisecond {
				r.Code, r.Class, r.Err, r.App, r.Version, r.Pod = 503, "status", "503 no healthy upstream", "", "", ""
			}
			requests = append(requests, r)
			if r.Class == "ok" && since > 300*time.Millisecond && weights[i] < 1 && totals[i] < need[i] {
				totals[i]++
				if version == "v2" {
					counts[i]++
				}
			}
		}
		st, err := series.Stream(requests, series.Options{Name: name, Target: "http://hello.example.com/", Rate: rate})
		if err != nil {
			t.Fatal(err)
		}
		s.Streams = append(s.Streams, st)
		for i, w := range weights[:3] {
			c := verdict.Share{ID: fmt.Sprintf("share/%s/%s", name, names[i]), Statement: fmt.Sprintf("share of v2 at %s is %.0f%%, %s", names[i], w*100, name), Want: w, Catch: 0.05,
				Count: counts[i], N: totals[i]}.Claim()
			from := s.Events[2*i].Time
			c.Window = &verdict.Window{From: from.Add(300 * time.Millisecond), To: from.Add(5800 * time.Millisecond)}
			c.Evidence = []string{evidence.ScenarioDir(s.ID) + "/" + evidence.RequestsFile(name)}
			if c.Outcome == verdict.Fail {
				c.Reason += "\nsince 18:04:11 (VirtualService reviews, generation 4)\nlikely loadagent-2: its sidecar runs route version 17, all others 18"
			}
			s.Claims = append(s.Claims, c)
		}
		failures, n := verdict.Failures(requests)
		s.Claims = append(s.Claims, verdict.Lost{ID: "lost/" + name, Statement: "nothing lost across 4 changes, " + name, N: n, Failures: failures, Events: s.Events}.Claim())
	}
	proxies := make([]verdict.ProxyAck, 12)
	for i := range proxies {
		proxies[i] = verdict.ProxyAck{Proxy: fmt.Sprintf("hello-%d.hello", i), Acked: true, At: s.Events[2].Time.Add(time.Duration(12+i*2) * time.Millisecond)}
	}
	s.Claims = append(s.Claims,
		verdict.Strays{ID: "strays", Statement: "no stray to an unlisted subset", N: 24000}.Claim(),
		verdict.Converged{ID: "converged/50-50", Statement: "50/50 is live everywhere", Applied: s.Events[2].Time, Within: 2 * time.Second, Proxies: proxies,
			FirstObeying: s.Events[2].Time.Add(12 * time.Millisecond), LastDisobeying: s.Events[2].Time.Add(38 * time.Millisecond)}.Claim(),
		verdict.Guard{ID: "guard", Statement: "the host was fit to judge", Sends: 24000, LateShare: 0.0004, LateBound: 0.01, LateMax: 0.01,
			Loads: []verdict.HostLoad{{Name: "CPU pressure", Share: 0.08, Allowed: 0.25}}}.Claim())
	s.Topology = verdict.Topology{Nodes: []verdict.TopologyNode{{ID: "runner", Kind: "load"}, {ID: "loadagent", Kind: "load", Cluster: "east", Pods: 2}, {ID: "istio-ingressgateway", Kind: "gateway", Cluster: "east", Pods: 1},
		{ID: "hello", Kind: "service", Cluster: "east"}, {ID: "hello-v1", Kind: "workload", Cluster: "east", Pods: 2}, {ID: "hello-v2", Kind: "workload", Cluster: "east", Pods: 2}},
		Edges: []verdict.TopologyEdge{{From: "runner", To: "istio-ingressgateway", Requests: 12000}, {From: "loadagent", To: "hello", Requests: 12000}, {From: "istio-ingressgateway", To: "hello", Requests: 12000},
			{From: "hello", To: "hello-v1", Requests: 9010}, {From: "hello", To: "hello-v2", Requests: 14990}}}
	verdict.Judge(&s, "guard")
	return s
}
