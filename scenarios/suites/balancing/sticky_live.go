package balancing

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
)

const (
	// liveBound is how long a change may take to its last acknowledgement; seen: tens of milliseconds.
	liveBound = 5 * time.Second
	// firstBound is liveBound of the first change, while proxies of new load agents still connect.
	firstBound = 30 * time.Second
)

// judgeLive has every change reach every proxy: the policies, each set of hosts, and the weights.
func (run stickyRun) judgeLive() []verdict.Claim {
	return []verdict.Claim{
		run.judgeChange(verdict.Converged{ID: "live/policies", Statement: "the policies are live everywhere", Within: firstBound}, run.policies),
		run.judgeArrival("calm", "every proxy knows the hosts before load begins"),
		run.judgeArrival("joined", "a host that joined is known everywhere"),
		run.judgeChange(verdict.Converged{ID: "live/weights", Statement: "new weights are live everywhere", Within: liveBound}, run.weights),
		run.judgeArrival("left", "a host that left is known nowhere"),
	}
}

// undecided is a claim about proxies that says nothing: skipped in a lab without a mesh, or inconclusive for that reason.
func (run stickyRun) undecided(v verdict.Converged, why string) verdict.Claim {
	c := verdict.Claim{ID: v.ID, Statement: v.Statement, Outcome: verdict.Inconclusive, Observed: "nothing", Reason: why}
	if !run.meshed {
		c.Outcome, c.Observed, c.Reason = verdict.Skip, "no control plane", "there is no mesh in this lab, so nobody acknowledges a change"
	}
	return c
}

// judgeChange tells apart what the mesh did wrong, which fails, and what the API server or the control plane did not let be seen.
func (run stickyRun) judgeChange(v verdict.Converged, change drive.Change) verdict.Claim {
	switch {
	case !run.meshed:
		return run.undecided(v, "")
	case change.Applied.IsZero():
		return run.undecided(v, "it was not come to")
	case !change.Taken && change.Err != nil:
		return run.undecided(v, "the API server did not take it: "+change.Err.Error())
	}
	v.Applied, v.Proxies = change.Applied, change.Acks
	c := v.Claim()
	if change.Err != nil {
		var refused *env.RefusedError
		switch {
		case errors.As(change.Err, &refused):
			c.Outcome = verdict.Fail
		case c.Outcome == verdict.Pass:
			c.Outcome = verdict.Inconclusive
		}
		c.Reason += "\nlikely  " + change.Err.Error() + "\nsee     meshproof mesh proxy-status"
	}
	return run.excuse(c, v)
}

// judgeArrival has every proxy know the pods soon after they are Ready, or gone.
func (run stickyRun) judgeArrival(name, statement string) verdict.Claim {
	v := verdict.Converged{ID: "live/" + name, Statement: statement, Within: liveBound}
	i := slices.IndexFunc(run.arrivals, func(a arrival) bool { return a.name == name })
	if !run.meshed || i < 0 {
		return run.undecided(v, "it was not come to")
	}
	a := run.arrivals[i]
	var behind *behindError
	if a.err != nil && (a.hosts.ready.IsZero() || !errors.As(a.err, &behind)) {
		return run.undecided(v, a.err.Error())
	}
	v.Applied, v.Proxies = a.hosts.ready, a.hosts.acks()
	c := v.Claim()
	knows := strings.NewReplacer("acked by", "known to", "has not acked", "does not know them", "acked after", "knew them after")
	c.Observed, c.Reason = knows.Replace(c.Observed), knows.Replace(c.Reason)
	c.Statistic = "hosts of each proxy's /clusters against the Ready pods, times from when these were seen"
	if a.err != nil {
		c.Reason += "\nlikely  " + a.err.Error()
	}
	return run.excuse(c, v)
}

// excuse takes a failure back if the host stalled while the change was on its way.
func (run stickyRun) excuse(c verdict.Claim, v verdict.Converged) verdict.Claim {
	return expect.Excuse(c, run.requests, []verdict.Failure{{Time: v.Applied}, {Time: v.Applied.Add(v.Within)}}, run.plan.streams()...)
}
