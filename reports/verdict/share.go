package verdict

import (
	"fmt"
	"math"
)

// The promises of a claim about a share, unless it states its own.
const (
	DefaultAlpha = 1e-6  // false alarms
	DefaultPower = 0.999 // chance to see the smallest deviation that counts
)

// Share claims that each request is of some kind with probability Want, independently. It is judged once, on a sample
// whose size was fixed beforehand; to look repeatedly use Sequential.
//
// Want 0 or 1 is exact: one stray is a fail.
type Share struct {
	ID        string
	Statement string
	Want      float64 // the share if the claim is true
	Catch     float64 // the smallest deviation that must show; 0.05 is 5 points
	Alpha     float64 // 0 means DefaultAlpha
	Power     float64 // 0 means DefaultPower
	Count, N  int     // what was seen
}

const shareConfounder = "draws that are not independent (retries, sticky connections, a warm-up counted in), or requests of a stream with another route"

func (s Share) promises() (alpha, power float64) {
	alpha, power = s.Alpha, s.Power
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	if power == 0 {
		power = DefaultPower
	}
	return alpha, power
}

func (s Share) exact() bool { return s.Want == 0 || s.Want == 1 }

// Validate says what is wrong with the plan or the counts.
func (s Share) Validate() error {
	alpha, power := s.promises()
	switch {
	case !(s.Want >= 0 && s.Want <= 1):
		return fmt.Errorf("share %q: want %v is not in 0..1", s.ID, s.Want)
	case !(alpha > 0 && alpha < 1) || !(power > 0 && power < 1):
		return fmt.Errorf("share %q: alpha %v and power %v must lie between 0 and 1", s.ID, alpha, power)
	case !s.exact() && !(s.Catch >= 1e-4 && s.Catch < 1):
		return fmt.Errorf("share %q: catch %v is not in 0.0001..1", s.ID, s.Catch)
	case !s.exact() && s.Want-s.Catch < 0 && s.Want+s.Catch > 1:
		return fmt.Errorf("share %q: no share deviates from %v by %v", s.ID, s.Want, s.Catch)
	case s.N < 0 || s.Count < 0 || s.Count > s.N:
		return fmt.Errorf("share %q: %d of %d is not a count", s.ID, s.Count, s.N)
	}
	return nil
}

// Accept is the smallest and largest count out of n that does not contradict the claim at level alpha.
func (s Share) Accept(n int) (low, high int) {
	alpha, _ := s.promises()
	if s.Want == 0 {
		return 0, 0
	}
	if s.Want == 1 {
		return n, n
	}
	return binomial{n, s.Want}.region(alpha)
}

// PowerAt is the chance that n samples reject a share that deviates by Catch, to the side where it is harder to see.
func (s Share) PowerAt(n int) float64 {
	low, high := s.Accept(n)
	power := 1.0
	for _, p := range []float64{s.Want - s.Catch, s.Want + s.Catch} {
		if p < -1e-12 || p > 1+1e-12 {
			continue
		}
		b := binomial{n, min(max(p, 0), 1)}
		power = min(power, b.below(low-1)+b.above(high+1))
	}
	return power
}

// Required is the smallest sample size from which on every size keeps the promised power. Counts are a lattice, so power
// is not monotone in n: some smaller sizes keep the promise too, and Claim accepts those, since it computes the power of
// the size that it is given. An exact claim requires as many samples as show a stray with the promised power if the share of
// strays is Catch, the smallest n with (1-Catch)^n <= 1-power; alpha does not enter, since true claims never have a
// stray. One is enough where no Catch is named.
func (s Share) Required() int {
	alpha, power := s.promises()
	if s.exact() {
		if s.Catch <= 0 {
			return 1
		}
		return int(math.Ceil(math.Log(1-power) / math.Log1p(-min(s.Catch, 1-1e-12))))
	}
	n := s.guess(alpha, power)
	for s.PowerAt(n) < power {
		n *= 2
	}
	for n > 1 && s.PowerAt(n-1) >= power {
		n--
	}
	return n
}

