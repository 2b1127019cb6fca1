package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/reports/render"
	"github.com/meshproof/meshproof/reports/verdict"
)

// printRun prints the verdicts of a run and where its page lies. A claim that refines another one (its ID begins with the
// other's) and comes out no worse is left to the page.
func (a *app) printRun(dir string, r verdict.Report) error {
	more := 0
	shown := r
	shown.Scenarios = slices.Clone(r.Scenarios)
	for i := range shown.Scenarios {
		s := &shown.Scenarios[i]
		all := s.Claims
		s.Claims = slices.DeleteFunc(slices.Clone(all), func(c verdict.Claim) bool { return told(c, all) })
		more += len(all) - len(s.Claims)
	}
	fmt.Fprintln(a.Out)
	if err := render.Text(a.Out, shown, render.TextOptions{Width: a.Width, Color: a.marks().colour}); err != nil {
		return err
	}
	if more > 0 {
		fmt.Fprintf(a.Out, "  %d finer claims agree with these; they are in the report\n", more)
	}
	if r.Control {
		outcome, text := controlOutcome(r)
		mark := map[verdict.Outcome]string{verdict.Pass: a.marks().ok(), verdict.Fail: a.marks().bad()}[outcome]
		if mark == "" {
			mark = a.marks().warn()
		}
		fmt.Fprintf(a.Out, "  %s negative control: %s\n", mark, text)
	}
	_, err := fmt.Fprintf(a.Out, "  report  %s\n", filepath.Join(dir, render.HTMLFile))
	return err
}

// told says whether a claim of all already tells what c tells.
func told(c verdict.Claim, all []verdict.Claim) bool {
	return slices.ContainsFunc(all, func(coarse verdict.Claim) bool {
		return strings.HasPrefix(c.ID, coarse.ID+"/") && verdict.Combine(c.Outcome, coarse.Outcome) == coarse.Outcome
	})
}
