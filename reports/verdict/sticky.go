package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Visit is one answered request of a session.
type Visit struct {
	Session string // whatever must stay together: a session and the cookie that it sent, say
	Span    string // visits of different spans are not compared: hosts came or went between them
	Host    string // who answered
	At      time.Time
}

// Sticky claims that every session stays on one host.
type Sticky struct {
	ID        string
	Statement string
	Visits    []Visit
	Alpha     float64 // 0 means DefaultAlpha; for the bound that a pass states
	Bound     float64 // share of visits that may move at most, which a pass must exclude; 0 means 5 %
}

// stickyBound is loose: what breaks stickiness breaks it for every session, or for a host's.
const stickyBound = 0.05

// Claim judges: one session on two hosts is a fail. What a pass excludes follows from the visits that could have moved, which are
// all but the first of each session and span. A host that seems dead moves its sessions, so a starved lab excuses a failure.
func (s Sticky) Claim() Claim {
	alpha, bound := s.Alpha, s.Bound
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	if bound == 0 {
		bound = stickyBound
	}
	var moved []string
	again, last := 0, ""
	s.returns(func(a, b Visit) {
		again++
		if a.Host != b.Host && last != b.Session { // they come session by session
			last = b.Session
			moved = append(moved, fmt.Sprintf("%s went from %s to %s at %s", b.Session, a.Host, b.Host, clock(b.At)))
		}
	})
	c := Claim{
		ID: s.ID, Statement: s.Statement, N: len(s.Visits), Statistic: "distinct hosts a session; exact: one session on two hosts is a fail",
		Observed:   fmt.Sprintf("%s of %s sessions moved, %s visits", Group(len(moved)), Group(s.sessions()), Group(len(s.Visits))),
		Bound:      "none",
		Confounder: "a host that left or joined meanwhile, a client that dropped its cookie, an app that names itself wrongly",
	}
	switch excluded := LossBound(alpha, again); {
	case len(moved) > 0:
		c.Outcome = Fail
		c.Reason = strings.Join(moved[:min(len(moved), 3)], "\n")
		if more := len(moved) - 3; more > 0 {
			c.Reason += fmt.Sprintf("\nand %s more", Group(more))
		}
	case again == 0:
		c.Outcome, c.Reason = Inconclusive, "no session came back"
	case excluded > bound:
		c.Outcome = Inconclusive
		c.Reason = fmt.Sprintf("%s repeated visits exclude moves above %s only, wanted %s", Group(again), lossBound(alpha, again), percent(bound, 2))
	default:
		c.Outcome, c.Bound = Pass, "moves below "+lossBound(alpha, again)+" of visits"
	}
	return c
}

// returns calls f with each visit that a session came back with, and the one before it in the same span, session by session.
func (s Sticky) returns(f func(a, b Visit)) {
	by := map[string][]Visit{}
	for _, v := range s.Visits {
		by[v.Session] = append(by[v.Session], v)
	}
	for _, id := range sortedKeys(by) {
		visits := by[id]
		slices.SortStableFunc(visits, func(a, b Visit) int { return a.At.Compare(b.At) })
		for i := 1; i < len(visits); i++ {
			if visits[i-1].Span == visits[i].Span {
				f(visits[i-1], visits[i])
			}
		}
	}
}

func (s Sticky) sessions() int {
	seen := map[string]bool{}
	for _, v := range s.Visits {
		seen[v.Session] = true
	}
	return len(seen)
}

// Wrong are the moments at which sessions were found on another host, in their order.
func (s Sticky) Wrong() []Failure {
	var at []time.Time
	s.returns(func(a, b Visit) {
		if a.Host != b.Host {
			at = append(at, b.At)
		}
	})
	return moments(at)
}

// moments are times in their order.
func moments(at []time.Time) []Failure {
	slices.SortFunc(at, time.Time.Compare)
	var out []Failure
	for _, t := range at {
		out = append(out, Failure{Time: t})
	}
	return out
}

// Spread claims that draws fall on hosts as shares say, each host's count being binomial.
type Spread struct {
	ID        string
	Statement string
	Want      map[string]float64 // by host; adds up to 1
	Count     map[string]int
	Catch     float64 // the smallest deviation of a host's share that must show
	Alpha     float64 // over all hosts; 0 means DefaultAlpha
	Power     float64 // 0 means DefaultPower
}

// share is the test of one host. The false alarms of all hosts add up to Alpha at most.
func (s Spread) share(host string, n int) Share {
	alpha := s.Alpha
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	return Share{ID: s.ID + "/" + host, Want: s.Want[host], Catch: s.Catch, Alpha: alpha / float64(len(s.Want)), Power: s.Power, Count: s.Count[host], N: n}
}

// Required is how many draws the test needs: as many as its most demanding host does.
func (s Spread) Required() int {
	n := 1
	for host := range s.Want {
		n = max(n, s.share(host, 0).Required())
	}
	return n
}

