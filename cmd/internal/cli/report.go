package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/reports/render"
	"github.com/meshproof/meshproof/reports/verdict"
)

func (a *app) reportCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "report",
		Short:   "Show reports of earlier runs",
		Example: "  meshproof report show\n  meshproof report open runs/2026-11-20T18-03-11-canary",
	})
	show := a.outputFlag(&cobra.Command{
		Use:     "show [RUN]",
		Short:   "Print the verdicts of a run; the newest without a name",
		Example: "  meshproof report show\n  meshproof report show runs/2026-11-20T18-03-11-canary -o json",
		Args:    atMostArg("RUN"),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := a.runDir(args)
			if err != nil {
				return err
			}
			r, err := readReport(dir)
			if err != nil {
				return err
			}
			return a.print(r, func(io.Writer) error { return a.printRun(dir, r) })
		},
	})
	open := &cobra.Command{
		Use:     "open [RUN]",
		Short:   "Open the page of a run in a browser; the newest without a name",
		Example: "  meshproof report open",
		Args:    atMostArg("RUN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.runDir(args)
			if err != nil {
				return err
			}
			page, err := filepath.Abs(filepath.Join(dir, render.HTMLFile))
			if err != nil {
				return failed(err)
			}
			if _, err := os.Stat(page); err != nil {
				return usage("%s has no report.html: %w", dir, err)
			}
			if err := browse(cmd.Context(), page); err != nil {
				fmt.Fprintf(a.Err, "%v; open it by hand:\n", err)
			}
			fmt.Fprintf(a.Out, "file://%s\n", page)
			return nil
		},
	}
	c.AddCommand(show, open)
	return c
}

// runDir is the folder of a run: the named one, also by its last part alone, or the newest.
func (a *app) runDir(args []string) (string, error) {
	base := a.Env("ARTIFACTS")
	if base == "" {
		base = "runs"
	}
	if len(args) == 1 {
		for _, dir := range []string{args[0], filepath.Join(base, args[0])} {
			if _, err := os.Stat(filepath.Join(dir, render.JSONFile)); err == nil {
				return dir, nil
			}
		}
		return "", usage("%s is not the folder of a run: it has no report.json", args[0])
	}
	found, err := filepath.Glob(filepath.Join(base, "*", render.JSONFile))
	if err != nil || len(found) == 0 {
		return "", usage("no run in %s; make one with: meshproof run", base)
	}
	newest, at := found[0], time.Time{}
	for _, file := range found {
		if t := started(file); t.After(at) {
			newest, at = file, t
		}
	}
	return filepath.Dir(newest), nil
}

// started is when a report's run began, whatever its folder is called; zero if the file is none.
func started(file string) time.Time {
	var r struct {
		Started time.Time `json:"started"`
	}
	if data, err := os.ReadFile(file); err != nil || json.Unmarshal(data, &r) != nil {
		return time.Time{}
	}
	return r.Started
}

func readReport(dir string) (verdict.Report, error) {
	file := filepath.Join(dir, render.JSONFile)
	data, err := os.ReadFile(file)
	if err != nil {
		return verdict.Report{}, coded(codeUsage, err)
	}
	var r verdict.Report
	if err := json.Unmarshal(data, &r); err != nil {
		return r, usage("%s: %w", file, err)
	}
	if r.Schema != render.SchemaV1 {
		return r, usage("%s: schema %q is not %q, which this version reads", file, r.Schema, render.SchemaV1)
	}
	return r, nil
}

// browse asks the desktop to open a file.
func browse(ctx context.Context, file string) error {
	opener := "xdg-open"
	if runtime.GOOS == "darwin" {
		opener = "open"
	}
	path, err := exec.LookPath(opener)
	if err != nil {
		return errors.New("no browser can be started here")
	}
	if err := exec.CommandContext(ctx, path, file).Run(); err != nil {
		return fmt.Errorf("%s: %w", opener, err)
	}
	return nil
}
