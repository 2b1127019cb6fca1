package verdict

import (
	"fmt"
	"strings"
	"time"
)

// ProxyAck is when one proxy acknowledged the version that holds a change.
type ProxyAck struct {
	Proxy string
	Acked bool
	At    time.Time
	Nack  string // the proxy's reason for refusing, if it did
}

// Converged claims that a change is live in every proxy within a bound of being applied. What requests show is reported
// beside it: they say when traffic obeyed, the acks when configuration did.
type Converged struct {
	ID        string
	Statement string
	Applied   time.Time
	Within    time.Duration // the bound, stated beforehand
	Proxies   []ProxyAck
	// FirstObeying and LastDisobeying are intended starts of requests; zero where there was none.
	FirstObeying, LastDisobeying time.Time
}

// Claim judges: a refusal is a fail, so is an ack after the bound or none at all.
func (v Converged) Claim() Claim {
	c := Claim{ID: v.ID, Statement: v.Statement, N: len(v.Proxies), Statistic: "acks from proxy status, times from apply",
		Bound:      "all within " + Seconds(v.Within.Seconds()),
		Confounder: "clocks of control plane and runner that differ, a proxy that acks before it serves"}
	if len(v.Proxies) == 0 {
		c.Outcome, c.Observed, c.Reason = Inconclusive, "no proxies", "no proxy is concerned, so nothing was shown"
		return c
	}
	var slowest time.Duration
	var wrong []string
	acked := 0
	for _, p := range v.Proxies {
		switch d := p.At.Sub(v.Applied); {
		case p.Nack != "":
			wrong = append(wrong, fmt.Sprintf("%s refused it: %s", p.Proxy, p.Nack))
		case !p.Acked:
			wrong = append(wrong, p.Proxy+" has not acked")
		default:
			acked++
			slowest = max(slowest, d)
			if d > v.Within {
				wrong = append(wrong, fmt.Sprintf("%s acked after %s", p.Proxy, Seconds(d.Seconds())))
			}
		}
	}
	last := v.Applied.Add(max(slowest, v.Within/10))
	c.Observed = fmt.Sprintf("acked by %d of %d proxies", acked, len(v.Proxies))
	if acked > 0 {
		c.Observed += " in " + Seconds(slowest.Seconds())
		c.Interval = &Interval{Unit: "s", Observed: slowest.Seconds(), Low: 0, High: v.Within.Seconds()}
	}
	if !v.FirstObeying.IsZero() {
		c.Observed += ", first obeying request " + relative(v.FirstObeying.Sub(v.Applied))
	}
	if !v.LastDisobeying.IsZero() {
		c.Observed += ", last old one " + relative(v.LastDisobeying.Sub(v.Applied))
		if v.LastDisobeying.After(last) {
			last = v.LastDisobeying
		}
	}
	c.Window = &Window{From: v.Applied, To: last}
	c.Outcome = Pass
	if len(wrong) > 0 {
		c.Outcome, c.Reason = Fail, strings.Join(wrong, "\n")
	}
	return c
}

// relative writes a time relative to the apply; requests can be on their way when the change is applied.
func relative(d time.Duration) string {
	if d < 0 {
		return Seconds(-d.Seconds()) + " before"
	}
	return Seconds(d.Seconds())
}
