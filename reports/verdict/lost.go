package verdict

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
)

// LossBound is the loss rate that zero failures in n requests exclude at level alpha: -ln(alpha)/n, at most 1.
func LossBound(alpha float64, n int) float64 {
	if n <= 0 {
		return 1
	}
	return min(1, -math.Log(alpha)/float64(n))
}

// Failure is one request that failed.
type Failure struct {
	Time  time.Time
	Class string // as in evidence.Request
	Err   string
}

// Failures picks the failed requests, in order of their intended start. Requests that were cancelled by the end of the
// run are no evidence and are left out; the second result is the number of requests that count.
func Failures(requests []evidence.Request) ([]Failure, int) {
	var failed []Failure
	n := 0
	for _, r := range requests {
		if r.Class == "canceled" {
			continue
		}
		n++
		if r.Class != "ok" {
			failed = append(failed, Failure{Time: time.Unix(0, r.Intended).UTC(), Class: r.Class, Err: r.Err})
		}
	}
	slices.SortStableFunc(failed, func(a, b Failure) int { return a.Time.Compare(b.Time) })
	return failed, n
}

// Lost claims that no request failed.
type Lost struct {
	ID        string
	Statement string
	N         int // requests that count
	Failures  []Failure
	Events    []evidence.Event // what failures are tied to
	Alpha     float64          // 0 means DefaultAlpha
	Bound     float64          // the loss rate that a pass must exclude; 0 asks for no more than one request
}

// Claim judges: any failure is a fail, with its classes and the nearest events; otherwise the bound is printed.
func (l Lost) Claim() Claim {
	alpha := l.Alpha
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	c := Claim{ID: l.ID, Statement: l.Statement, N: l.N, Statistic: "count of failures, bound -ln(alpha)/n",
		Observed:   fmt.Sprintf("%s of %s requests", Group(len(l.Failures)), Group(l.N)),
		Confounder: "a generator that ran out of ports or file descriptors, an app that failed by itself, retries that hid a loss"}
	switch bound := LossBound(alpha, l.N); {
	case len(l.Failures) > 0:
		c.Outcome = Fail
		c.Bound = "no failure"
		c.Reason = l.explain()
		c.Window = &Window{From: l.Failures[0].Time, To: l.Failures[len(l.Failures)-1].Time}
	case l.N == 0:
		c.Outcome, c.Reason = Inconclusive, "no requests were sent"
	case l.Bound > 0 && bound > l.Bound:
		c.Outcome = Inconclusive
		c.Bound = "loss below " + lossBound(alpha, l.N)
		c.Reason = fmt.Sprintf("%s requests exclude a loss above %s only; %s are needed for %s", Group(l.N), lossBound(alpha, l.N),
			Group(int(math.Ceil(-math.Log(alpha)/l.Bound))), percent(l.Bound, 3))
	default:
		c.Outcome = Pass
		c.Bound = fmt.Sprintf("loss below %s (false alarm %s)", lossBound(alpha, l.N), trim(alpha))
	}
	return c
}

// explain names each class with its count, its first error and the event nearest to the first of them.
func (l Lost) explain() string {
	byClass := map[string][]Failure{}
	for _, f := range l.Failures {
		byClass[f.Class] = append(byClass[f.Class], f)
	}
	classes := make([]string, 0, len(byClass))
	for c := range byClass {
		classes = append(classes, c)
	}
	sort.Slice(classes, func(i, j int) bool {
		a, b := len(byClass[classes[i]]), len(byClass[classes[j]])
		return a > b || a == b && classes[i] < classes[j]
	})
	var lines []string
	for _, class := range classes {
		fs := byClass[class]
		line := fmt.Sprintf("%s %s, first at %s", Group(len(fs)), class, fs[0].Time.UTC().Format("15:04:05.000"))
		if fs[0].Err != "" {
			line += ": " + fs[0].Err
		}
		if e, ok := nearest(l.Events, fs[0].Time); ok {
			line += "; nearest event " + placed(e, fs[0].Time)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// nearest is the event closest in time to t.
func nearest(events []evidence.Event, t time.Time) (evidence.Event, bool) {
	var best evidence.Event
	found := false
	for _, e := range events {
		if !found || e.Time.Sub(t).Abs() < best.Time.Sub(t).Abs() {
			best, found = e, true
		}
	}
	return best, found
}

func placed(e evidence.Event, t time.Time) string {
	d := t.Sub(e.Time)
	side := "after it"
	if d < 0 {
		side = "before it"
	}
	return fmt.Sprintf("%s %q, %s %s", e.Kind, e.Name, Seconds(d.Abs().Seconds()), side)
}

// Strays claims that nothing of a kind was seen at all: requests that reached an unlisted subset, sessions on two hosts.
// Its failure stands even if the guard tripped, since no lack of CPU sends a request where no route leads, unless Movable.
type Strays struct {
	ID        string
	Statement string
	N         int            // requests looked at
	Seen      map[string]int // what strayed, by where it went
	Movable   bool           // starvation could explain it: a session moves when its host seems dead
	Alpha     float64        // 0 means DefaultAlpha; for the bound that a pass states
	Catch     float64        // the smallest share of strays that must show; 0 asks for no more than one request
}

// Claim judges: one stray is a fail.
func (s Strays) Claim() Claim {
	alpha := s.Alpha
	if alpha == 0 {
		alpha = DefaultAlpha
	}
	total := 0
	var lines []string
	for _, k := range sortedKeys(s.Seen) {
		if s.Seen[k] > 0 {
			total += s.Seen[k]
			lines = append(lines, fmt.Sprintf("%s to %s", Group(s.Seen[k]), k))
		}
	}
	c := Claim{ID: s.ID, Statement: s.Statement, N: s.N, Statistic: "exact: one stray is a fail", Firm: !s.Movable,
		Observed:   fmt.Sprintf("%s of %s", Group(total), Group(s.N)),
		Confounder: "an app that names itself wrongly in its answer, requests sent before the change was live"}
	switch {
	case total > 0:
		c.Outcome, c.Bound, c.Reason = Fail, "none", strings.Join(lines, "\n")
	case s.N == 0:
		c.Outcome, c.Reason = Inconclusive, "no requests were looked at"
	case s.N < enough(s.Catch):
		c.Outcome, c.Reason = Inconclusive, fmt.Sprintf("%s were looked at; %s are needed to show a share of %s", Group(s.N), Group(enough(s.Catch)), percent(s.Catch, 1))
	default:
		c.Outcome, c.Bound = Pass, "strays below "+lossBound(alpha, s.N)
	}
	return c
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
