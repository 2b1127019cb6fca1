package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Ejection is one time that one proxy took one host out, as the proxy tells it. The errors in a row that it then had from the host are
// counted where the requests start, and so within bounds.
type Ejection struct {
	Proxy, Host    string
	At             time.Time
	Returned       time.Time // zero if it has not
	Sure, Possible int       // errors that the proxy must have had when it took the host out, and can have had
	After          int       // that it had for requests that were sent when the host was out
	InFlight       int       // that were on their way, but for the one that led to it
	Number         int       // 1 for the first time of this host at this proxy
}

// Ejected claims that proxies take a host out after exactly so many errors, each for itself, in each fault.
type Ejected struct {
	ID        string
	Statement string
	Threshold int
	Proxies   []string
	Host      string // that was made to fail; "" for any
	Faults    []Fault
	Within    time.Duration
	Ejections []Ejection
}

// Fault is a time in which a host failed, up to when the last of its failures can have been seen.
type Fault struct {
	From, To time.Time
	Rows     map[string]int // by proxy: the most errors in a row that it surely had
}

func (f Fault) holds(t time.Time) bool { return !t.Before(f.From) && !t.After(f.To) }

// Claim judges: too few errors is a fail (the host was taken out for nothing), so is one too many, an error of a request that was sent
// afterwards, a proxy that did not take the host out in one of the faults, or later than Within after it began. A fault in which a
// proxy had too few errors to do so shows nothing. The second result is when what is wrong was seen.
func (v Ejected) Claim() (Claim, []time.Time) {
	c := Claim{
		ID: v.ID, Statement: v.Statement, Statistic: "exact for each proxy and fault: errors in a row from the host when it is taken out",
		Bound:      fmt.Sprintf("%d errors, and those in flight, within %s", v.Threshold, Seconds(v.Within.Seconds())),
		Confounder: "retries that the client does not see, answers of other hosts counted to this one, clocks that differ",
	}
	var wrong, unmet, seen []string
	var when []time.Time
	note := func(at time.Time, format string, args ...any) {
		wrong, when = append(wrong, fmt.Sprintf(format, args...)), append(when, at)
	}
	var slowest time.Duration
	for _, proxy := range v.Proxies {
		for _, f := range v.Faults {
			mine := v.of(proxy, f)
			switch row := f.Rows[proxy]; {
			case len(mine) == 0 && row < v.Threshold:
				unmet = append(unmet, fmt.Sprintf("%s never took the host out in the fault of %s, with only %d errors in a row", proxy, clock(f.From), row))
			case len(mine) == 0:
				note(f.From, "%s never took the host out in the fault of %s, after %d errors in a row", proxy, clock(f.From), row)
			default:
				took := mine[0].At.Sub(f.From)
				slowest = max(slowest, took)
				if took > v.Within {
					note(mine[0].At, "%s took the host out %s after the fault began", proxy, Seconds(took.Seconds()))
				}
			}
			for _, e := range mine {
				c.N++
				seen = append(seen, e.errors())
				if why := e.Wrong(v.Threshold); why != "" {
					note(e.At, "%s", why)
				}
			}
		}
	}
	if len(seen) > 0 {
		c.Observed = fmt.Sprintf("after %s errors, the slowest %s after the fault", strings.Join(seen, ", "), Seconds(slowest.Seconds()))
	} else {
		c.Observed = "no ejection"
	}
	if len(v.Faults) > 0 {
		c.Window = &Window{From: v.Faults[0].From, To: v.Faults[len(v.Faults)-1].To}
	}
	c.Outcome = Pass
	switch {
	case len(v.Proxies) == 0 || len(v.Faults) == 0:
		c.Outcome, c.Reason = Inconclusive, "no proxy or no fault to look at"
	case len(wrong) > 0:
		c.Outcome, c.Reason = Fail, strings.Join(wrong, "\n")
	case len(unmet) > 0:
		c.Outcome, c.Reason = Inconclusive, strings.Join(unmet, "\n")
	}
	return c, when
}

// of are a proxy's ejections in a fault, in order.
func (v Ejected) of(proxy string, f Fault) []Ejection {
	var out []Ejection
	for _, e := range v.Ejections {
		if e.Proxy == proxy && (v.Host == "" || e.Host == v.Host) && f.holds(e.At) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Ejection) int { return a.At.Compare(b.At) })
	return out
}

// errors is how many the proxy had.
func (e Ejection) errors() string {
	if e.Sure >= e.Possible {
		return fmt.Sprint(e.Possible)
	}
	return fmt.Sprintf("%d to %d", e.Sure, e.Possible)
}

// Wrong says why an ejection was not after exactly that many errors in a row; "" if it can have been.
func (e Ejection) Wrong(threshold int) string {
	switch {
	case e.Possible < threshold:
		return fmt.Sprintf("%s took %s out after %s errors at %s", e.Proxy, e.Host, e.errors(), clock(e.At))
	case e.Sure > threshold:
		return fmt.Sprintf("%s took %s out after %d errors at %s", e.Proxy, e.Host, e.Sure, clock(e.At))
	case e.After > 0:
		return fmt.Sprintf("%s had %d more errors from %s after it took it out at %s", e.Proxy, e.After, e.Host, clock(e.At))
	}
	return ""
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }

