package verdict

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var fault = time.Unix(1_800_000_000, 0)

func sec(s float64) time.Time { return fault.Add(time.Duration(s * float64(time.Second))) }

func TestEjected(t *testing.T) {
	base := Ejected{
		ID: "ejected", Threshold: 5, Proxies: []string{"gateway", "agent"}, Host: "h1", Within: 2 * time.Second,
		Faults: []Fault{{From: sec(0), To: sec(6), Rows: map[string]int{"gateway": 9, "agent": 5}}},
	}
	gateway := Ejection{Proxy: "gateway", Host: "h1", At: sec(.4), Sure: 5, Possible: 5}
	both := func(sure, possible, after int) []Ejection {
		return []Ejection{gateway, {Proxy: "agent", Host: "h1", At: sec(.5), Sure: sure, Possible: possible, After: after}}
	}
	for name, c := range map[string]struct {
		ejections []Ejection
		want      Outcome
		text      string
	}{
		"at the threshold":      {both(5, 5, 0), Pass, "after 5, 5 errors, the slowest 500 ms after the fault"},
		"with those in flight":  {both(4, 7, 0), Pass, "after 5, 4 to 7 errors"},
		"one too many":          {both(6, 8, 0), Fail, "agent took h1 out after 6 errors at 08:00:00.500"},
		"one too early":         {both(3, 4, 0), Fail, "after 3 to 4 errors"},
		"still sent to":         {both(5, 5, 2), Fail, "agent had 2 more errors from h1 after"},
		"one proxy never":       {both(5, 5, 0)[:1], Fail, "agent never took the host out in the fault of 08:00:00.000, after 5 errors"},
		"another host":          {[]Ejection{{Proxy: "gateway", Host: "h2", At: sec(.4), Sure: 5, Possible: 5}}, Fail, "gateway never took the host out"},
		"before the fault":      {[]Ejection{{Proxy: "gateway", Host: "h1", At: sec(-1), Sure: 5, Possible: 5}}, Fail, "gateway never"},
		"late":                  {[]Ejection{{Proxy: "gateway", Host: "h1", At: sec(3), Sure: 5, Possible: 5}, both(5, 5, 0)[1]}, Fail, "gateway took the host out 3.00 s after the fault began"},
		"a second time, exact":  {append(both(5, 5, 0), Ejection{Proxy: "agent", Host: "h1", At: sec(3), Sure: 5, Possible: 5}), Pass, "after 5, 5, 5 errors"},
		"a second time, sloppy": {append(both(5, 5, 0), Ejection{Proxy: "agent", Host: "h1", At: sec(3), Sure: 9, Possible: 9}), Fail, "after 9 errors"},
	} {
		v := base
		v.Ejections = c.ejections
		got, when := v.Claim()
		if text := got.Observed + "; " + got.Reason; got.Outcome != c.want || !strings.Contains(text, c.text) || (len(when) > 0) != (c.want == Fail) {
			t.Errorf("%s: %s: %s, at %v", name, got.Outcome, text, when)
		}
	}
	if got, _ := (Ejected{}).Claim(); got.Outcome != Inconclusive {
		t.Errorf("nothing: %s", got.Outcome)
	}
}

// Each fault is judged, not the first alone, and one that a proxy hardly met shows nothing.
func TestEjectedInEachFault(t *testing.T) {
	v := Ejected{
		Threshold: 5, Proxies: []string{"agent"}, Host: "h1", Within: 2 * time.Second, Ejections: []Ejection{{Proxy: "agent", Host: "h1", At: sec(.5), Sure: 5, Possible: 5}},
		Faults: []Fault{{From: sec(0), To: sec(6), Rows: map[string]int{"agent": 5}}, {From: sec(30), To: sec(36), Rows: map[string]int{"agent": 5}}},
	}
	if got, when := v.Claim(); got.Outcome != Fail || !strings.Contains(got.Reason, "in the fault of 08:00:30.000") || len(when) != 1 || !when[0].Equal(sec(30)) {
		t.Errorf("never in the second fault: %s: %s", got.Outcome, got.Reason)
	}
	v.Faults[1].Rows["agent"] = 4
	if got, _ := v.Claim(); got.Outcome != Inconclusive || !strings.Contains(got.Reason, "only 4 errors in a row") {
		t.Errorf("too few errors in the second fault: %s: %s", got.Outcome, got.Reason)
	}
	v.Faults[1].Rows["agent"], v.Ejections = 5, append(v.Ejections, Ejection{Proxy: "agent", Host: "h1", At: sec(33), Sure: 5, Possible: 5})
	if got, _ := v.Claim(); got.Outcome != Fail || !strings.Contains(got.Reason, "3.00 s after the fault began") {
		t.Errorf("late in the second fault: %s: %s", got.Outcome, got.Reason)
	}
}

