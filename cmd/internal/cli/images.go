package cli

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/scenarios/env"
)

func (a *app) imagesCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "images",
		Short: "Pack the binaries beside this one into image archives",
		Long: `Images packs meshd, meshproxy, app and loadagent, which lie beside this binary, into one archive
each, for clusters that are not a lab: load them with ctr, kind or docker.`,
		Example: "  meshproof images --out dist/images\n  kind load image-archive dist/images/app.tar",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range env.Images("bundled") {
				file := filepath.Join(out, name+".tar")
				if err := env.Archive(cmd.Context(), filepath.Dir(a.Self), name, version.Version, file); err != nil {
					return failed(a.hint(err))
				}
				fmt.Fprintln(a.Out, file)
			}
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "dist/images", "folder for the archives")
	_ = c.MarkFlagDirname("out")
	return c
}
