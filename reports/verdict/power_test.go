package verdict

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Required promises that every larger size keeps the power; counts are a lattice, so each of the next sizes is looked at.
func TestRequiredHoldsPast(t *testing.T) {
	for _, s := range []Share{
		{Want: .5, Catch: .05}, {Want: .7, Catch: .05}, {Want: .8, Catch: .05}, {Want: .9, Catch: .05},
		{Want: .5, Catch: .02}, {Want: .7, Catch: .02}, {Want: .8, Catch: .02}, {Want: .9, Catch: .02}, {Want: .95, Catch: .02},
		{Want: .1, Catch: .05}, {Want: .9, Catch: .1}, {Want: .5, Catch: .1}, {Want: .1, Catch: .2},
	} {
		required := s.Required()
		for n := required; n <= required+400; n++ {
			if got := s.PowerAt(n); got < DefaultPower {
				t.Errorf("share %v to catch %v: power %v at %d, %d past the required %d", s.Want, s.Catch, got, n, n-required, required)
				break
			}
		}
	}
}

// An exact claim needs the smallest size that shows a stray with the promised power when the share of strays is Catch.
func TestRequiredOfExactShares(t *testing.T) {
	for _, catch := range []float64{.2, .05, .01, .001} {
		for _, want := range []float64{0, 1} {
			n := Share{Want: want, Catch: catch}.Required()
			seen := func(n int) float64 { return 1 - math.Pow(1-catch, float64(n)) }
			if seen(n) < DefaultPower || seen(n-1) >= DefaultPower {
				t.Errorf("share %v to catch %v: %d samples show a stray with %v, one fewer with %v", want, catch, n, seen(n), seen(n-1))
			}
			if at := (Share{Want: want, Catch: catch}).PowerAt(n); math.Abs(at-seen(n)) > 1e-9 {
				t.Errorf("share %v to catch %v: PowerAt(%d) is %v, want %v", want, catch, n, at, seen(n))
			}
		}
	}
}

// A sequential test that is looked at after every sample passes a share that deviates by Catch with at most alpha, and a
// true one nearly always.
func TestSequentialPass(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const runs, alpha, catch, most = 4000, 0.01, 0.1, 4000
	end := func(p float64) Outcome {
		s, err := NewSequential([]float64{.8, .2}, catch, alpha)
		if err != nil {
			t.Fatal(err)
		}
		for s.N() < most {
			category := 0
			if rng.Float64() >= p {
				category = 1
			}
			s.Add(category)
			if o := s.Decide(); o != Inconclusive {
				return o
			}
		}
		return Inconclusive
	}
	for _, p := range []float64{.7, .9} {
		wrong := 0
		for range runs {
			if end(p) == Pass {
				wrong++
			}
		}
		t.Logf("share %v: %d of %d wrongly passed", p, wrong, runs)
		if wrong > 40+26 { // more than 4 standard errors above alpha
			t.Errorf("share %v: %d of %d wrongly passed, promised at most %v", p, wrong, runs, alpha)
		}
	}
	passed := 0
	for range 500 {
		if end(.8) == Pass {
			passed++
		}
	}
	t.Logf("%d of 500 true shares passed", passed)
	if passed < 490 {
		t.Errorf("only %d of 500 true shares passed", passed)
	}
}
