package verdict

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Kept claims that when one host joins or leaves only its own sessions move: to it or from it. It is judged by who answered, without
// a table.
type Kept struct {
	ID        string
	Statement string
	Host      string // who joined or left; "" if nobody did
	Owners    []Owner
	// Slack is the share of the other sessions that may move all the same: 0 where the table is exact, else what its kind promises.
	Slack float64
	Catch float64 // the smallest share of other sessions beyond Slack that must show
	Alpha float64 // 0 means DefaultAlpha
}

// astray says whether a session went from one host to another of which neither joined or left.
func (k Kept) astray(o Owner) bool {
	return o.seen() && o.went() && o.Before != k.Host && o.After != k.Host
}

// Claim judges: without Slack one other session that moves is a fail. A pass needs as many others as show a share of Catch, and a
// session of the host itself, since a host without any tries nothing.
func (k Kept) Claim() Claim {
	own, others, strays, first := 0, 0, 0, ""
	for _, o := range k.Owners {
		switch {
		case !o.seen():
		case o.Before == k.Host || o.After == k.Host:
			own++
		default:
			others++
			if k.astray(o) {
				if strays++; strays == 1 {
					first = fmt.Sprintf("%s went from %s to %s, and it was %s that joined or left", o.Session, o.Before, o.After, k.Host)
				}
			}
		}
	}
	c := Claim{
		ID: k.ID, Statement: k.Statement, N: others, Statistic: "exact: who answered each session before and after; no table is asked",
		Observed:   fmt.Sprintf("%s of %s other sessions moved, beside %s of the host's own", Group(strays), Group(others), Group(own)),
		Bound:      "none",
		Confounder: "a host that seemed dead meanwhile, answers from before every proxy knew",
	}
	if k.Slack > 0 {
		c.Statistic = "one-sided binomial of the other sessions that moved; no table is asked"
	}
	high := k.most(others)
	switch need := k.Required(); {
	case k.Host == "" || own+others == 0:
		c.Outcome, c.Observed, c.Reason = Inconclusive, "no session", "no session was seen before and after a host joined or left"
	case strays > high:
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s other sessions moved, %s allowed; %s", Group(strays), Group(high), first)
	case others < need:
		c.Outcome, c.Reason = Inconclusive, fmt.Sprintf("%s other sessions were seen; %s are needed to show a share of %s", Group(others), Group(need), percent(k.Slack+k.Catch, 1))
	case own == 0:
		c.Outcome, c.Reason = Inconclusive, "the host had no session, so nothing was tried"
	default:
		c.Outcome, c.Bound = Pass, fmt.Sprintf("at most %s of %s; a share of %s would show", Group(high), Group(others), percent(k.Slack+k.Catch, 1))
	}
	return c
}

// most is how many of n other sessions may move.
func (k Kept) most(n int) int {
	if k.Slack == 0 || n == 0 {
		return 0
	}
	alpha := k.Alpha
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	_, high := binomial{n, k.Slack}.region(alpha)
	return high
}

// Required is how many other sessions show a share of Catch beyond Slack with DefaultPower.
func (k Kept) Required() int {
	n := enough(k.Catch + k.Slack)
	for k.Slack > 0 && (binomial{n, k.Slack + k.Catch}).above(k.most(n)+1) < DefaultPower {
		n++
	}
	return n
}

// Wrong are the moments at which other sessions were found elsewhere, in their order.
func (k Kept) Wrong() []Failure {
	var at []time.Time
	for _, o := range k.Owners {
		if k.astray(o) {
			at = append(at, o.At)
		}
	}
	return moments(at)
}

// Even claims that draws fall on hosts as evenly as a ring promises that has as many points of each: hashes and points being uniform,
// a host's share of the ring is Beta(points, points * (hosts - 1)) and its count beta-binomial. It knows nothing of the ring itself.
type Even struct {
	ID        string
	Statement string
	Points    int // of each host
	Count     map[string]int
	Hosts     int     // that there are, whether or not they were drawn
	Catch     float64 // the smallest deviation of a host's share from an equal one that must show
	Alpha     float64 // over all hosts; 0 means DefaultAlpha
}

// Claim judges: a host with more or fewer draws than the ring promises at level Alpha is a fail.
func (e Even) Claim() Claim {
	n := 0
	for _, k := range e.Count {
		n += k
	}
	c := Claim{
		ID: e.ID, Statement: e.Statement, N: n, Statistic: "beta-binomial for each host, false alarms shared; no table is asked",
		Confounder: "draws that are not independent: clients that share a cookie or a connection",
	}
	if n == 0 || e.Hosts < 2 {
		c.Outcome, c.Observed, c.Reason = Inconclusive, "no samples", "no samples"
		return c
	}
	low, high := e.region(n)
	var wrong, seen []string
	for _, host := range sortedKeys(e.Count) {
		seen = append(seen, percent(ratio(e.Count[host], n), 1))
		if k := e.Count[host]; k < low || k > high {
			wrong = append(wrong, fmt.Sprintf("%s has %s of %s, outside %s to %s", host, Group(k), Group(n), Group(low), Group(high)))
		}
	}
	if absent := e.Hosts - len(e.Count); absent > 0 && low > 0 {
		wrong = append(wrong, fmt.Sprintf("%d of %d hosts have none", absent, e.Hosts))
	}
	c.Observed = fmt.Sprintf("%s (n=%s)", strings.Join(seen, ", "), Group(n))
	c.Bound = fmt.Sprintf("%s..%s each; a %s-point error would show", percent(ratio(low, n), 1), percent(ratio(high, n), 1), trim(e.Catch*100))
	switch power := e.power(n, low, high); {
	case len(wrong) > 0:
		c.Outcome, c.Reason = Fail, strings.Join(wrong, "\n")
	case power < DefaultPower:
		c.Outcome, c.Reason = Inconclusive, fmt.Sprintf("%s samples show a %s-point error with a chance of only %.4g", Group(n), trim(e.Catch*100), power)
	default:
		c.Outcome = Pass
	}
	return c
}

// power is the chance that n draws show a share that is Catch more, or less, than an equal one.
func (e Even) power(n, low, high int) float64 {
	equal := 1 / float64(e.Hosts)
	power := binomial{n, min(1, equal+e.Catch)}.above(high + 1)
	if p := equal - e.Catch; p > 0 {
		power = min(power, binomial{n, p}.below(low-1))
	}
	return power
}

// region is the smallest and largest count that is accepted.
func (e Even) region(n int) (low, high int) {
	alpha := e.Alpha
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	tail := alpha / float64(2*e.Hosts)
	a := float64(e.Points)
	b := a * float64(e.Hosts-1)
	mass := func(k int) float64 { // of the beta-binomial law
		x, m := float64(k), float64(n)
		return math.Exp(lgamma(m+1) - lgamma(x+1) - lgamma(m-x+1) + lgamma(x+a) + lgamma(m-x+b) - lgamma(m+a+b) + lgamma(a+b) - lgamma(a) - lgamma(b))
	}
	for sum := mass(0); sum <= tail; sum += mass(low) {
		low++
	}
	high = n
	for sum := mass(n); sum <= tail; sum += mass(high) {
		high--
	}
	return low, high
}
