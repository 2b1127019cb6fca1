package verdict

import "math"

// binomial is the law of the number of successes in n draws at share p, 0 < p < 1.
type binomial struct {
	n int
	p float64
}

// mass is P(X = k). Log-gamma keeps the relative error under 1e-9 for n up to 1e6.
func (b binomial) mass(k int) float64 {
	switch {
	case k < 0 || k > b.n:
		return 0
	case b.p <= 0:
		return indicator(k == 0)
	case b.p >= 1:
		return indicator(k == b.n)
	}
	n, x := float64(b.n), float64(k)
	return math.Exp(lgamma(n+1) - lgamma(x+1) - lgamma(n-x+1) + x*math.Log(b.p) + (n-x)*math.Log1p(-b.p))
}

// below is P(X <= k) and above is P(X >= k). Both add from the far tail inwards by the ratio of neighbouring masses, which
// is exact and stops where the terms no longer count; small tails therefore keep their relative precision.
func (b binomial) below(k int) float64 {
	if k >= b.n {
		return 1
	}
	if k < 0 || b.p >= 1 {
		return 0
	}
	if float64(k) > float64(b.n)*b.p {
		return 1 - b.above(k+1)
	}
	term := b.mass(k)
	sum := term
	for i := k; i > 0 && term > sum*1e-17; i-- {
		term *= float64(i) / float64(b.n-i+1) * (1 - b.p) / b.p
		sum += term
	}
	return sum
}

func (b binomial) above(k int) float64 {
	return binomial{b.n, 1 - b.p}.below(b.n - k)
}

// region is the smallest and largest count that the central test at level alpha accepts: each tail beyond has at most
// alpha/2.
func (b binomial) region(alpha float64) (low, high int) {
	low = b.quantile(alpha / 2)
	high = b.n - binomial{b.n, 1 - b.p}.quantile(alpha/2)
	return low, high
}

// quantile is the smallest k with P(X <= k) > a.
func (b binomial) quantile(a float64) int {
	lo, hi := -1, b.n // below(lo) <= a < below(hi)
	for hi-lo > 1 {
		if m := lo + (hi-lo)/2; b.below(m) > a {
			hi = m
		} else {
			lo = m
		}
	}
	return hi
}

func lgamma(x float64) float64 {
	v, _ := math.Lgamma(x)
	return v
}

func indicator(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
