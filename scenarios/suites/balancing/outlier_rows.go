package balancing

import (
	"slices"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

const (
	// settleSlack is what a change of hosts takes to reach the requests that were under way.
	settleSlack = 100 * time.Millisecond
	// clockSlack is how far the clocks of a proxy and of those who send the load are apart: they are of one host.
	clockSlack = 5 * time.Millisecond
)

// failed says whether an answer was none, or not a good one.
func failed(r evidence.Request) bool { return r.Class != expect.OK && r.Class != "canceled" }

// unsigned is the fault of one pod whose failures nobody signs and that was made when the request was sent.
func (run outlierRun) unsigned(r evidence.Request) (fault, bool) {
	at := time.Unix(0, r.Sent)
	i, _ := slices.BinarySearchFunc(run.faults, at, func(f fault, t time.Time) int { // they come one after the other
		if f.to.After(t) {
			return 1
		}
		return -1
	})
	for _, f := range run.faults[i:] {
		if !at.After(f.from.Add(-run.plan.timeout)) { // one that is on its way when the fault begins may meet it
			break
		}
		if !f.step.all && f.step.fail.Status == 0 {
			return f, true
		}
	}
	return fault{}, false
}

// hostOf is the address of the pod that a failed request failed at: who answered so, or, where nobody signed the answer, the one pod
// that was failing when the request was sent; "" if none can be told.
func (run outlierRun) hostOf(r evidence.Request) string {
	if r.Pod != "" {
		for addr, pod := range run.pods {
			if pod == r.Pod {
				return addr
			}
		}
		return ""
	}
	if f, ok := run.unsigned(r); ok && failed(r) {
		return f.hosts[0]
	}
	return ""
}

// answer is one that a proxy had from a host. It counted it between two moments.
type answer struct {
	sent     time.Time // by who sends the load
	from, to time.Time
	bad      bool
	unsure   bool // it may not have come from the proxy at all
}

// answers are those of a stream by host, in the order in which they came.
func (run outlierRun) answers(s watched, st watchedStream) map[string][]answer {
	out := map[string][]answer{}
	for _, r := range expect.Of(run.requests, st.name) {
		host := run.hostOf(r)
		if host == "" {
			continue
		}
		a := answer{sent: time.Unix(0, r.Sent), from: time.Unix(0, r.Sent), to: time.Unix(0, r.Done), bad: s.counts(r), unsure: r.Code == 0}
		if f, ok := run.unsigned(r); ok && r.Pod == "" && r.Code == 504 && f.step.fail.Hang != "" {
			a.from = a.sent.Add(run.plan.timeout) // no proxy knows before that it will not be answered
		}
		out[host] = append(out[host], a)
	}
	for _, list := range out {
		slices.SortStableFunc(list, func(a, b answer) int { return a.to.Compare(b.to) })
	}
	return out
}

// during are the answers, of a list in the order in which they came, that may have been counted between two moments, and few more.
func during(list []answer, from, to time.Time) []answer {
	came := func(a answer, t time.Time) int { return a.to.Compare(t) }
	i, _ := slices.BinarySearchFunc(list, from.Add(-clockSlack), came)
	j, _ := slices.BinarySearchFunc(list, to.Add(clockSlack+loadgen.DefaultTimeout+time.Second), came)
	return list[i:max(i, j)]
}

// row is how many bad answers in a row a proxy had from a host at a moment, since the host was last back: surely, and possibly. What
// it counted close to that moment, or at the same time as a good answer, may be part of the row.
func row(list []answer, since, at time.Time) (sure, possible int) {
	earliest, latest := since.Add(-clockSlack), since.Add(clockSlack) // that the row can have begun
	list = during(list, since, at)
	for _, a := range list {
		if a.bad {
			continue
		}
		if !a.to.After(at) && a.from.After(earliest) {
			earliest = a.from
		}
		if !a.from.After(at) && a.to.After(latest) {
			latest = a.to
		}
	}
	for _, a := range list {
		if !a.bad {
			continue
		}
		if !a.from.After(at.Add(clockSlack)) && !a.to.Before(earliest) {
			possible++
		}
		if !a.unsure && a.to.Before(at.Add(-clockSlack)) && !a.from.Before(latest) {
			sure++
		}
	}
	return sure, possible
}

// stay is one time that a host was out, at the proxy that a stream meets.
type stay struct {
	from, to time.Time // to is zero while it lasts
	host     string
	number   int
}

// holds says whether the host was out at a time.
func (x stay) holds(t time.Time) bool { return !t.Before(x.from) && (x.to.IsZero() || t.Before(x.to)) }

// stays reads a proxy's event log for one cluster.
func (run outlierRun) stays(s watched, at string) []stay {
	name := clusterName(run.namespace, s.name, "")
	var out []stay
	open := map[string]int{}
	for _, ev := range run.proxyEvents[at] {
		if ev.Cluster != name {
			continue
		}
		host := run.hostAt(ev.Host)
		i, isOpen := open[host]
		switch {
		case ev.Action == "EJECT":
			open[host] = len(out)
			out = append(out, stay{from: ev.Timestamp, host: host, number: ev.Number})
		case isOpen:
			out[i].to = ev.Timestamp
			delete(open, host)
		}
	}
	return out
}

// hostAt is the pod's address that an upstream's stands for, whichever port it is.
func (run outlierRun) hostAt(upstream string) string {
	for addr := range run.pods {
		if slices.Equal(ips([]string{addr}), ips([]string{upstream})) {
			return addr
		}
	}
	return upstream
}

// back is when a host last returned before a time; zero if it never did.
func back(stays []stay, host string, t time.Time) time.Time {
	var last time.Time
	for _, x := range stays {
		if x.host == host && !x.to.IsZero() && !x.to.After(t) && x.to.After(last) {
			last = x.to
		}
	}
	return last
}

// until is when the last failure of a fault can have been seen: a timeout after its end, but not beyond the beginning of the next.
func (run outlierRun) until(f fault) time.Time {
	end := f.to.Add(run.plan.timeout + settleSlack)
	for _, next := range run.faults {
		if next.from.After(f.from) && next.from.Before(end) {
			end = next.from
		}
	}
	return end
}

// history is what the proxy of a stream had from the hosts, and when it took which out.
type history struct {
	answers   map[string][]answer // by host
	stays     []stay
	ejections []verdict.Ejection // the stays, with the errors that led to each
}

// histories are those of every stream, by its name.
func (run outlierRun) histories() map[string]history {
	out := map[string]history{}
	for _, s := range run.plan.services {
		for _, st := range s.streams {
			h := history{answers: run.answers(s, st), stays: run.stays(s, st.at())}
			h.ejections = run.ejections(st, h.answers, h.stays)
			out[st.name] = h
		}
	}
	return out
}

func (run outlierRun) ejections(st watchedStream, byHost map[string][]answer, stays []stay) []verdict.Ejection {
	var out []verdict.Ejection
	for _, x := range stays {
		e := verdict.Ejection{Proxy: st.at(), Host: x.host, At: x.from, Returned: x.to, Number: x.number}
		e.Sure, e.Possible = row(byHost[x.host], back(stays, x.host, x.from), x.from)
		settled, end := x.from.Add(settleSlack), x.to
		if end.IsZero() {
			end = run.ended
		}
		for _, a := range during(byHost[x.host], x.from, end) {
			switch {
			case !a.bad:
			case !a.sent.After(settled):
				e.InFlight++
			case !a.unsure && a.to.Before(end):
				e.After++
			}
		}
		// One of those that were on their way led to it; it is answered after that.
		if e.InFlight > 0 {
			e.InFlight--
			e.Sure = min(e.Sure+1, e.Possible)
		}
		out = append(out, e)
	}
	return out
}

// ejectedIn are the ejections of a host in a span, in order.
func ejectedIn(ejections []verdict.Ejection, host string, from, to time.Time) []verdict.Ejection {
	var out []verdict.Ejection
	for _, e := range ejections {
		if e.Host == host && !e.At.Before(from) && !e.At.After(to) {
			out = append(out, e)
		}
	}
	return out
}

// explained counts the bad answers of a host for requests of a span that the host had to be in for: when they were sent it had not
// been taken out, nor had the proxy surely had as many errors in a row as that takes; or it was back before they were answered.
func (h history) explained(host string, w expect.Window, threshold int) int {
	n := 0
	for _, a := range during(h.answers[host], w.From, w.To) {
		if !a.bad || a.sent.Before(w.From) || !a.sent.Before(w.To) {
			continue
		}
		settling := func(x stay) bool { return x.host == host && x.holds(a.sent) && a.sent.Sub(x.from) <= settleSlack }
		out := func(x stay) bool { return x.host == host && x.holds(a.sent) && x.holds(a.to) }
		returned := func(x stay) bool {
			return x.host == host && x.holds(a.sent) && !x.to.IsZero() && !x.to.After(a.to.Add(clockSlack))
		}
		sure, _ := row(h.answers[host], back(h.stays, host, a.sent), a.sent)
		if slices.ContainsFunc(h.stays, settling) || slices.ContainsFunc(h.stays, returned) || sure < threshold && !slices.ContainsFunc(h.stays, out) {
			n++
		}
	}
	return n
}

// longest is the longest row that a proxy surely had from a host for requests of a span in which it was never taken out; 0 if it was.
func longest(list []answer, stays []stay, host string, w expect.Window) int {
	if slices.ContainsFunc(stays, func(x stay) bool { return x.host == host && !x.from.Before(w.From) && !x.from.After(w.To) }) {
		return 0
	}
	most := 0
	for _, a := range during(list, w.From, w.To) {
		if a.bad && !a.sent.Before(w.From) && a.sent.Before(w.To) {
			at := a.to.Add(2 * clockSlack)
			n, _ := row(list, back(stays, host, at), at)
			most = max(most, n)
		}
	}
	return most
}
