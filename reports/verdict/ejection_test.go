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
		Faults: []Span{{sec(0), sec(6)}},
	}
	both := func(errors, inFlight int) []Ejection {
		return []Ejection{{Proxy: "gateway", Host: "h1", At: sec(.4), Errors: 5}, {Proxy: "agent", Host: "h1", At: sec(.5), Errors: errors, InFlight: inFlight}}
	}
	for name, c := range map[string]struct {
		ejections []Ejection
		want      Outcome
		text      string
	}{
		"at the threshold":      {both(5, 0), Pass, "after 5, 5 errors, the first 500 ms after the fault"},
		"with those in flight":  {both(7, 2), Pass, "after 5, 7 errors"},
		"one too many":          {both(8, 2), Fail, "agent took h1 out after 8 errors at 08:00:00.500, of which 2 were in flight"},
		"one too early":         {both(4, 0), Fail, "after 4 errors"},
		"one proxy never":       {both(5, 0)[:1], Fail, "agent never took the host out"},
		"another host":          {[]Ejection{{Proxy: "gateway", Host: "h2", At: sec(.4), Errors: 5}}, Fail, "gateway never took the host out\nagent never"},
		"before the fault":      {[]Ejection{{Proxy: "gateway", Host: "h1", At: sec(-1), Errors: 5}}, Fail, "gateway never"},
		"late":                  {[]Ejection{{Proxy: "gateway", Host: "h1", At: sec(3), Errors: 5}, both(5, 0)[1]}, Fail, "gateway took the host out 3.00 s after the fault began"},
		"a second time, exact":  {append(both(5, 0), Ejection{Proxy: "agent", Host: "h1", At: sec(3), Errors: 5}), Pass, "after 5, 5, 5 errors"},
		"a second time, sloppy": {append(both(5, 0), Ejection{Proxy: "agent", Host: "h1", At: sec(3), Errors: 9}), Fail, "after 9 errors"},
	} {
		v := base
		v.Ejections = c.ejections
		got := v.Claim()
		if text := got.Observed + "; " + got.Reason; got.Outcome != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %s: %s", name, got.Outcome, text)
		}
	}
	if got := (Ejected{}).Claim(); got.Outcome != Inconclusive {
		t.Errorf("nothing: %s", got.Outcome)
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
		got := v.Claim()
		if text := got.Observed + "; " + got.Reason; got.Outcome != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %s: %s", name, got.Outcome, text)
		}
	}
	v := base
	v.Ejections, v.Until = []Ejection{e(0, 0)}, sec(2)
	if got := v.Claim(); got.Outcome != Inconclusive {
		t.Errorf("an ejection that may still last is %s", got.Outcome)
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
		got := Returned{Base: 2 * time.Second, Interval: time.Second, Slack: 200 * time.Millisecond, Ejections: list, Until: sec(last)}.Claim()
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
