package cli

import (
	"strings"
	"testing"

	"github.com/meshproof/meshproof/fixtures/labs"
	"github.com/meshproof/meshproof/reports/verdict"
)

func TestOutcomeCode(t *testing.T) {
	report := func(control bool, outcomes ...verdict.Outcome) verdict.Report {
		r := verdict.Report{Control: control}
		for _, o := range outcomes {
			r.Scenarios = append(r.Scenarios, verdict.Scenario{ID: "x", Outcome: o})
		}
		verdict.JudgeRun(&r)
		return r
	}
	const pass, fail, open = verdict.Pass, verdict.Fail, verdict.Inconclusive
	for name, c := range map[string]struct {
		report verdict.Report
		setup  bool
		want   int
	}{
		"all pass":                     {report(false, pass, pass), false, codeOK},
		"one fails":                    {report(false, pass, fail, open), false, codeFail},
		"one is open":                  {report(false, pass, open), false, codeInconclusive},
		"no lab":                       {report(false, open), true, codeSetup},
		"control: all fail":            {report(true, fail, fail), false, codeOK},
		"control: one passes":          {report(true, fail, pass, open), false, codeFail},
		"control: one is open":         {report(true, fail, open), false, codeInconclusive},
		"control: one is skipped":      {report(true, fail, verdict.Skip), false, codeFail},
		"control: no lab for the last": {report(true, fail, open), true, codeSetup},
	} {
		if got := outcomeCode(c.report, c.setup); got != c.want {
			t.Errorf("%s: exit code %d, want %d", name, got, c.want)
		}
	}
}

// The longest name that --lab takes leaves room for every embedded lab, each with a name of its own.
func TestLabNamesOfARunOfAll(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range labs.Names() {
		name := joinLabName(strings.Repeat("n", 30), f)
		if len(name) > 40 || seen[name] { // the provider's limit
			t.Errorf("%s: name %q has %d characters, or is another's", f, name, len(name))
		}
		seen[name] = true
	}
}
