package verdict

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestQuantileRanks(t *testing.T) {
	for _, c := range []struct {
		n         int
		p, alpha  float64
		low, high int
	}{
		// By hand: of 10 samples the largest is below the median with probability 2^-10.
		{10, 0.5, 0.001, 1, 10},
		{10, 0.5, 0.0009, 0, 11},
		{4, 0.99, 0.01, 3, 5},
	} {
		if low, high := QuantileRanks(c.n, c.p, c.alpha); low != c.low || high != c.high {
			t.Errorf("n=%d p=%g alpha=%g: %d..%d, want %d..%d", c.n, c.p, c.alpha, low, high, c.low, c.high)
		}
	}
}

// TestQuantileRanksHold counts how often the bounds miss a quantile that is known.
func TestQuantileRanksHold(t *testing.T) {
	const n, p, alpha, trials = 400, 0.99, 0.02, 20000
	low, high := QuantileRanks(n, p, alpha)
	rng := rand.New(rand.NewPCG(1, 2))
	below, above := 0, 0
	x := make([]float64, n)
	for range trials {
		for i := range x {
			x[i] = rng.Float64()
		}
		slices.Sort(x)
		if low > 0 && x[low-1] > p {
			above++
		}
		if high <= n && x[high-1] < p {
			below++
		}
	}
	// Three standard deviations of the count itself on top.
	if limit := int(trials*alpha + 3*20); below > limit || above > limit {
		t.Errorf("missed by %d and %d of %d, promised %g each", below, above, trials, alpha)
	}
	if below+above == 0 {
		t.Error("bounds that never miss at this level are too wide")
	}
}
