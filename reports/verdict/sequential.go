package verdict

import (
	"fmt"
	"math"
)

// Sequential tests shares while samples come in, and may be looked at after every one: the chance that it ever rejects true
// shares is at most Alpha. It is the Dirichlet-multinomial mixture e-process of Lindon and Malek (Anytime-valid inference
// for multinomial count data, NeurIPS 2022) with a Dirichlet(1, ..., 1) mixture; rejection at 1/Alpha is Ville's
// inequality.
//
// Use it to stop sampling early. It is not safe for concurrent use.
type Sequential struct {
	want    []float64
	catch   float64
	alpha   float64
	counts  []int
	n       int
	logE    float64 // of the claimed shares
	peak    float64 // the largest logE ever seen
	strayed bool    // a share of 0 was seen
}

// NewSequential tests that category i has share want[i]; catch is the smallest deviation of any of them that counts. The
// shares must add up to 1. alpha 0 means DefaultAlpha.
func NewSequential(want []float64, catch, alpha float64) (*Sequential, error) {
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	sum := 0.0
	for i, w := range want {
		if !(w >= 0 && w <= 1) {
			return nil, fmt.Errorf("sequential test: share %d is %v, not in 0..1", i, w)
		}
		sum += w
	}
	if len(want) < 2 || math.Abs(sum-1) > 1e-9 {
		return nil, fmt.Errorf("sequential test: %d shares that add up to %v; at least two that add up to 1 are needed", len(want), sum)
	}
	if !(catch > 0 && catch < 1) || !(alpha > 0 && alpha < 1) {
		return nil, fmt.Errorf("sequential test: catch %v and alpha %v must lie between 0 and 1", catch, alpha)
	}
	return &Sequential{want: append([]float64(nil), want...), catch: catch, alpha: alpha, counts: make([]int, len(want))}, nil
}

// Add counts one sample of the category.
func (s *Sequential) Add(category int) {
	// The predictive probability under the mixture, over the claimed one.
	k := float64(len(s.want))
	predictive := (float64(s.counts[category]) + 1) / (float64(s.n) + k)
	s.counts[category]++
	s.n++
	if s.want[category] == 0 {
		s.strayed = true
		s.logE, s.peak = math.Inf(1), math.Inf(1)
		return
	}
	if !s.strayed {
		s.logE += math.Log(predictive) - math.Log(s.want[category])
		s.peak = max(s.peak, s.logE)
	}
}

// N is how many samples were added.
func (s *Sequential) N() int { return s.n }

// Decide says what the samples so far allow: Fail once the claimed shares were rejected at any look, Pass once every
// deviation of catch or more in any share is outside the confidence sequence, Inconclusive before. Both Fail and Pass are
// final: stop. A wrong Fail has probability at most alpha, and a wrong Pass (under a true deviation of catch or more) at
// most alpha too, whenever it is asked.
func (s *Sequential) Decide() Outcome {
	if s.peak >= -math.Log(s.alpha) {
		return Fail
	}
	for i, w := range s.want {
		for _, p := range []float64{w - s.catch, w + s.catch} {
			if p >= 0 && p <= 1 && s.marginal(i, p) < -math.Log(s.alpha) {
				return Inconclusive
			}
		}
	}
	return Pass
}

// marginal is the log e-value against share i being p: the Beta(1, 1) mixture over the two categories "i" and "not i".
// It is convex in p with its least value at the observed share, so the two ends of the deviation speak for all beyond;
// unless the observed share itself lies beyond one, in which case no end can be excluded.
func (s *Sequential) marginal(i int, p float64) float64 {
	x, n := float64(s.counts[i]), float64(s.n)
	w := s.want[i]
	if observed := x / max(n, 1); math.Abs(observed-w) >= math.Abs(p-w) && (observed-w)*(p-w) > 0 {
		return 0
	}
	beta := lgamma(x+1) + lgamma(n-x+1) - lgamma(n+2)
	return beta - xlogy(x, p) - xlogy(n-x, 1-p)
}

func xlogy(x, y float64) float64 {
	if x == 0 {
		return 0
	}
	return x * math.Log(y)
}
