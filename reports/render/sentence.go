package render

import (
	"fmt"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

// Sentence is the result of a run in one sentence.
func Sentence(r verdict.Report) string {
	on := ""
	if r.Mesh != "" && r.Cluster != "" {
		on = " on " + r.Mesh + ", " + r.Cluster
	}
	if r.Control {
		on += ", as a negative control"
	}
	if r.Error != "" && !carriedOut(r) {
		return "The lab could not be set up: " + firstLine(r.Error)
	}
	var claims, requests int
	byOutcome := map[verdict.Outcome]int{}
	var worst *verdict.Scenario
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		byOutcome[s.Outcome]++
		claims += len(s.Claims)
		for _, st := range s.Streams {
			requests += st.Requests
		}
		if s.Outcome == r.Outcome && worst == nil {
			worst = s
		}
	}
	took := verdict.Seconds(r.Finished.Sub(r.Started).Seconds())
	switch {
	case len(r.Scenarios) == 0:
		return "No scenario ran" + on + "."
	case r.Outcome == verdict.Pass:
		return fmt.Sprintf("%s%s: %s over %s in %s.", passing(byOutcome), on, plural(claims, "claim"), plural(requests, "request"), took)
	case r.Outcome == verdict.Skip:
		return "Every scenario was skipped" + on + "."
	}
	verb := "fails"
	if r.Outcome == verdict.Inconclusive {
		verb = "is inconclusive"
	}
	what := firstLine(worst.Error)
	if c, ok := key(*worst); ok && c.Outcome == r.Outcome && (worst.Error == "" || r.Outcome == verdict.Fail) {
		what = telling(*worst, c)
	}
	out := fmt.Sprintf("%s %s%s: %s.", worst.ID, verb, on, strings.TrimSuffix(what, "."))
	if n := byOutcome[r.Outcome] - 1; n > 0 {
		out += fmt.Sprintf(" So do %d more of %d scenarios.", n, len(r.Scenarios))
		if r.Outcome == verdict.Inconclusive {
			out = strings.Replace(out, " So do ", " So are ", 1)
		}
	}
	return out
}

// carriedOut says whether any scenario got as far as a claim.
func carriedOut(r verdict.Report) bool {
	for _, s := range r.Scenarios {
		if len(s.Claims) > 0 {
			return true
		}
	}
	return false
}

func passing(by map[verdict.Outcome]int) string {
	out := plural(by[verdict.Pass], "scenario") + " passes"
	if by[verdict.Pass] != 1 {
		out = plural(by[verdict.Pass], "scenario") + " pass"
	}
	if n := by[verdict.Skip]; n > 0 {
		out += fmt.Sprintf(", %d skipped", n)
	}
	return out
}

// lead is the first thing to say of a claim that did not pass.
func lead(c verdict.Claim) string {
	if c.Reason != "" {
		return firstLine(c.Reason)
	}
	return "observed " + c.Observed
}

// telling is a claim that did not pass, with why; the guard's why needs no more.
func telling(s verdict.Scenario, c verdict.Claim) string {
	if c.ID == s.Guard && c.Reason != "" {
		return lead(c)
	}
	return c.Statement + ": " + lead(c)
}

// key is the claim that speaks for a scenario: the first that failed, else a guard that tripped, else the first that is
// inconclusive, else the one that the scenario names, else the first.
func key(s verdict.Scenario) (verdict.Claim, bool) {
	first := func(ok func(verdict.Claim) bool) (verdict.Claim, bool) {
		for _, c := range s.Claims {
			if ok(c) {
				return c, true
			}
		}
		return verdict.Claim{}, false
	}
	for _, ok := range []func(verdict.Claim) bool{
		func(c verdict.Claim) bool { return c.Outcome == verdict.Fail },
		func(c verdict.Claim) bool { return c.Outcome == verdict.Inconclusive && c.ID == s.Guard },
		func(c verdict.Claim) bool { return c.Outcome == verdict.Inconclusive },
		func(c verdict.Claim) bool { return c.ID == s.Key },
		func(verdict.Claim) bool { return true },
	} {
		if c, found := first(ok); found {
			return c, true
		}
	}
	return verdict.Claim{}, false
}

// keyNumber is what the overview says of a scenario.
func keyNumber(s verdict.Scenario) string {
	c, ok := key(s)
	switch {
	case s.Error != "" && c.Outcome != verdict.Fail:
		return firstLine(s.Error)
	case !ok:
		return ""
	case c.ID == s.Guard && c.Outcome != verdict.Pass:
		return lead(c)
	}
	return c.Statement + ": " + c.Observed
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func lines(s string) []string {
	if s = strings.TrimSpace(s); s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return verdict.Group(n) + " " + noun + "s"
}

// costs says what each lab took, in a few words each.
func costs(r verdict.Report) []string {
	var out []string
	for _, c := range r.Costs {
		text := fmt.Sprintf("lab %s took %s", c.Lab, verdict.Seconds(c.Seconds))
		if m := c.Memory; m != nil {
			text += fmt.Sprintf("; memory at rest %s, at most %s", mebibytes(m.Rest), mebibytes(m.Highest))
		}
		out = append(out, text)
	}
	return out
}

// mebibytes is a reading of memory, of which 0 is none.
func mebibytes(bytes uint64) string {
	if bytes == 0 {
		return "not read"
	}
	return verdict.Group(int(bytes>>20)) + " MiB"
}

func duration(s verdict.Scenario) string { return verdict.Seconds(s.Finished.Sub(s.Started).Seconds()) }
