package verdict

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestSticky(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1_800_000_000+int64(s), 0) }
	many := func(sessions, visits int, host func(s, v int) string) []Visit {
		var out []Visit
		for s := range sessions {
			for v := range visits {
				out = append(out, Visit{Session: fmt.Sprintf("s%04d", s), Host: host(s, v), At: at(v)})
			}
		}
		return out
	}
	still := func(s, _ int) string { return fmt.Sprint("h", s%3) }
	for name, c := range map[string]struct {
		visits []Visit
		want   Outcome
		text   string // in observed, bound or reason
	}{
		"all stay":       {many(1000, 3, still), Pass, "0 of 1,000 sessions moved, 3,000 visits; moves below 0.69% of visits"},
		"one moves":      {append(many(1000, 3, still), Visit{Session: "s0001", Host: "h2", At: at(9)}), Fail, "s0001 went from h1 to h2 at 08:00:09.000"},
		"all wander":     {many(10, 3, func(s, v int) string { return fmt.Sprint("h", v) }), Fail, "and 7 more"},
		"in any order":   {[]Visit{{"a", "", "h1", at(3)}, {"a", "", "h0", at(1)}, {"a", "", "h0", at(2)}}, Fail, "a went from h0 to h1 at 08:00:03"},
		"between spans":  {append(many(1000, 3, still), Visit{"s0001", "later", "h2", at(9)}), Pass, "0 of 1,000 sessions moved, 3,001 visits"},
		"once each":      {many(1000, 1, still), Inconclusive, "no session came back"},
		"too few visits": {many(100, 2, still), Inconclusive, "100 repeated visits exclude moves above"},
		"nothing":        {nil, Inconclusive, "no session came back"},
	} {
		got := Sticky{ID: "sticky", Visits: c.visits}.Claim()
		text := got.Observed + "; " + got.Bound + "; " + got.Reason
		if got.Outcome != c.want || !strings.Contains(text, c.text) || got.Firm {
			t.Errorf("%s: %s: %s", name, got.Outcome, text)
		}
	}
}

func TestSpread(t *testing.T) {
	want := map[string]float64{"a": 0.26, "b": 0.24, "c": 0.27, "d": 0.23}
	s := Spread{ID: "spread", Want: want, Catch: 0.1}
	n := s.Required()
	counts := func(a, b, c, d float64) map[string]int {
		return map[string]int{"a": int(a * float64(n)), "b": int(b * float64(n)), "c": int(c * float64(n)), "d": int(d*float64(n)) + 5}
	}
	for name, c := range map[string]struct {
		count map[string]int
		want  Outcome
	}{
		"as the ring says": {counts(.26, .24, .27, .23), Pass},
		"one host bare":    {counts(.36, .32, .32, 0), Fail},
		"too few":          {map[string]int{"a": 26, "b": 24, "c": 27, "d": 23}, Inconclusive},
		"a stranger":       {map[string]int{"a": n * 26 / 100, "b": n * 24 / 100, "c": n * 27 / 100, "d": n * 23 / 100, "e": 1}, Fail},
		"nothing":          {nil, Inconclusive},
	} {
		s.Count = c.count
		if got := s.Claim(); got.Outcome != c.want {
			t.Errorf("%s: %s: %s; %s", name, got.Outcome, got.Observed, got.Reason)
		}
	}
}

// spreadRuns judges simulated draws and counts the outcomes.
func spreadRuns(s Spread, law map[string]float64, n, runs int, seed uint64) map[Outcome]int {
	rng := rand.New(rand.NewPCG(seed, 7))
	hosts := sortedKeys(law)
	tests := map[string][2]int{}
	for _, h := range hosts {
		low, high := s.share(h, n).Accept(n)
		tests[h] = [2]int{low, high}
	}
	out := map[Outcome]int{}
	for range runs {
		left, rest, fail := n, 1.0, false
		for i, h := range hosts { // a multinomial draw, host by host
			k := left
			if i < len(hosts)-1 {
				k = drawBinomial(rng, left, min(1, law[h]/rest))
			}
			left, rest = left-k, rest-law[h]
			fail = fail || k < tests[h][0] || k > tests[h][1]
		}
		if fail {
			out[Fail]++
		} else {
			out[Pass]++
		}
	}
	return out
}

