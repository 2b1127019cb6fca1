package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/scenarios/catalog"
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
			return a.print(list, func(w io.Writer) error {
				var rows [][]string
				for _, s := range list {
					var features []string
					for _, f := range s.Features {
						features = append(features, string(f))
					}
					rows = append(rows, []string{s.ID, s.Area, s.Title, strings.Join(features, ",")})
				}
				return columns(w, []string{"ID", "AREA", "TITLE", "NEEDS"}, rows)
			})
		},
	})
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
