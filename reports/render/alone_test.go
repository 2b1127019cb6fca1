package render

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/reports/verdict"
)

// Claims about one proxy alone fold behind the claim that they repeat, but a failure among them is told in full.
func TestClaimsOfOneProxyAlone(t *testing.T) {
	claim := func(id string, o verdict.Outcome) verdict.Claim {
		return verdict.Claim{ID: id, Statement: "statement of " + id, Outcome: o, Observed: "seen"}
	}
	r := verdict.Report{Scenarios: []verdict.Scenario{{ID: "canary", Guard: "guard", Claims: []verdict.Claim{
		claim("share/a", verdict.Pass), claim("share/ab", verdict.Pass), claim("share/a/mesh", verdict.Pass), claim("share/a/gateway", verdict.Fail), claim("guard", verdict.Pass),
	}}}}
	verdict.Judge(&r.Scenarios[0], "guard")
	verdict.JudgeRun(&r)
	main, alone := split(r.Scenarios[0].Claims)
	if len(main) != 3 || len(alone) != 2 || alone[0].ID != "share/a/mesh" {
		t.Fatalf("main %v, alone %v", main, alone)
	}
	for name, render := range map[string]func(io.Writer, verdict.Report) error{"text": func(w io.Writer, r verdict.Report) error { return Text(w, r, TextOptions{}) }, "markdown": Markdown, "html": HTML} {
		var b bytes.Buffer
		if err := render(&b, r); err != nil {
			t.Fatal(err)
		}
		got := b.String()
		if !strings.Contains(got, "he same for each proxy alone") || !strings.Contains(got, "2 claims: 1 fail, 1 pass") || !strings.Contains(got, "statement of share/a/gateway") {
			t.Errorf("%s does not fold:\n%.2000s", name, got)
		}
		if name == "text" && strings.Contains(got, "statement of share/a/mesh") {
			t.Errorf("text names a passing claim about one proxy alone:\n%s", got)
		}
		if name == "html" && !strings.Contains(got, "<details open><summary>The same") {
			t.Error("the page hides a failure")
		}
	}
}

// A guard that tripped speaks for an inconclusive scenario; a failure speaks before it.
func TestSentenceOfStarvedRun(t *testing.T) {
	late := verdict.Guard{ID: "guard", Statement: "the host let this run be judged", LateBound: .1, LateShare: .5, LateMax: .01}.Claim()
	lost := verdict.Lost{ID: "lost", Statement: "nothing lost", N: 9, Failures: []verdict.Failure{{Class: "reset"}}}.Claim()
	stray := verdict.Strays{ID: "stray", Statement: "no stray", N: 9, Seen: map[string]int{"hello v9": 2}}.Claim()
	for _, c := range []struct {
		claims []verdict.Claim
		want   string
	}{
		{[]verdict.Claim{lost, late}, "canary is inconclusive: 50.00% of sends late, allowed 1.00% over 100 ms; lower the rate or give the host more CPU."},
		{[]verdict.Claim{lost, stray, late}, "canary fails: no stray: 2 to hello v9."},
	} {
		r := verdict.Report{Scenarios: []verdict.Scenario{{ID: "canary", Claims: append([]verdict.Claim(nil), c.claims...)}}}
		verdict.Judge(&r.Scenarios[0], "guard")
		verdict.JudgeRun(&r)
		if got := Sentence(r); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
