package verdict

import (
	"fmt"
	"strings"
	"time"
)

// Guard claims that the run could be judged at all: the generator kept its schedule and the host was not starved. It never
// fails; what trips it makes a run inconclusive.
type Guard struct {
	ID        string
	Statement string

	Sends     int     // requests sent
	LateShare float64 // share of sends that were late
	LateBound float64 // seconds after which a send is late
	LateMax   float64 // largest accepted share of late sends

	Loads []HostLoad

	ClockJump    time.Duration // largest disagreement of wall and monotonic clock
	ClockJumpMax time.Duration // largest accepted one

	Restarts []string // pods outside the experiment that restarted, with what is known of it
}

// HostLoad is one measure of starvation, as a share of time from 0 to 1, beside what the calibration allows.
type HostLoad struct {
	Name    string // "CPU pressure (PSI some)", "steal"
	Share   float64
	Allowed float64
	Unknown bool // this host cannot measure it; reported, never counted
}

// Claim judges.
func (g Guard) Claim() Claim {
	c := Claim{ID: g.ID, Statement: g.Statement, N: g.Sends, Statistic: "figures against the calibration of this lab",
		Confounder: "none: this claim is about what could confound the others"}
	var seen, bounds, tripped []string
	check := func(figure, bound string, over bool, cure string) {
		seen, bounds = append(seen, figure), append(bounds, bound)
		if over {
			tripped = append(tripped, fmt.Sprintf("%s, allowed %s; %s", figure, bound, cure))
		}
	}
	if g.LateBound > 0 {
		check(percent(g.LateShare, 2)+" of sends late", percent(g.LateMax, 2)+" over "+Seconds(g.LateBound), g.LateShare > g.LateMax,
			"lower the rate or give the host more CPU")
	}
	for _, l := range g.Loads {
		if l.Unknown {
			seen = append(seen, l.Name+" not measurable here")
			continue
		}
		check(l.Name+" "+percent(l.Share, 1), percent(l.Allowed, 1), l.Share > l.Allowed, "run again on a quieter host")
	}
	if g.ClockJumpMax > 0 {
		check("clock jump "+Seconds(g.ClockJump.Abs().Seconds()), Seconds(g.ClockJumpMax.Seconds()), g.ClockJump.Abs() > g.ClockJumpMax,
			"look at time synchronisation of the host")
	}
	for _, r := range g.Restarts {
		tripped = append(tripped, "a pod outside the experiment restarted: "+r)
	}
	c.Observed, c.Bound = strings.Join(seen, ", "), strings.Join(bounds, ", ")
	switch {
	case len(tripped) > 0:
		c.Outcome, c.Reason = Inconclusive, strings.Join(tripped, "\n")
	case len(bounds) == 0:
		c.Outcome, c.Reason = Inconclusive, "nothing about the host was measured"
	default:
		c.Outcome = Pass
	}
	return c
}
