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
	if r.Error != "" && len(r.Scenarios) == 0 {
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
	for _, c := range worst.Claims {
		if c.Outcome == r.Outcome {
			what = c.Statement + ": " + lead(c)
			break
		}
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

// key is the claim that speaks for a scenario: the first that did not pass, else the first.
func key(s verdict.Scenario) (verdict.Claim, bool) {
	for _, want := range []verdict.Outcome{verdict.Fail, verdict.Inconclusive} {
		for _, c := range s.Claims {
			if c.Outcome == want {
				return c, true
			}
		}
	}
	if len(s.Claims) == 0 {
		return verdict.Claim{}, false
	}
	return s.Claims[0], true
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

func duration(s verdict.Scenario) string { return verdict.Seconds(s.Finished.Sub(s.Started).Seconds()) }
