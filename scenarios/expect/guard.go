package expect

import (
	"fmt"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/record"
)

// GuardID is the claim of every scenario that says whether the host let it be judged.
const GuardID = "guard"

// Bounds of the guard.
const (
	LateBound    = 100 * time.Millisecond // behind its schedule, after which a send is late
	LateMax      = 0.01                   // of sends that may be late; seen on a quiet host of two cores: none
	stealMax     = 0.10
	clockJumpMax = 250 * time.Millisecond
	stallSlack   = 0.25 // of CPU pressure beyond the calibration
	// Of CPU pressure: what is allowed whatever the calibration saw, since it was short, and what is never allowed. Seen on a
	// quiet host of two cores: 0.56. Late sends tell more.
	stallFloor, stallCeiling = 0.90, 0.97
)

// Guard judges whether the host let a scenario be judged: the load left when it should, no more was short than in the
// calibration, clocks agreed, and no pod outside the experiment was disturbed.
func Guard(requests []evidence.Request, host, calibration record.Host, disturbed []string) verdict.Claim {
	late, sends := lateSends(requests)
	g := verdict.Guard{
		ID: GuardID, Statement: "the host let this run be judged", Sends: sends,
		LateBound: LateBound.Seconds(), LateMax: LateMax,
		Loads: []verdict.HostLoad{
			{
				Name: "CPU pressure (PSI some)", Share: host.CPUStall, Allowed: min(stallCeiling, max(stallFloor, calibration.CPUStall+stallSlack)),
				Unknown: host.CPUStall < 0 || calibration.CPUStall < 0,
			},
			{Name: "steal", Share: host.Steal, Allowed: stealMax, Unknown: host.Steal < 0},
		},
		ClockJump: host.ClockJump, ClockJumpMax: clockJumpMax, Restarts: disturbed,
	}
	if sends > 0 {
		g.LateShare = float64(late) / float64(sends)
	}
	return g.Claim()
}

func lateSends(requests []evidence.Request) (late, sends int) {
	for _, r := range requests {
		if r.Class == canceled {
			continue
		}
		sends++
		if time.Duration(r.Sent-r.Intended) > LateBound {
			late++
		}
	}
	return late, sends
}

// stallReach is how long after a stall of the host a request can still fail for it: the shortest timeout in the apps.
const stallReach = 3 * time.Second

// Excuse takes back that a claim fails where the host itself stalled around what was wrong: the time then says nothing about the
// mesh, so that the claim is inconclusive, and says why. wrong are the moments, in their order; streams are those whose sends tell.
func Excuse(c verdict.Claim, requests []evidence.Request, wrong []verdict.Failure, streams ...string) verdict.Claim {
	if c.Outcome != verdict.Fail {
		return c
	}
	if late := lateAround(requests, wrong, streams...); late > LateMax {
		c.Outcome = verdict.Inconclusive
		c.Reason += fmt.Sprintf("\nnot counted as a failure: around it %.1f%% of sends were more than %s late themselves, allowed %.0f%%: the host stalled",
			100*late, LateBound, 100*LateMax)
	}
	return c
}

// Moments are when requests left that are wrong, in their order, as Excuse takes them.
func Moments(rs []evidence.Request, wrong func(evidence.Request) bool) []verdict.Failure {
	var out []verdict.Failure
	for _, r := range inOrder(rs, wrong) {
		out = append(out, verdict.Failure{Time: time.Unix(0, r.Sent)})
	}
	return out
}

// lateAround is the share of late sends of the named streams from three seconds before the first to three seconds after each
// failure. The guard looks at a whole run, where a stall of a second drowns; what counts for a loss is the time around it.
func lateAround(requests []evidence.Request, failures []verdict.Failure, streams ...string) float64 {
	var spans []Window
	for _, f := range failures { // they are in order
		w := Window{From: f.Time.Add(-stallReach), To: f.Time.Add(stallReach)}
		if n := len(spans); n > 0 && !w.From.After(spans[n-1].To) {
			spans[n-1].To = w.To
			continue
		}
		spans = append(spans, w)
	}
	late, sends := 0, 0
	for _, w := range spans {
		l, s := lateSends(Sent(requests, w, streams...))
		late, sends = late+l, sends+s
	}
	if sends == 0 {
		return 0
	}
	return float64(late) / float64(sends)
}
