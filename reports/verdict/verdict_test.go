package verdict

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
)

// Exact: no simulation. Each promised size keeps both promises, and one sample less of the planned sizes does not.
func TestShareKeepsItsPromises(t *testing.T) {
	for _, c := range []struct {
		want, catch float64
		n           int
	}{{.5, .05, 6378}, {.7, .05, 5584}, {.8, .05, 4424}, {.9, .05, 2742}, {.5, .02, 39866}, {.7, .02, 34076}, {.8, .02, 26394}, {.9, .02, 15521}, {.95, .02, 8834}} {
		s := Share{Want: c.want, Catch: c.catch}
		required := s.Required()
		if required < c.n || float64(required) > float64(c.n)*1.01 {
			t.Errorf("share %v to catch %v: %d required, want %d or up to 1%% more", c.want, c.catch, required, c.n)
		}
		for _, n := range []int{c.n, required} {
			low, high := s.Accept(n)
			null, alarm := binomial{n, c.want}, 0.0
			for k := range n + 1 {
				if k < low || k > high {
					alarm += null.mass(k)
				}
			}
			if alarm > 1e-6 {
				t.Errorf("share %v, n %d: false alarm %v", c.want, n, alarm)
			}
			for _, p := range []float64{c.want - c.catch, c.want + c.catch} {
				if p >= 1-1e-9 {
					continue
				}
				missed := 0.0
				for k := low; k <= high; k++ {
					missed += binomial{n, p}.mass(k)
				}
				if missed > 1e-3 {
					t.Errorf("share %v, n %d: misses %v with %v", c.want, n, p, missed)
				}
			}
			if s.PowerAt(n-1) >= DefaultPower {
				t.Errorf("share %v: %d samples would do, so %d is not where the promise begins", c.want, n-1, n)
			}
		}
		for _, n := range []int{required + 1, required + 7, required * 2} {
			if s.PowerAt(n) < DefaultPower {
				t.Errorf("share %v: power lost at %d, past the required %d", c.want, n, required)
			}
		}
	}
}

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		claim Claim
		want  Outcome
	}{
		"share":       {Share{Want: .9, Catch: .05, Count: 2468, N: 2742}.Claim(), Pass},
		"few":         {Share{Want: .9, Catch: .05, Count: 90, N: 100}.Claim(), Inconclusive},
		"none":        {Share{Want: .9, Catch: .05}.Claim(), Inconclusive},
		"wrong":       {Share{Want: .9, Catch: .05, Count: 2328, N: 2742}.Claim(), Fail},
		"few, wrong":  {Share{Want: .9, Catch: .05, Count: 10, N: 100}.Claim(), Fail},
		"stray":       {Share{Want: 1, Count: 99, N: 100}.Claim(), Fail},
		"exact":       {Share{Want: 0, Count: 0, N: 100}.Claim(), Pass},
		"bad plan":    {Share{Want: 2}.Claim(), Inconclusive},
		"lost":        {Lost{N: 9, Failures: []Failure{{Class: "reset"}}, Events: []evidence.Event{{Name: "x"}}}.Claim(), Fail},
		"not lost":    {Lost{N: 10000}.Claim(), Pass},
		"no load":     {Lost{}.Claim(), Inconclusive},
		"no proxies":  {Converged{}.Claim(), Inconclusive},
		"nack":        {Converged{Within: time.Second, Proxies: []ProxyAck{{Acked: true, Nack: "no"}}}.Claim(), Fail},
		"late sends":  {Guard{LateBound: .01, LateShare: .1, LateMax: .01}.Claim(), Inconclusive},
		"no figures":  {Guard{}.Claim(), Inconclusive},
		"fit":         {Guard{LateBound: .01, LateShare: .001, LateMax: .01}.Claim(), Pass},
		"one stray":   {Strays{N: 9, Seen: map[string]int{"v3": 1}}.Claim(), Fail},
		"none looked": {Strays{}.Claim(), Inconclusive},
	} {
		if c.claim.Outcome != c.want {
			t.Errorf("%s: %s, want %s (%s)", name, c.claim.Outcome, c.want, c.claim.Reason)
		}
	}
	if Combine() != Inconclusive || Combine(Skip) != Skip || Combine(Pass, Skip) != Pass || Combine(Pass, Inconclusive, Fail) != Fail {
		t.Error("Combine")
	}
}

// 1e5 sequential runs at alpha 0.01, looked at after each of 400 samples: Ville's bound must hold under constant looking.
func TestSequentialUnderConstantLooking(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const runs, alpha = 100_000, 0.01
	wrong := 0
	for range runs {
		s, err := NewSequential([]float64{.9, .1}, .05, alpha)
		if err != nil {
			t.Fatal(err)
		}
		for range 400 {
			if rng.Float64() < .9 {
				s.Add(0)
			} else {
				s.Add(1)
			}
		}
		if s.Decide() == Fail {
			wrong++
		}
	}
	t.Logf("%d of %d rejected", wrong, runs)
	if wrong > runs/100+150 { // more than 4 standard errors above alpha
		t.Errorf("%d of %d true shares rejected, promised at most %v", wrong, runs, alpha)
	}
}

// 1e5 fixed-size runs under the claimed share and under the smallest deviation that counts.
func TestShareErrorRates(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	s := Share{Want: .9, Catch: .05, N: 2742}
	low, high := s.Accept(s.N)
	const runs = 100_000
	var alarms, missed int
	draw := func(p float64) int { // inverse transform on the exact distribution
		u, k, sum := rng.Float64(), 0, 0.0
		cdf := cdfs[p]
		if cdf == nil {
			for i := range s.N + 1 {
				sum += binomial{s.N, p}.mass(i)
				cdf = append(cdf, sum)
			}
			cdfs[p] = cdf
		}
		for lo, hi := 0, s.N; lo < hi; {
			if m := (lo + hi) / 2; cdf[m] < u {
				lo = m + 1
			} else {
				hi = m
			}
			k = lo
		}
		return k
	}
	for range runs {
		if k := draw(.9); k < low || k > high {
			alarms++
		}
		if k := draw(.85); k >= low && k <= high {
			missed++
		}
	}
	t.Logf("false alarms %d, missed %d of %d", alarms, missed, runs)
	if alarms > 3 || missed > 150 {
		t.Errorf("false alarms %d, missed %d of %d", alarms, missed, runs)
	}
}

var cdfs = map[float64][]float64{}