// guess is a sample size safely past Required: the normal approximation, and as much again as the lattice and the skew
// of a binomial can cost.
func (s Share) guess(alpha, power float64) int {
	za, zb := normalQuantile(1-alpha/2), normalQuantile(power)
	n := 1.0
	for _, p := range []float64{s.Want - s.Catch, s.Want + s.Catch} {
		if p < 0 || p > 1 {
			continue
		}
		root := (za*math.Sqrt(s.Want*(1-s.Want)) + zb*math.Sqrt(p*(1-p))) / s.Catch
		n = max(n, root*root)
	}
	return int(n*1.005 + 20/s.Catch)
}

// Claim judges the counts. Rejected at level alpha: fail. Not rejected by a sample with the promised power: pass.
// Otherwise inconclusive, with the size that would do. An invalid plan is inconclusive and says why.
func (s Share) Claim() Claim {
	c := Claim{ID: s.ID, Statement: s.Statement, N: s.N, Statistic: "exact two-sided binomial test, size fixed beforehand",
		Confounder: shareConfounder}
	if err := s.Validate(); err != nil {
		c.Outcome, c.Reason = Inconclusive, err.Error()
		return c
	}
	c.Observed = fmt.Sprintf("%s (n=%s)", percent(ratio(s.Count, s.N), 2), Group(s.N))
	if s.exact() {
		return s.exactClaim(c)
	}
	alpha, power := s.promises()
	if s.N == 0 {
		c.Outcome, c.Observed = Inconclusive, "no samples"
		c.Reason = fmt.Sprintf("no samples; %s are needed", Group(s.Required()))
		return c
	}
	low, high := s.Accept(s.N)
	a, b := percent(ratio(low, s.N), 2), percent(ratio(high, s.N), 2)
	want := s.Want * 100
	c.Interval = &Interval{Unit: "%", Observed: 100 * ratio(s.Count, s.N), Want: &want, Low: 100 * ratio(low, s.N), High: 100 * ratio(high, s.N)}
	c.Bound = fmt.Sprintf("%s..%s; a %s-point error would show: power %s, false alarm %s", a, b, trim(s.Catch*100), trim(power), trim(alpha))
	switch got := s.PowerAt(s.N); {
	case s.Count < low || s.Count > high:
		c.Outcome = Fail
		c.Reason = fmt.Sprintf("observed %s, outside %s..%s (counts %s..%s of %s)", percent(ratio(s.Count, s.N), 2), a, b, Group(low), Group(high), Group(s.N))
	case got < power:
		c.Outcome = Inconclusive
		c.Bound = fmt.Sprintf("%s..%s; false alarm %s", a, b, trim(alpha))
		c.Reason = fmt.Sprintf("%s samples catch a %s-point error with a chance of only %.4g; %s samples are needed for %s", Group(s.N), trim(s.Catch*100), got, Group(s.Required()), trim(power))
	default:
		c.Outcome = Pass
	}
	return c
}

func (s Share) exactClaim(c Claim) Claim {
	c.Statistic = "exact: one stray is a fail"
	strays := s.Count
	if s.Want == 1 {
		strays = s.N - s.Count
	}
	alpha, _ := s.promises()
	want := s.Want * 100
	c.Interval = &Interval{Unit: "%", Observed: 100 * ratio(s.Count, s.N), Want: &want, Low: want, High: want}
	switch {
	case strays > 0:
		c.Outcome = Fail
		c.Bound = "exactly " + percent(s.Want, 0)
		c.Reason = fmt.Sprintf("%s of %s requests went astray", Group(strays), Group(s.N))
	case s.N < s.Required():
		c.Outcome = Inconclusive
		c.Reason = fmt.Sprintf("%s samples; %s are needed", Group(s.N), Group(s.Required()))
	default:
		c.Outcome = Pass
		c.Bound = fmt.Sprintf("exactly %s; strays below %s", percent(s.Want, 0), lossBound(alpha, s.N))
	}
	if s.N == 0 {
		c.Interval, c.Observed = nil, "no samples"
	}
	return c
}