func TestReturned(t *testing.T) {
	base := Returned{ID: "returned", Base: 2 * time.Second, Interval: time.Second, Slack: 200 * time.Millisecond, Until: sec(60)}
	e := func(at, back float64) Ejection {
		out := Ejection{Proxy: "agent", Host: "h1", At: sec(at)}
		if back > 0 {
			out.Returned = sec(back)
		}
		return out
	}
	for name, c := range map[string]struct {
		list []Ejection
		want Outcome
		text string
	}{
		"once":                    {[]Ejection{e(0, 2.6)}, Pass, "1 ejections of 2.60 s to 2.60 s, 0 of them repeated"},
		"at both ends":            {[]Ejection{e(0, 2), {Proxy: "b", At: sec(0), Returned: sec(3.2)}}, Pass, "2 ejections"},
		"too early":               {[]Ejection{e(0, 1.99)}, Fail, "was out for 1.99 s"},
		"too late":                {[]Ejection{e(0, 3.21)}, Fail, "was out for 3.21 s"},
		"twice, grown":            {[]Ejection{e(0, 2.5), e(2.9, 7.5)}, Pass, "1 of them repeated"},
		"twice, not grown":        {[]Ejection{e(0, 2.5), e(2.9, 5.2)}, Fail, "not 4.00 s to 5.20 s"},
		"long after, small again": {[]Ejection{e(0, 2.5), e(12.5, 14.8)}, Pass, "0 of them repeated"},
		"long after, still grown": {[]Ejection{e(0, 2.5), e(12.5, 17)}, Fail, "not 2.00 s to 3.20 s"},
		"never":                   {[]Ejection{e(0, 0)}, Fail, "is still out"},
		"none":                    {nil, Inconclusive, "no host came back"},
	} {
		v := base
		v.Ejections = c.list
		got, when := v.Claim()
		if text := got.Observed + "; " + got.Reason; got.Outcome != c.want || !strings.Contains(text, c.text) || (len(when) > 0) != (c.want == Fail) {
			t.Errorf("%s: %s: %s, at %v", name, got.Outcome, text, when)
		}
	}
	v := base
	v.Ejections, v.Until = []Ejection{e(0, 0)}, sec(2)
	if got, _ := v.Claim(); got.Outcome != Inconclusive {
		t.Errorf("an ejection that may still last is %s", got.Outcome)
	}
}

// What an ejection may count for does not multiply with those before: a run for days is judged as well.
func TestReturnedOfManyEjections(t *testing.T) {
	v := Returned{Base: 2 * time.Second, Interval: time.Second, Slack: 200 * time.Millisecond}
	for i := range 1000 {
		at := 10 * float64(i)
		v.Ejections = append(v.Ejections, Ejection{Proxy: "p", Host: "h", At: sec(at), Returned: sec(at + 2.5)})
	}
	v.Until = sec(10_000)
	if got, _ := v.Claim(); got.Outcome != Pass || got.N != 1000 {
		t.Errorf("%s: %s; %s", got.Outcome, got.Observed, got.Reason)
	}
}

// A proxy that does as Envoy does is never found wrong, whatever the phase of its sweeps and the times of the errors.
func TestReturnedNeverWrongsAnHonestProxy(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	runs := 100_000
	if testing.Short() {
		runs = 5_000
	}
	const base, interval = 2.0, 1.0
	wrong := 0
	for range runs {
		var list []Ejection
		phase := rng.Float64() * interval
		at, backoff, last := rng.Float64(), 0, -1.0
		for range 4 {
			// Sweeps since the last return found the host well.
			if last >= 0 {
				for s := last + interval; s < at; s += interval {
					backoff = max(backoff-1, 0)
				}
			}
			backoff++
			back := phase
			for back < at+base*float64(backoff) {
				back += interval
			}
			list = append(list, Ejection{Proxy: "p", Host: "h", At: sec(at), Returned: sec(back)})
			last, at = back, back+rng.ExpFloat64()*2
		}
		got, _ := Returned{Base: 2 * time.Second, Interval: time.Second, Slack: 200 * time.Millisecond, Ejections: list, Until: sec(last)}.Claim()
		if got.Outcome != Pass {
			wrong++
			t.Logf("%s: %+v", got.Reason, list)
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d honest runs are found wrong", wrong, runs)
	}
}

func TestFailedShare(t *testing.T) {
	v := FailedShare{Failed: 14, N: 2000, Allowed: 14, Why: "why"}
	if c := v.Claim(); c.Outcome != Pass || c.Observed != "14 of 2,000 requests (0.70%)" || c.Bound != "14 (0.70%): why" {
		t.Errorf("%+v", c)
	}
	v.Failed = 15
	if c := v.Claim(); c.Outcome != Fail {
		t.Errorf("one more: %s", c.Outcome)
	}
	if c := (FailedShare{}).Claim(); c.Outcome != Inconclusive {
		t.Errorf("nothing: %s", c.Outcome)
	}
}
