package render

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"sort"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

//go:embed page/page.html.tmpl
var pageTemplate string

//go:embed page/page.css
var pageCSS string

//go:embed page/page.js
var pageJS string

type page struct {
	Report    verdict.Report
	Sentence  string
	Took      string
	CSS       template.CSS
	JS        template.JS
	Policy    string
	Scenarios []pageScenario
	Host      []fact
}

type pageScenario struct {
	verdict.Scenario
	Anchor   string
	Took     string
	Key      string
	Spark    template.HTML
	Claims   []pageClaim
	Chart    *chart
	Topology template.HTML
	Timings  []fact
}

type pageClaim struct {
	verdict.Claim
	Lines    []string
	Figure   template.HTML
	From, To string // of the window, as fractions of the timeline; empty for none
}

type fact struct{ Name, Value string }

// HTML writes report.html: one file that needs nothing else, works offline and, but for zoom and hover, without
// JavaScript. Its content security policy allows its own style and script by hash and nothing from outside.
func HTML(w io.Writer, r verdict.Report) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"mark": Mark, "secs": verdict.Seconds, "group": verdict.Group, "failed": failed, "upper": func(o verdict.Outcome) string { return strings.ToUpper(string(o)) },
		"percent": func(x float64) string { return fmt.Sprintf("%.2f%%", 100*x) }, "classes": classes, "lines": lines,
		"shares": shares,
	}).Parse(pageTemplate)
	if err != nil {
		return fmt.Errorf("page template: %w", err)
	}
	p := page{Report: r, Sentence: Sentence(r), Took: verdict.Seconds(r.Finished.Sub(r.Started).Seconds()), CSS: template.CSS(pageCSS), JS: template.JS(pageJS),
		Policy: "default-src 'none'; style-src '" + hash(pageCSS) + "'; script-src '" + hash(pageJS) + "'; base-uri 'none'; form-action 'none'"}
	for i, s := range r.Scenarios {
		p.Scenarios = append(p.Scenarios, newPageScenario(i, s))
	}
	p.Host = facts(r.Host)
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}

func newPageScenario(i int, s verdict.Scenario) pageScenario {
	ps := pageScenario{Scenario: s, Anchor: fmt.Sprintf("scenario-%d", i+1), Took: duration(s), Spark: spark(s), Topology: topology(s.Topology)}
	if c, ok := key(s); ok {
		ps.Key = c.Statement + ": " + c.Observed
	}
	if s.Error != "" {
		ps.Key = firstLine(s.Error)
	}
	if c, ok := newChart(s); ok {
		ps.Chart = c
	}
	for _, c := range s.Claims {
		pc := pageClaim{Claim: c, Lines: lines(c.Reason), Figure: interval(c)}
		if ps.Chart != nil && c.Window != nil {
			pc.From, pc.To = fmt.Sprintf("%.6f", ps.Chart.axis.at(c.Window.From)), fmt.Sprintf("%.6f", ps.Chart.axis.at(c.Window.To))
		}
		ps.Claims = append(ps.Claims, pc)
	}
	for _, k := range sortedNames(s.Timings) {
		ps.Timings = append(ps.Timings, fact{k, verdict.Seconds(s.Timings[k])})
	}
	return ps
}

func classes(m map[string]int) string {
	var out []string
	for _, k := range sortedNames(m) {
		out = append(out, verdict.Group(m[k])+" "+k)
	}
	return strings.Join(out, ", ")
}

func shares(m map[string]int) string {
	total := 0
	for _, n := range m {
		total += n
	}
	var out []string
	for _, k := range sortedNames(m) {
		out = append(out, fmt.Sprintf("%s %.1f%%", k, 100*float64(m[k])/float64(max(total, 1))))
	}
	return strings.Join(out, ", ")
}

func facts(m map[string]string) []fact {
	var out []fact
	for _, k := range sortedNames(m) {
		out = append(out, fact{k, m[k]})
	}
	return out
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
