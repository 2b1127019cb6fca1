package verdict

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConverged(t *testing.T) {
	applied := time.Date(2026, 11, 20, 18, 3, 41, 0, time.UTC)
	after := func(ms int) time.Time { return applied.Add(time.Duration(ms) * time.Millisecond) }
	ack := func(name string, ms int) ProxyAck { return ProxyAck{Proxy: name, Acked: true, At: after(ms)} }
	for name, c := range map[string]struct {
		in       Converged
		outcome  Outcome
		observed string
		reason   string
		until    time.Duration // end of the window
	}{
		"all": {Converged{Proxies: []ProxyAck{ack("a", 12), ack("b", 41)}}, Pass, "acked by 2 of 2 proxies in 41.0 ms", "", 200 * time.Millisecond},
		"with requests": {Converged{Proxies: []ProxyAck{ack("a", 12)}, FirstObeying: after(-3), LastDisobeying: after(900)}, Pass,
			"acked by 1 of 1 proxies in 12.0 ms, first obeying request 3.00 ms before, last old one 900 ms", "", 900 * time.Millisecond},
		"at the bound": {Converged{Proxies: []ProxyAck{ack("a", 2000)}}, Pass, "acked by 1 of 1 proxies in 2.00 s", "", 2 * time.Second},
		"too late":     {Converged{Proxies: []ProxyAck{ack("a", 2001), ack("b", 1)}}, Fail, "acked by 2 of 2 proxies in 2.00 s", "a acked after 2.00 s", 2001 * time.Millisecond},
		"never":        {Converged{Proxies: []ProxyAck{ack("a", 5), {Proxy: "b"}}}, Fail, "acked by 1 of 2 proxies in 5.00 ms", "b has not acked", 200 * time.Millisecond},
		"none":         {Converged{Proxies: []ProxyAck{{Proxy: "b"}}}, Fail, "acked by 0 of 1 proxies", "b has not acked", 200 * time.Millisecond},
		"refused":      {Converged{Proxies: []ProxyAck{{Proxy: "b", Acked: true, At: after(1), Nack: `unknown field "weightz"`}}}, Fail, "acked by 0 of 1 proxies", `b refused it: unknown field "weightz"`, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.Applied, c.in.Within = applied, 2*time.Second
			got := c.in.Claim()
			want := Claim{Outcome: c.outcome, Observed: c.observed, Reason: c.reason, Bound: "all within 2.00 s", N: len(c.in.Proxies), Window: &Window{From: applied, To: applied.Add(c.until)}}
			got.Statistic, got.Confounder, got.Interval = "", "", nil
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
	if c := (Converged{Within: time.Second}).Claim(); c.Outcome != Inconclusive || c.Reason == "" {
		t.Errorf("no proxies: %+v", c)
	}
}

func TestGuard(t *testing.T) {
	fit := Guard{Sends: 1000, LateShare: .004, LateBound: .1, LateMax: .01, Loads: []HostLoad{{Name: "CPU pressure", Share: .2, Allowed: .9}},
		ClockJump: time.Millisecond, ClockJumpMax: 250 * time.Millisecond}
	for name, c := range map[string]struct {
		change func(*Guard)
		reason []string // one line each; none for a pass
	}{
		"fit":            {func(*Guard) {}, nil},
		"at every bound": {func(g *Guard) { g.LateShare, g.Loads[0].Share, g.ClockJump = .01, .9, -250*time.Millisecond }, nil},
		"late":           {func(g *Guard) { g.LateShare = .0129 }, []string{"1.29% of sends late, allowed 1.00% over 100 ms; lower the rate or give the host more CPU"}},
		"starved":        {func(g *Guard) { g.Loads[0].Share = .991 }, []string{"CPU pressure 99.1%, allowed 90.0%; run again on a quieter host"}},
		"unknown is fit": {func(g *Guard) { g.Loads[0] = HostLoad{Name: "steal", Share: 1, Unknown: true} }, nil},
		"clock back":     {func(g *Guard) { g.ClockJump = -time.Second }, []string{"clock jump 1.00 s, allowed 250 ms; look at time synchronisation of the host"}},
		"restart":        {func(g *Guard) { g.Restarts = []string{"istiod-1 in istio-system"} }, []string{"a pod outside the experiment restarted: istiod-1 in istio-system"}},
		"late and starved": {func(g *Guard) { g.LateShare, g.Loads[0].Share = .5, 1 }, []string{"50.00% of sends late, allowed 1.00% over 100 ms; lower the rate or give the host more CPU",
			"CPU pressure 100.0%, allowed 90.0%; run again on a quieter host"}},
		"nothing measured": {func(g *Guard) { *g = Guard{Loads: []HostLoad{{Name: "steal", Unknown: true}}} }, []string{"nothing about the host was measured"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := fit
			g.Loads = append([]HostLoad(nil), fit.Loads...)
			c.change(&g)
			got, want := g.Claim(), Pass
			if c.reason != nil {
				want = Inconclusive
			}
			if got.Outcome != want || got.Reason != strings.Join(c.reason, "\n") {
				t.Errorf("%s because %q, want %s because %q", got.Outcome, got.Reason, want, c.reason)
			}
		})
	}
	if got := fit.Claim(); got.Observed != "0.40% of sends late, CPU pressure 20.0%, clock jump 1.00 ms" || got.Bound != "1.00% over 100 ms, 90.0%, 250 ms" {
		t.Errorf("observed %q, bound %q", got.Observed, got.Bound)
	}
}

// A starved host excuses every failure but a stray, and hides none: the reason keeps what was seen.
func TestJudgeWithGuard(t *testing.T) {
	late := Guard{ID: "guard", LateBound: .1, LateShare: .5, LateMax: .01}.Claim()
	fit := Guard{ID: "guard", LateBound: .1, LateShare: .001, LateMax: .01}.Claim()
	lost := Lost{ID: "lost", N: 9, Failures: []Failure{{Class: "reset"}}}.Claim()
	exact := Share{ID: "exact", Want: 0, Catch: .05, Count: 3, N: 1000}.Claim()
	stray := Strays{ID: "stray", N: 9, Seen: map[string]int{"hello v9": 2}}.Claim()
	moved := Strays{ID: "session", N: 9, Seen: map[string]int{"hello-2": 1}, Movable: true}.Claim()
	good := Lost{ID: "good", N: 10_000}.Claim()
	for name, c := range map[string]struct {
		claims []Claim
		guard  string
		err    string
		want   []Outcome
		all    Outcome
	}{
		"fit":                  {[]Claim{lost, stray, fit}, "guard", "", []Outcome{Fail, Fail, Pass}, Fail},
		"starved":              {[]Claim{lost, exact, moved, good, late}, "guard", "", []Outcome{Inconclusive, Inconclusive, Inconclusive, Pass, Inconclusive}, Inconclusive},
		"starved, a stray":     {[]Claim{lost, stray, late}, "guard", "", []Outcome{Inconclusive, Fail, Inconclusive}, Fail},
		"starved, guard first": {[]Claim{late, lost}, "guard", "", []Outcome{Inconclusive, Inconclusive}, Inconclusive},
		"no guard":             {[]Claim{lost, late}, "", "", []Outcome{Fail, Inconclusive}, Fail},
		"cut short":            {[]Claim{good, fit}, "guard", "took too long", []Outcome{Pass, Pass}, Inconclusive},
		"cut short, failed":    {[]Claim{lost, fit}, "guard", "took too long", []Outcome{Fail, Pass}, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			s := Scenario{Claims: append([]Claim(nil), c.claims...), Error: c.err}
			Judge(&s, c.guard)
			var got []Outcome
			for i, j := range s.Claims {
				got = append(got, j.Outcome)
				if !strings.HasPrefix(j.Reason, c.claims[i].Reason) {
					t.Errorf("claim %s lost its reason: %q", j.ID, j.Reason)
				}
				if changed := j.Outcome != c.claims[i].Outcome; changed != strings.Contains(j.Reason, "not counted as a failure: 50.00% of sends late") {
					t.Errorf("claim %s: changed %v, reason %q", j.ID, changed, j.Reason)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" || s.Outcome != c.all || s.Guard != c.guard {
				t.Errorf("%s (guard %q), want %s: %s", s.Outcome, s.Guard, c.all, d)
			}
		})
	}
}
