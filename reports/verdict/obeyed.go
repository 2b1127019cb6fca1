package verdict

import (
	"fmt"
	"time"
)

// Obeyed claims that requests show a change soon after it was applied: that the first one which only the new configuration explains
// came, or that the last one which only the old explains had gone.
type Obeyed struct {
	ID        string
	Statement string
	Applied   time.Time
	Acked     time.Time     // by the last proxy; zero if nobody did
	Seen      time.Time     // when that request was sent; zero if there was none
	Last      bool          // it is the last of the old, not the first of the new
	Within    time.Duration // of Applied
	N         int           // requests looked at
}

// Claim judges. Without a first request of the new there is nothing that shows the change; without a last one of the old there was no
// request in time to disobey, which is as good.
func (v Obeyed) Claim() Claim {
	c := Claim{
		ID: v.ID, Statement: v.Statement, N: v.N, Statistic: "exact: when the request was sent, from apply", Bound: "within " + Seconds(v.Within.Seconds()),
		Confounder: "too few requests to show it sooner, an app that names its version wrongly", Outcome: Pass,
	}
	took := v.Seen.Sub(v.Applied)
	switch {
	case v.N == 0:
		c.Outcome, c.Observed, c.Reason = Inconclusive, "no requests", "no requests were looked at"
		return c
	case v.Seen.IsZero() && v.Last:
		c.Observed = "none after the change was applied"
		return c
	case v.Seen.IsZero():
		c.Outcome, c.Observed, c.Reason = Fail, "none", fmt.Sprintf("none of %s requests shows the change", Group(v.N))
		return c
	}
	c.Observed = relative(took) + " after it was applied"
	if took < 0 {
		c.Observed = Seconds(-took.Seconds()) + " before it was applied, and answered after"
	}
	if !v.Acked.IsZero() {
		side := "before"
		if v.Seen.After(v.Acked) {
			side = "after"
		}
		c.Observed += fmt.Sprintf(", %s %s the last acknowledgement", Seconds(v.Seen.Sub(v.Acked).Abs().Seconds()), side)
	}
	c.Interval = &Interval{Unit: "s", Observed: max(0, took.Seconds()), High: v.Within.Seconds()}
	c.Window = &Window{From: v.Applied, To: v.Applied.Add(max(took, v.Within/10))}
	if took > v.Within {
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s after the change was applied", Seconds(took.Seconds()))
	}
	return c
}
