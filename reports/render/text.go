package render

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/meshproof/meshproof/reports/verdict"
)

// TextOptions say how the terminal wants it.
type TextOptions struct {
	Width int    // columns; 0 means 100, less than 60 counts as 60
	Color bool   // ANSI colours
	Path  string // of the page, printed at the end if not empty
}

// Text writes the verdict block of each scenario, what the labs cost, and the lab's error if it has one. Claims that repeat another for one
// proxy alone share a line, unless they fail.
func Text(w io.Writer, r verdict.Report, o TextOptions) error {
	if o.Width == 0 {
		o.Width = 100
	}
	o.Width = max(o.Width, 60)
	t := &texter{o: o}
	if r.Error != "" {
		t.line(t.paint("31", "✗") + " the lab could not be set up")
		for _, l := range lines(r.Error) {
			t.wrapped("    ", l)
		}
	}
	for _, s := range r.Scenarios {
		t.scenario(s)
	}
	for _, c := range costs(r) {
		t.line("  cost    " + c)
	}
	if o.Path != "" {
		t.line("  report  " + o.Path)
	}
	_, err := w.Write(t.b.Bytes())
	return err
}

type texter struct {
	o TextOptions
	b bytes.Buffer
}

func (t *texter) scenario(s verdict.Scenario) {
	tail := strings.ToUpper(string(s.Outcome)) + "   " + duration(s)
	gap := max(2, t.o.Width-utf8.RuneCountInString(s.ID)-utf8.RuneCountInString(tail))
	t.line(t.paint("1", s.ID) + strings.Repeat(" ", gap) + t.paint(color(s.Outcome)+";1", strings.ToUpper(string(s.Outcome))) + "   " + duration(s))
	if s.Error != "" {
		for _, l := range lines(s.Error) {
			t.wrapped("  "+t.paint("33", "!")+" ", l)
		}
	}
	shown, alone := split(s.Claims)
	all := make([]verdict.Outcome, 0, len(alone))
	for _, c := range alone {
		all = append(all, c.Outcome)
	}
	statement := 0
	for _, c := range shown {
		statement = max(statement, utf8.RuneCountInString(c.Statement))
	}
	statement = min(statement, t.o.Width*4/10)
	for _, c := range shown {
		t.claim(c, statement)
	}
	if len(alone) == 0 {
		return
	}
	outcome := verdict.Combine(all...)
	t.line("  " + t.paint(color(outcome), Mark(outcome)) + " " + pad("the same for each proxy alone", statement) + "  " + tally(alone))
	for _, c := range alone {
		if c.Outcome == verdict.Fail {
			t.claim(c, statement)
		}
	}
}

// claim puts statement, observed and bound in columns, or under each other where they do not fit.
func (t *texter) claim(c verdict.Claim, column int) {
	head := "  " + t.paint(color(c.Outcome), Mark(c.Outcome)) + " " + pad(c.Statement, column)
	used := 4 + max(column, utf8.RuneCountInString(c.Statement))
	if n := utf8.RuneCountInString(c.Observed); used+2+n <= t.o.Width && c.Observed != "" {
		head += "  " + c.Observed
		used += 2 + n
	} else if c.Observed != "" {
		t.line(strings.TrimRight(head, " "))
		head, used = "", 0
		t.wrapped("      ", c.Observed)
	}
	if n := utf8.RuneCountInString(c.Bound); c.Bound != "" && head != "" && used+3+n <= t.o.Width {
		t.line(head + "   " + t.paint("2", c.Bound))
	} else {
		if head != "" {
			t.line(strings.TrimRight(head, " "))
		}
		if c.Bound != "" {
			t.wrapped("      ", c.Bound)
		}
	}
	if c.Outcome != verdict.Pass {
		for _, l := range lines(c.Reason) {
			t.wrapped("      ", l)
		}
		for _, e := range c.Evidence {
			t.wrapped("      see  ", e)
		}
	}
}

// wrapped breaks text at spaces to the width; following lines are indented as far as the first.
func (t *texter) wrapped(indent, text string) {
	margin := 6
	room := t.o.Width - margin
	line := ""
	flush := func() {
		t.line(indent + line)
		indent, line = strings.Repeat(" ", margin), ""
	}
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > room {
			flush()
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		flush()
	}
}

func (t *texter) line(s string) { fmt.Fprintln(&t.b, s) }

func (t *texter) paint(code, s string) string {
	if !t.o.Color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// Mark is the sign of an outcome; it is never told by colour alone.
func Mark(o verdict.Outcome) string {
	switch o {
	case verdict.Pass:
		return "✓"
	case verdict.Fail:
		return "✗"
	case verdict.Skip:
		return "-"
	}
	return "?"
}

func color(o verdict.Outcome) string {
	switch o {
	case verdict.Pass:
		return "32"
	case verdict.Fail:
		return "31"
	case verdict.Skip:
		return "2"
	}
	return "33"
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}
