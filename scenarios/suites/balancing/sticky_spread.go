package balancing

import (
	"fmt"
	"slices"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
)

// drawn are the first answers of each session in the calm, which is where its hash led it. A cookie is a session.
func (run stickyRun) drawn(s stickyService) []evidence.Request {
	if len(run.spans) == 0 {
		return nil
	}
	seen := map[uint64]bool{}
	var out []evidence.Request
	for _, r := range run.within(run.spans[0].window, s.names()...) {
		if _, hash, ok := s.hashOf(r, run.addresses[r.Stream]); ok && !seen[hash] {
			seen[hash] = true
			out = append(out, r)
		}
	}
	return out
}

func pods(rs []evidence.Request) map[string]int {
	out := map[string]int{}
	for _, r := range rs {
		out[r.Pod]++
	}
	return out
}

// noTable is a claim about tables where no proxy has one.
func noTable(id, statement string) verdict.Claim {
	return verdict.Claim{
		ID: id, Statement: statement, Outcome: verdict.Skip, Observed: "no table", Reason: "there is no mesh in this lab, so no proxy has a table",
	}
}

// judgeSpread has the cookies that were given out in the calm fall on hosts as the ring's shares say. Each cookie counts once.
func (run stickyRun) judgeSpread(s stickyService) verdict.Claim {
	drawn := run.drawn(s)
	v := verdict.Spread{
		ID: "spread/" + s.name, Statement: "sessions spread over hosts as the " + s.table + " divides hashes", Catch: run.plan.catch.spread,
		Want: map[string]float64{}, Count: pods(drawn),
	}
	if !run.meshed {
		return noTable(v.ID, v.Statement)
	}
	if len(run.spans) > 0 {
		calm := run.spans[0]
		if t := run.tableOf(s, calm, s.streams[0].at(), ""); t != nil {
			for addr, share := range t.shares() {
				v.Want[calm.hosts.pods[addr]] = share
			}
		}
	}
	return run.finish(v.Claim(), s.names(), moments(drawn))
}

// judgeEven has sessions spread as evenly as a ring of so many points promises, whatever its table says.
func (run stickyRun) judgeEven(s stickyService) verdict.Claim {
	drawn := run.drawn(s)
	v := verdict.Even{ID: "even/" + s.name, Points: s.points(podsBefore), Hosts: podsBefore, Count: pods(drawn), Catch: run.plan.catch.equal}
	v.Statement = fmt.Sprintf("sessions spread over hosts as evenly as %d points of each promise", v.Points)
	return run.finish(v.Claim(), s.names(), moments(drawn))
}

// judgeEqual has sessions spread evenly, as Maglev promises: each host has as many entries of the table.
func (run stickyRun) judgeEqual(s stickyService) verdict.Claim {
	drawn := run.drawn(s)
	v := verdict.Spread{
		ID: "even/" + s.name, Statement: "sessions spread evenly over hosts, as Maglev promises", Catch: run.plan.catch.maglev,
		Want: map[string]float64{}, Count: pods(drawn),
	}
	if len(run.spans) > 0 {
		for _, pod := range run.spans[0].hosts.pods {
			v.Want[pod] = 1.0 / float64(len(run.spans[0].hosts.pods))
		}
	}
	return run.finish(v.Claim(), s.names(), moments(drawn))
}

// change is the spans before and after one in which hosts came or went; false if it was not come to.
func (run stickyRun) change(name string) (before, after span, ok bool) {
	i := slices.IndexFunc(run.spans, func(sp span) bool { return sp.name == name })
	if i < 1 {
		return span{}, span{}, false
	}
	return run.spans[i-1], run.spans[i], true
}

// owners are where each session of a Service was before and after the hosts changed, beside where the tables put it; without them it
// is not known. share is the part of all hashes that changed owner, at the proxy where that is most.
func (run stickyRun) owners(s stickyService, before, after span) (owners []verdict.Owner, share float64) {
	for _, st := range s.streams {
		a, b := run.tableOf(s, before, st.at(), ""), run.tableOf(s, after, st.at(), "")
		if a != nil && b != nil {
			share = max(share, a.moved(b))
		}
		at := map[string]int{} // of each session in owners
		for _, r := range run.within(before.window, st.name) {
			id, hash, ok := s.hashOf(r, run.addresses[r.Stream])
			if !ok {
				continue
			}
			o := verdict.Owner{Session: id, Before: r.Pod}
			if a != nil && b != nil {
				o.OwnedBefore, o.OwnedAfter = before.hosts.pods[a.owner(hash)], after.hosts.pods[b.owner(hash)]
			}
			if i, again := at[id]; again {
				owners[i] = o // where it was last
				continue
			}
			at[id] = len(owners)
			owners = append(owners, o)
		}
		for _, r := range run.within(after.window, st.name) {
			id, _, ok := s.hashOf(r, run.addresses[r.Stream])
			if i, known := at[id]; ok && known && owners[i].After == "" {
				owners[i].After, owners[i].At = r.Pod, sentAt(r)
			}
		}
	}
	return owners, share
}

// judgeMoved has sessions move as the tables of before and after say, and no more than such tables promise.
func (run stickyRun) judgeMoved(s stickyService, name, statement string) verdict.Claim {
	v := verdict.Moved{ID: name + "/" + s.name, Statement: statement + ": " + s.text(), Most: s.promised(), Catch: run.plan.catch.cause}
	if !run.meshed {
		return noTable(v.ID, v.Statement)
	}
	before, after, ok := run.change(name)
	if !ok {
		return v.Claim()
	}
	v.Owners, v.Share = run.owners(s, before, after)
	c := v.Claim()
	c.Window = &verdict.Window{From: before.window.From, To: after.window.To}
	return run.finish(c, s.names(), v.Wrong())
}

// judgeKept has no session move between hosts of which neither joined or left: none on the exact ring, few by Maglev.
func (run stickyRun) judgeKept(s stickyService, name, statement string) verdict.Claim {
	v := verdict.Kept{ID: "kept/" + name + "/" + s.name, Statement: statement + ": " + s.text(), Catch: run.plan.catch.cause}
	if s.table == maglev {
		v.Statement += fmt.Sprintf(", beside %.0f%% of the others", 100*maglevError)
		v.Slack, v.Catch = maglevError, run.plan.catch.slack
	}
	before, after, ok := run.change(name)
	if !ok {
		return v.Claim()
	}
	v.Owners, _ = run.owners(s, before, after)
	v.Host = differing(before.hosts.pods, after.hosts.pods)
	c := v.Claim()
	c.Window = &verdict.Window{From: before.window.From, To: after.window.To}
	return run.finish(c, s.names(), v.Wrong())
}

// differing is the pod that is in one of the sets alone.
func differing(a, b map[string]string) string {
	for _, sets := range [][2]map[string]string{{a, b}, {b, a}} {
		for addr, pod := range sets[0] {
			if _, both := sets[1][addr]; !both {
				return pod
			}
		}
	}
	return ""
}