// Claim judges each host by the exact test of its share; one that fails fails all. A host that nothing is known of fails too.
func (s Spread) Claim() Claim {
	n := 0
	for _, k := range s.Count {
		n += k
	}
	c := Claim{
		ID: s.ID, Statement: s.Statement, N: n, Statistic: "exact two-sided binomial test for each host, false alarms shared",
		Confounder: "draws that are not independent: clients that share a cookie or a connection",
	}
	var outcomes []Outcome
	var seen, bounds, wrong []string
	for _, host := range sortedKeys(s.Want) {
		j := s.share(host, n).Claim()
		outcomes = append(outcomes, j.Outcome)
		seen = append(seen, percent(ratio(s.Count[host], n), 1))
		bounds = append(bounds, percent(s.Want[host], 1))
		if j.Outcome != Pass {
			wrong = append(wrong, host+": "+j.Reason)
		}
	}
	for _, host := range sortedKeys(s.Count) {
		if _, known := s.Want[host]; !known && s.Count[host] > 0 {
			outcomes = append(outcomes, Fail)
			wrong = append(wrong, fmt.Sprintf("%s has %s, but is none of the hosts", host, Group(s.Count[host])))
		}
	}
	c.Outcome = Combine(outcomes...)
	c.Observed = fmt.Sprintf("%s (n=%s)", strings.Join(seen, ", "), Group(n))
	c.Bound = fmt.Sprintf("%s; a %s-point error would show", strings.Join(bounds, ", "), trim(s.Catch*100))
	c.Reason = strings.Join(wrong, "\n")
	if n == 0 {
		c.Outcome, c.Observed = Inconclusive, "no samples"
	}
	return c
}

// Owner is where one session was before and after the hosts changed, and where the table of hashes puts it.
type Owner struct {
	Session                 string
	Before, After           string    // who answered; "" if nobody was seen
	OwnedBefore, OwnedAfter string    // who should have; "" if that is not known
	At                      time.Time // when it was seen after
}

func (o Owner) seen() bool { return o.Before != "" && o.After != "" }

func (o Owner) went() bool { return o.Before != o.After }

// follows says whether a session went where the table puts it: that it moved if its hash changed owner, and else did not.
func (o Owner) follows() bool { return o.went() == (o.OwnedBefore != o.OwnedAfter) }

// Moved claims that when hosts change, a session moves only if what it hashes to changed owner.
type Moved struct {
	ID        string
	Statement string
	Owners    []Owner
	Share     float64 // of all hashes that changed owner
	Most      float64 // of Share that the kind of table promises, whatever this one says; 0 for no bound
	Catch     float64 // the smallest share of sessions moved without cause that must show; 0 asks for no more than one session
	// Slack is the share of sessions that may move beside those whose owner changed; 0 for exact tables.
	Slack float64
	Alpha float64 // 0 means DefaultAlpha
}

// Claim judges: a session that moved although its hash did not change owner is a fail, and so is one that did not follow it. How many
// moved must lie within what draws from Share allow.
func (m Moved) Claim() Claim {
	alpha := m.Alpha
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	n, moved, due := 0, 0, 0
	var strayed, stuck []string
	for _, o := range m.Owners {
		if !o.seen() {
			continue
		}
		n++
		went, owned := o.went(), o.OwnedBefore != o.OwnedAfter
		if went {
			moved++
		}
		if owned {
			due++
		}
		switch {
		case went && !owned:
			strayed = append(strayed, fmt.Sprintf("%s went from %s to %s, and its hash is still of %s", o.Session, o.Before, o.After, o.OwnedAfter))
		case !went && owned:
			stuck = append(stuck, fmt.Sprintf("%s stayed on %s, and its hash is now of %s", o.Session, o.Before, o.OwnedAfter))
		}
	}
	c := Claim{
		ID: m.ID, Statement: m.Statement, N: n, Statistic: "exact for each session; the number that moved against the share of hashes that changed owner",
		Observed:   fmt.Sprintf("%s of %s sessions moved (%s)", Group(moved), Group(n), percent(ratio(moved, n), 1)),
		Confounder: "a host that seemed dead meanwhile, answers from before every proxy knew",
	}
	if n == 0 {
		c.Outcome, c.Observed, c.Reason = Inconclusive, "no session", "no session was seen before and after"
		return c
	}
	low, high := binomial{n, min(max(m.Share, 0), 1)}.region(alpha)
	c.Bound = fmt.Sprintf("%s of hashes changed owner: %s to %s sessions, only theirs", percent(m.Share, 1), Group(low), Group(high))
	if m.Most > 0 {
		c.Bound += fmt.Sprintf("; such tables promise %s at most", percent(m.Most, 1))
	}
	want := 100 * m.Share
	c.Interval = &Interval{Unit: "%", Observed: 100 * ratio(moved, n), Want: &want, Low: 100 * ratio(low, n), High: 100 * ratio(high, n)}
	allowed := int(m.Slack * float64(n))
	switch {
	case len(strayed) > allowed:
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s moved without cause, %s allowed; %s", Group(len(strayed)), Group(allowed), strayed[0])
	case len(stuck) > allowed:
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s did not follow their hash, %s allowed; %s", Group(len(stuck)), Group(allowed), stuck[0])
	case moved > high+allowed || due < low:
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s sessions moved and %s should have, outside %s to %s", Group(moved), Group(due), Group(low), Group(high))
	case m.Most > 0 && m.Share > m.Most:
		c.Outcome, c.Reason = Fail, fmt.Sprintf("%s of hashes changed owner, where such a table promises %s at most", percent(m.Share, 1), percent(m.Most, 1))
	case n < enough(m.Catch):
		c.Outcome, c.Reason = Inconclusive, fmt.Sprintf("%s sessions were seen before and after; %s are needed", Group(n), Group(enough(m.Catch)))
	default:
		c.Outcome = Pass
	}
	return c
}

// Wrong are the moments at which sessions were found where the table does not put them, in their order.
func (m Moved) Wrong() []Failure {
	var at []time.Time
	for _, o := range m.Owners {
		if o.seen() && !o.follows() {
			at = append(at, o.At)
		}
	}
	return moments(at)
}

// enough is how many samples an exact claim needs so that strays show whose share is catch; one where no catch is named.
func enough(catch float64) int { return Share{Catch: catch}.Required() }
