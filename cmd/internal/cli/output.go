package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

var outputs = []string{"table", "json", "yaml"}

// outputFlag adds -o to a verb that prints data.
func (a *app) outputFlag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&a.output, "output", "o", "table", "table, json or yaml")
	_ = c.RegisterFlagCompletionFunc("output", words(outputs...))
	inner := c.PreRunE
	c.PreRunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(outputs, a.output) {
			return usage("%s: -o %q is not one of %s", cmd.CommandPath(), a.output, strings.Join(outputs, ", "))
		}
		if inner != nil {
			return inner(cmd, args)
		}
		return nil
	}
	return c
}

// print writes v as JSON or YAML, or calls asTable.
func (a *app) print(v any, asTable func(io.Writer) error) error {
	switch a.output {
	case "json":
		e := json.NewEncoder(a.Out)
		e.SetIndent("", "  ")
		return failed(e.Encode(v))
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return failed(err)
		}
		_, err = a.Out.Write(b)
		return failed(err)
	}
	return failed(asTable(a.Out))
}

// columns writes rows under a header as kubectl and istioctl do: no borders, two or more spaces between columns.
func columns(w io.Writer, header []string, rows [][]string) error {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "   "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.AppendHeader(row(header))
	for _, r := range rows {
		t.AppendRow(row(r))
	}
	for line := range strings.Lines(t.Render()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func row(cells []string) table.Row {
	r := make(table.Row, len(cells))
	for i, c := range cells {
		r[i] = c
	}
	return r
}

// marks are the signs at the start of a line, coloured where that is wanted.
type marks struct{ colour bool }

func (m marks) paint(code, s string) string {
	if !m.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (m marks) ok() string           { return m.paint("32", "✓") }
func (m marks) bad() string          { return m.paint("31", "✗") }
func (m marks) warn() string         { return m.paint("33", "!") }
func (m marks) busy() string         { return m.paint("36", "●") }
func (m marks) bold(s string) string { return m.paint("1", s) }

// live says whether lines may be rewritten.
func (a *app) live() bool { return a.Terminal && a.Env("CI") == "" && a.Env("TERM") != "dumb" }

func (a *app) marks() marks {
	return marks{colour: a.Terminal && a.Env("NO_COLOR") == "" && a.Env("TERM") != "dumb"}
}