// drawBinomial draws by inversion.
func drawBinomial(rng *rand.Rand, n int, p float64) int {
	b := binomial{n, p}
	return b.quantile(rng.Float64())
}

// The promises of Spread, measured: false alarms under its null, and misses under the deviation that it names.
func TestSpreadErrorRates(t *testing.T) {
	want := map[string]float64{"a": 0.26, "b": 0.24, "c": 0.27, "d": 0.23}
	s := Spread{Want: want, Catch: 0.1, Alpha: 0.01}
	n, runs := s.Required(), 100_000
	if testing.Short() {
		runs = 5_000
	}
	alarms := spreadRuns(s, want, n, runs, 1)[Fail]
	off := map[string]float64{"a": 0.36, "b": 0.24 - .1/3, "c": 0.27 - .1/3, "d": 0.23 - .1/3}
	missed := spreadRuns(s, off, n, runs, 2)[Pass]
	t.Logf("n=%d, %d runs: %d false alarms, %d missed", n, runs, alarms, missed)
	// Three standard deviations of the simulation itself are beyond the promise.
	for _, c := range []struct {
		what    string
		got     int
		promise float64
	}{{"false alarms", alarms, 0.01}, {"missed", missed, 0.001}} {
		if mean := c.promise * float64(runs); float64(c.got) > mean+3*math.Sqrt(mean) {
			t.Errorf("%s: %d of %d runs, promised %v", c.what, c.got, runs, c.promise)
		}
	}
}

func TestMoved(t *testing.T) {
	// 1,000 sessions on four hosts, of which the hash of every fifth changes owner.
	owners := func(change func(i int, o *Owner)) []Owner {
		var out []Owner
		for i := range 1000 {
			o := Owner{Session: fmt.Sprint("s", i), Before: fmt.Sprint("h", i%4), OwnedBefore: fmt.Sprint("h", i%4)}
			o.After, o.OwnedAfter = o.Before, o.Before
			if i%5 == 0 {
				o.After, o.OwnedAfter = "new", "new"
			}
			if change != nil {
				change(i, &o)
			}
			out = append(out, o)
		}
		return out
	}
	for name, c := range map[string]struct {
		in   Moved
		want Outcome
		text string
	}{
		"only theirs": {Moved{Owners: owners(nil), Share: 0.2}, Pass, "200 of 1,000 sessions moved (20.0%)"},
		"one without cause": {Moved{Owners: owners(func(i int, o *Owner) {
			if i == 1 {
				o.After = "h3"
			}
		}), Share: 0.2}, Fail, "s1 went from h1 to h3, and its hash is still of h1"},
		"within the slack": {Moved{Owners: owners(func(i int, o *Owner) {
			if i == 1 {
				o.After = "h3"
			}
		}), Share: 0.2, Slack: 0.01}, Pass, ""},
		"one that stuck": {Moved{Owners: owners(func(i int, o *Owner) {
			if i == 5 {
				o.After = o.Before
			}
		}), Share: 0.2}, Fail, "s5 stayed on h1"},
		"everybody shuffled": {Moved{Owners: owners(func(i int, o *Owner) { o.After, o.OwnedAfter = "x", "x" }), Share: 0.2}, Fail, "outside"},
		"far fewer":          {Moved{Owners: owners(func(_ int, o *Owner) { o.After, o.OwnedAfter = o.Before, o.Before }), Share: 0.2}, Fail, "outside"},
		"seen on one side":   {Moved{Owners: owners(func(_ int, o *Owner) { o.After = "" }), Share: 0.2}, Inconclusive, "no session"},
	} {
		got := c.in.Claim()
		if text := got.Observed + "; " + got.Reason; got.Outcome != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %s: %s", name, got.Outcome, text)
		}
	}
}
