package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/meshproof/meshproof/reports/verdict"
)

// printVerdict prints a judged scenario: a line a claim, and under those that do not pass why.
func (a *app) printVerdict(s verdict.Scenario) {
	m := marks{colour: a.marks().colour}
	word := map[verdict.Outcome]string{
		verdict.Pass: m.paint("32;1", "PASS"), verdict.Fail: m.paint("31;1", "FAIL"),
		verdict.Inconclusive: m.paint("33;1", "INCONCLUSIVE"), verdict.Skip: m.paint("90", "SKIP"),
	}[s.Outcome]
	fmt.Fprintf(a.Out, "\n%s  %s  %s\n", m.bold(s.ID), word, seconds(s.Finished.Sub(s.Started)))
	if s.Error != "" {
		fmt.Fprintf(a.Out, "  %s not carried out to the end: %s\n", m.bad(), indent(s.Error, "    "))
	}
	statement, observed := 0, 0
	for _, c := range s.Claims {
		statement = max(statement, utf8.RuneCountInString(c.Statement))
		observed = max(observed, min(utf8.RuneCountInString(c.Observed), 34))
	}
	for _, c := range s.Claims {
		mark := map[verdict.Outcome]string{verdict.Pass: m.ok(), verdict.Fail: m.bad(), verdict.Inconclusive: m.warn(), verdict.Skip: m.skip()}[c.Outcome]
		fmt.Fprintln(a.Out, strings.TrimRight(fmt.Sprintf("  %s %s  %s  %s", mark, pad(c.Statement, statement), pad(c.Observed, observed), m.dim(c.Bound)), " "))
		if c.Outcome != verdict.Pass && c.Reason != "" {
			fmt.Fprintf(a.Out, "      %s\n", indent(c.Reason, "      "))
		}
	}
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func indent(text, by string) string {
	return strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+by)
}
