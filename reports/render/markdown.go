package render

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

// Markdown writes summary.md, made to be appended to a job summary on GitHub.
func Markdown(w io.Writer, r verdict.Report) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "## Meshproof: %s\n\n%s\n\n", r.Outcome, md(Sentence(r)))
	if r.Error != "" {
		fmt.Fprintf(&b, "The lab could not be set up:\n\n%s\n", code(r.Error))
	}
	if r.Previous != "" {
		fmt.Fprintf(&b, "<details><summary>Since the last run, %s: %s</summary>\n\n", md(r.Previous), plural(len(r.Changes), "difference"))
		if len(r.Changes) > 0 {
			b.WriteString("| scenario | what | before | now |\n|---|---|---|---|\n")
		}
		for _, c := range r.Changes {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", md(c.Scenario), md(c.What), md(c.Before), md(c.After))
		}
		b.WriteString("\n</details>\n\n")
	}
	for _, s := range r.Scenarios {
		fmt.Fprintf(&b, "### %s %s: %s (%s)\n\n", Mark(s.Outcome), md(s.ID), s.Outcome, duration(s))
		if s.Error != "" {
			fmt.Fprintf(&b, "%s\n", code(s.Error))
		}
		shown, alone := split(s.Claims)
		claimTable(&b, shown)
		if len(alone) > 0 {
			fmt.Fprintf(&b, "<details><summary>The same for each proxy alone, %s</summary>\n\n", tally(alone))
			claimTable(&b, alone)
			b.WriteString("</details>\n\n")
		}
		for _, c := range s.Claims {
			if c.Outcome != verdict.Pass && c.Reason != "" {
				fmt.Fprintf(&b, "**%s**\n\n%s\n", md(c.Statement), code(c.Reason))
			}
		}
		if len(s.Streams) > 0 {
			b.WriteString("<details><summary>Latency from the intended start, failures included</summary>\n\n" +
				"| stream | requests | failed | late sends | p50 | p90 | p99 | p99.9 | max |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n")
			for _, st := range s.Streams {
				l := st.Latency
				fmt.Fprintf(&b, "| %s | %s | %s | %.2f%% | %s | %s | %s | %s | %s |\n", md(st.Name), verdict.Group(st.Requests), verdict.Group(failed(st)), 100*st.MissedRate,
					verdict.Seconds(l.P50), verdict.Seconds(l.P90), verdict.Seconds(l.P99), verdict.Seconds(l.P999), verdict.Seconds(l.Max))
			}
			b.WriteString("\n</details>\n\n")
		}
	}
	for _, c := range costs(r) {
		fmt.Fprintf(&b, "- %s\n", md(c))
	}
	if len(r.Costs) > 0 {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "Run `%s`, profile %s, seed %d.", strings.ReplaceAll(r.Run, "`", "'"), md(r.Profile), r.Seed)
	if r.Command != "" {
		fmt.Fprintf(&b, " Again:\n\n%s", code(r.Command))
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

func claimTable(b *bytes.Buffer, claims []verdict.Claim) {
	if len(claims) == 0 {
		return
	}
	b.WriteString("| | claim | observed | bound | n |\n|---|---|---|---|---:|\n")
	for _, c := range claims {
		n := ""
		if c.N > 0 {
			n = verdict.Group(c.N)
		}
		fmt.Fprintf(b, "| %s %s | %s | %s | %s | %s |\n", Mark(c.Outcome), c.Outcome, md(c.Statement), md(c.Observed), md(c.Bound), n)
	}
	b.WriteByte('\n')
}

// md makes text safe for a table cell.
func md(s string) string {
	return strings.NewReplacer("\\", "\\\\", "|", "\\|", "\n", " ", "<", "&lt;", "*", "\\*", "_", "\\_", "`", "\\`", "[", "\\[", "]", "\\]").Replace(s)
}

// code is a block of preformatted text whose fence is longer than any in it.
func code(s string) string {
	fence := "```"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	return fence + "text\n" + strings.TrimRight(s, "\n") + "\n" + fence + "\n"
}

func failed(s verdict.Stream) int {
	n := 0
	for _, k := range s.Failed {
		n += k
	}
	return n
}
