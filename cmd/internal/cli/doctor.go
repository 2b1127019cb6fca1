package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/clusters"
)

func (a *app) doctorCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:   "doctor",
		Short: "Say what this host lacks for a lab, and the line that cures it",
		Long: `Doctor looks at this host and lists what a lab needs: what is there, what is missing and the
one line that installs it. Exit code 0 when nothing is missing, 4 otherwise.`,
		Example: "  meshproof doctor\n  meshproof doctor -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.newProvider(a.provider)
			if err != nil {
				return err
			}
			checks := p.Check(cmd.Context())
			if err := a.print(checks, func(w io.Writer) error { return a.printChecks(w, checks) }); err != nil {
				return err
			}
			for _, c := range checks {
				if c.State == "missing" {
					return &codedError{code: codeSetup}
				}
			}
			return nil
		},
	})
}

func (a *app) printChecks(w io.Writer, checks []clusters.Check) error {
	name, found := 0, 0
	for _, c := range checks {
		name, found = max(name, len(c.Name)), max(found, len(c.Found))
	}
	m := a.marks()
	for _, c := range checks {
		mark := m.ok()
		switch c.State {
		case "missing":
			mark = m.bad()
		case "warning":
			mark = m.warn()
		}
		line := fmt.Sprintf(" %s %-*s  %-*s", mark, name, c.Name, found, c.Found)
		if c.Cure != "" {
			line += "  " + c.Cure
		}
		if _, err := fmt.Fprintln(w, trimRight(line)); err != nil {
			return err
		}
	}
	return nil
}
