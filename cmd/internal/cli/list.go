package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/lab"
)

func (a *app) listCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "list [SCENARIO...]",
		Short:             "List the scenarios: what each proves and needs",
		Example:           "  meshproof list\n  meshproof list canary -o yaml",
		ValidArgsFunction: completeScenarios,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := catalog.Select(catalog.All(), args)
			if err != nil {
				return usage("%s: %w", cmd.CommandPath(), err)
			}
			return a.print(described(list), func(w io.Writer) error {
				for i, s := range list {
					if i > 0 {
						fmt.Fprintln(w)
					}
					if err := a.describe(w, s); err != nil {
						return err
					}
				}
				return nil
			})
		},
	})
}

// listed is a scenario as -o json and yaml show it.
type listed struct {
	catalog.Scenario `json:",inline"`

	Labels []string               `json:"labels"` // that run --label-filter chooses by
	Budget map[lab.Profile]string `json:"budget"` // by profile
}

func described(list []catalog.Scenario) []listed {
	var out []listed
	for _, s := range list {
		l := listed{Scenario: s, Labels: s.Labels(), Budget: map[lab.Profile]string{}}
		for p, d := range s.Budget {
			l.Budget[p] = d.String()
		}
		out = append(out, l)
	}
	return out
}

// describe prints what a scenario proves and needs.
func (a *app) describe(w io.Writer, s catalog.Scenario) error {
	var budgets []string
	for _, p := range lab.Profiles() {
		budgets = append(budgets, fmt.Sprintf("%s %s", p, short(s.Budget[lab.Profile(p)])))
	}
	fmt.Fprintf(w, "%s  %s\n", a.marks().bold(s.ID), s.Title)
	for _, line := range wrap(s.Proves, 96) {
		fmt.Fprintf(w, "  %s\n", line)
	}
	for _, c := range s.Claims {
		for i, line := range wrap(c, 92) {
			fmt.Fprintf(w, "  %s %s\n", []string{"-", " "}[min(i, 1)], line)
		}
	}
	_, err := fmt.Fprintf(w, "  labels %s\n  at most %s\n", strings.Join(s.Labels(), ", "), strings.Join(budgets, ", "))
	return err
}

// short is a duration without its zero parts: 2m, not 2m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// wrap breaks text at spaces so that no line is longer than width, but for words that are.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.Out, "meshproof "+version.Version+"\n")
			return failed(err)
		},
	}
}
