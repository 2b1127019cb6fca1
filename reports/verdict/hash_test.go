package verdict

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

func owners(n int, before, after string) []Owner {
	out := make([]Owner, n)
	for i := range out {
		out[i] = Owner{Session: "s", Before: before, After: after}
	}
	return out
}

func TestKept(t *testing.T) {
	join := func(lists ...[]Owner) (out []Owner) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	exact := Kept{Host: "new", Catch: 0.05}
	loose := Kept{Host: "new", Slack: 0.02, Catch: 0.25}
	for name, c := range map[string]struct {
		k      Kept
		owners []Owner
		want   Outcome
		words  string
	}{
		"only to the new one":             {exact, join(owners(40, "a", "new"), owners(135, "b", "b")), Pass, ""},
		"only from the one that left":     {exact, join(owners(40, "new", "a"), owners(135, "b", "b")), Pass, ""},
		"one other moved":                 {exact, join(owners(40, "a", "new"), owners(300, "b", "b"), owners(1, "a", "b")), Fail, "went from a to b"},
		"too few others":                  {exact, join(owners(40, "a", "new"), owners(134, "b", "b")), Inconclusive, "135 are needed"},
		"a host without sessions":         {exact, owners(300, "b", "b"), Inconclusive, "nothing was tried"},
		"nobody joined":                   {Kept{Catch: 0.05}, owners(300, "b", "b"), Inconclusive, "no session"},
		"nobody came back":                {exact, owners(300, "b", ""), Inconclusive, "no session"},
		"as many others as slack allows":  {loose, join(owners(40, "a", "new"), owners(155, "b", "b"), owners(4, "a", "b")), Pass, ""},
		"more others than slack allows":   {loose, join(owners(40, "a", "new"), owners(100, "b", "b"), owners(60, "a", "b")), Fail, "60 other sessions moved"},
		"slack, and too few to show more": {loose, join(owners(9, "a", "new"), owners(20, "b", "b")), Inconclusive, "are needed"},
	} {
		c.k.Owners = c.owners
		if got := c.k.Claim(); got.Outcome != c.want || !strings.Contains(got.Reason, c.words) {
			t.Errorf("%s: %s: %s: %s", name, got.Outcome, got.Observed, got.Reason)
		}
	}
}

// Rings of random points hold the promise of Even; a host that takes a share Catch too large is found.
func TestEven(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	e := Even{Points: 256, Hosts: 4, Catch: 0.13, Alpha: 0.01}
	count := func(shares []float64, n int) map[string]int {
		out := map[string]int{}
		for range n {
			x := rng.Float64()
			for i, s := range shares {
				if x -= s; x < 0 || i == len(shares)-1 {
					out[string(rune('a'+i))]++
					break
				}
			}
		}
		return out
	}
	const runs, n = 4000, 2000
	alarms, missed := 0, 0
	for range runs {
		shares, sum := make([]float64, 4), 0.0
		for i := range shares { // spacings of uniform points are exponential over their sum
			for range e.Points {
				shares[i] -= math.Log(1 - rng.Float64())
			}
			sum += shares[i]
		}
		for i := range shares {
			shares[i] /= sum
		}
		e.Count = count(shares, n)
		if e.Claim().Outcome == Fail {
			alarms++
		}
		bad := e
		bad.Alpha, bad.Count = 0, count([]float64{0.38, 0.62 / 3, 0.62 / 3, 0.62 / 3}, n)
		if bad.Claim().Outcome != Fail {
			missed++
		}
	}
	// 40 alarms are promised at most, and 4 misses; six standard deviations more would be chance.
	if alarms > 40+38 || missed > 4+12 {
		t.Errorf("%d alarms and %d missed of %d", alarms, missed, runs)
	}
	t.Logf("%d alarms and %d missed of %d", alarms, missed, runs)
	for name, c := range map[string]struct {
		count map[string]int
		want  Outcome
		words string
	}{
		"even":             {map[string]int{"a": 500, "b": 520, "c": 480, "d": 500}, Pass, ""},
		"one host of none": {map[string]int{"a": 666, "b": 667, "c": 667}, Fail, "1 of 4 hosts have none"},
		"too few":          {map[string]int{"a": 5, "b": 5, "c": 5, "d": 5}, Inconclusive, "a chance of only"},
		"none":             {nil, Inconclusive, "no samples"},
	} {
		e := Even{Points: 256, Hosts: 4, Catch: 0.13, Count: c.count}
		if got := e.Claim(); got.Outcome != c.want || !strings.Contains(got.Reason, c.words) {
			t.Errorf("%s: %s: %s: %s", name, got.Outcome, got.Observed, got.Reason)
		}
	}
}

// A pass of an exact claim needs as many samples as show the share that must.
func TestCatchAsksForSamples(t *testing.T) {
	if c := (Strays{N: 134, Catch: 0.05}).Claim(); c.Outcome != Inconclusive || !strings.Contains(c.Reason, "135 are needed") {
		t.Errorf("strays: %s: %s", c.Outcome, c.Reason)
	}
	if c := (Strays{N: 135, Catch: 0.05}).Claim(); c.Outcome != Pass {
		t.Errorf("strays: %s: %s", c.Outcome, c.Reason)
	}
	m := Moved{Share: 0.2, Most: 0.4, Catch: 0.05}
	for _, o := range append(owners(30, "a", "b"), owners(104, "b", "b")...) {
		o.OwnedBefore, o.OwnedAfter = o.Before, o.After
		m.Owners = append(m.Owners, o)
	}
	if c := m.Claim(); c.Outcome != Inconclusive || !strings.Contains(c.Reason, "135 are needed") {
		t.Errorf("moved: %s: %s", c.Outcome, c.Reason)
	}
	m.Owners = append(m.Owners, m.Owners[40])
	if c := m.Claim(); c.Outcome != Pass {
		t.Errorf("moved: %s: %s", c.Outcome, c.Reason)
	}
	m.Most = 0.1
	if c := m.Claim(); c.Outcome != Fail || !strings.Contains(c.Reason, "promises 10.0% at most") {
		t.Errorf("moved more than promised: %s: %s", c.Outcome, c.Reason)
	}
}