// Returned claims that each ejection lasts the base time, times how often the host was ejected lately, and ends in the sweep.
type Returned struct {
	ID        string
	Statement string
	Base      time.Duration
	Interval  time.Duration // between sweeps
	Slack     time.Duration // for a sweep that comes late
	Ejections []Ejection
	Until     time.Time // when it was last looked; an ejection that may still last is not judged
}

// Claim judges every ejection of every host and proxy. The second result is when what is wrong was seen.
func (v Returned) Claim() (Claim, []time.Time) {
	c := Claim{
		ID: v.ID, Statement: v.Statement, Statistic: "times from the proxies' own event logs",
		Bound:      fmt.Sprintf("%s x count, to %s more for the sweep and %s for a late one", Seconds(v.Base.Seconds()), Seconds(v.Interval.Seconds()), Seconds(v.Slack.Seconds())),
		Confounder: "a host that was removed while it was out, a proxy that was short of CPU at the sweep",
	}
	by := map[string][]Ejection{}
	for _, e := range v.Ejections {
		key := e.Proxy + " " + e.Host
		by[key] = append(by[key], e)
	}
	var wrong []string
	var when []time.Time
	note := func(at time.Time, format string, args ...any) {
		wrong, when = append(wrong, fmt.Sprintf(format, args...)), append(when, at)
	}
	shortest, longest := time.Duration(0), time.Duration(0)
	grown := 0
	for _, key := range sortedKeys(by) {
		list := by[key]
		slices.SortFunc(list, func(a, b Ejection) int { return a.At.Compare(b.At) })
		counts := []int{1} // that the ejection may have: how often the host was ejected lately
		for i, e := range list {
			if i > 0 {
				counts = v.next(counts, list[i-1].Returned, e.At)
			}
			low, high := v.Base*time.Duration(slices.Min(counts)), v.Base*time.Duration(slices.Max(counts))+v.Interval+v.Slack
			if e.Returned.IsZero() {
				if v.Until.Sub(e.At) > high {
					note(e.At.Add(high), "%s is still out %s after %s", key, Seconds(v.Until.Sub(e.At).Seconds()), clock(e.At))
				}
				break
			}
			took := e.Returned.Sub(e.At)
			c.N++
			if slices.Min(counts) > 1 {
				grown++
			}
			if shortest == 0 || took < shortest {
				shortest = took
			}
			longest = max(longest, took)
			if took < low || took > high {
				note(e.Returned, "%s was out for %s from %s, not %s to %s", key, Seconds(took.Seconds()), clock(e.At), Seconds(low.Seconds()), Seconds(high.Seconds()))
			}
		}
	}
	c.Outcome = Pass
	switch {
	case len(wrong) > 0:
		c.Outcome, c.Reason = Fail, strings.Join(wrong, "\n")
	case c.N == 0:
		c.Outcome, c.Observed, c.Reason = Inconclusive, "no ejection ended", "no host came back, so nothing was shown"
		return c, nil
	}
	c.Observed = fmt.Sprintf("%s ejections of %s to %s, %s of them repeated", Group(c.N), Seconds(shortest.Seconds()), Seconds(longest.Seconds()), Group(grown))
	return c, when
}

// next is the count of an ejection at the time at, after a host returned: one more than it was, less one for each sweep that found
// the host well and at least an interval back. Whether the sweep an interval after the return counts depends on microseconds, and
// so does one at the ejection: both are allowed.
func (v Returned) next(counts []int, returned, at time.Time) []int {
	if returned.IsZero() {
		return counts
	}
	sweeps := int(at.Sub(returned) / v.Interval)
	var out []int
	for _, n := range counts {
		for _, less := range []int{sweeps - 1, sweeps, sweeps + 1} {
			// Close to the return, no sweep has come by: the count grows.
			if less < 0 || sweeps == 0 && less > 0 && at.Sub(returned) < v.Interval-v.Slack {
				continue
			}
			out = append(out, max(n-less, 0)+1)
		}
	}
	slices.Sort(out)
	return slices.Compact(out) // or they would be three times as many at each ejection
}

// FailedShare claims that a fault of some hosts costs no more requests than their ejection allows.
type FailedShare struct {
	ID        string
	Statement string
	Failed, N int
	// Allowed is what the thresholds, the requests in flight, the proxies and the ejections explain.
	Allowed int
	Why     string // how Allowed comes about: "5 errors and 2 in flight x 2 proxies x 3 ejections"
}

// Claim judges.
func (v FailedShare) Claim() Claim {
	c := Claim{
		ID: v.ID, Statement: v.Statement, N: v.N, Statistic: "count of failed requests",
		Observed:   fmt.Sprintf("%s of %s requests (%s)", Group(v.Failed), Group(v.N), percent(ratio(v.Failed, v.N), 2)),
		Bound:      fmt.Sprintf("%s (%s): %s", Group(v.Allowed), percent(ratio(v.Allowed, v.N), 2), v.Why),
		Confounder: "failures that have another cause than the fault",
	}
	switch {
	case v.N == 0:
		c.Outcome, c.Reason = Inconclusive, "no requests were sent"
	case v.Failed > v.Allowed:
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s requests failed, %s are explained", Group(v.Failed), Group(v.Allowed))
	default:
		c.Outcome = Pass
	}
	return c
}
