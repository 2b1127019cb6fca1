package render

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"math"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/meshproof/meshproof/reports/evidence"
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
	Labs      bool // phases and scenarios are of several labs
}

type pageScenario struct {
	verdict.Scenario
	Anchor   string
	Took     string
	Key      string
	Tally    string // of all claims by outcome
	Spark    template.HTML
	Claims   []pageClaim
	Alone    []pageClaim // claims that repeat one of Claims for one proxy alone
	AloneSum string
	Open     bool // one of Alone says more than the claims that it repeats
	Chart    *chart
	Topology template.HTML
	Timings  []fact
	Memory   []fact // of the lab
}

type pageClaim struct {
	verdict.Claim
	Lines    []reason
	Figure   template.HTML
	Count    bool   // N is told nowhere else
	From, To string // of the window, as fractions of the timeline; empty for none
	Streams  string // indexes of the timeline's streams that its samples come from, with a space between; empty for all
}

// reason is a line of a claim's Reason, with the word that it answers (since, where, likely, see, by hand), if any.
type reason struct{ Key, Text string }

type fact struct{ Name, Value string }

// HTML writes report.html: one file that needs nothing else, works offline and, but for zoom and hover, without
// JavaScript. Its content security policy allows its own style and script by hash and nothing from outside.
func HTML(w io.Writer, r verdict.Report) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"mark": Mark, "secs": verdict.Seconds, "group": verdict.Group, "failed": failed, "upper": func(o verdict.Outcome) string { return strings.ToUpper(string(o)) },
		"percent": func(x float64) string { return fmt.Sprintf("%.2f%%", 100*x) }, "classes": classes, "lines": lines,
		"ms": ms, "share": share, "mib": mebibytes,
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
	for _, ph := range r.Setup {
		p.Labs = p.Labs || ph.Lab != r.Setup[0].Lab
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}

func newPageScenario(i int, s verdict.Scenario) pageScenario {
	ps := pageScenario{Scenario: s, Anchor: fmt.Sprintf("scenario-%d", i+1), Took: duration(s), Key: keyNumber(s), Tally: tally(s.Claims),
		Spark: spark(s), Topology: topology(s.Topology)}
	if c, ok := newChart(s); ok {
		ps.Chart = c
	}
	main, alone := split(s.Claims)
	for _, c := range main {
		ps.Claims = append(ps.Claims, newPageClaim(s.ID, c, ps.Chart))
	}
	for _, c := range alone {
		ps.Alone = append(ps.Alone, newPageClaim(s.ID, c, ps.Chart))
		ps.Open = ps.Open || c.Outcome == verdict.Fail
	}
	ps.AloneSum = tally(alone)
	for _, k := range sortedNames(s.Timings) {
		ps.Timings = append(ps.Timings, fact{k, verdict.Seconds(s.Timings[k])})
	}
	if m := s.Memory; m != nil {
		ps.Memory = []fact{{"before the load", mebibytes(m.Before)}, {"after it", mebibytes(m.After)}}
	}
	return ps
}

func newPageClaim(scenario string, c verdict.Claim, ch *chart) pageClaim {
	pc := pageClaim{Claim: c, Figure: interval(c), Count: c.N > 0 && !strings.Contains(c.Observed, verdict.Group(c.N))}
	for _, l := range lines(c.Reason) {
		pc.Lines = append(pc.Lines, newReason(l))
	}
	if ch == nil {
		return pc
	}
	if c.Window != nil {
		pc.From, pc.To = fmt.Sprintf("%.6f", ch.axis.at(c.Window.From)), fmt.Sprintf("%.6f", ch.axis.at(c.Window.To))
	}
	var streams []string
	for i, st := range ch.Streams {
		if slices.Contains(c.Evidence, path.Join(evidence.ScenarioDir(scenario), evidence.RequestsFile(st.Name))) {
			streams = append(streams, fmt.Sprint(i))
		}
	}
	pc.Streams = strings.Join(streams, " ")
	return pc
}

func newReason(line string) reason {
	for _, k := range []string{"since", "where", "likely", "see", "by hand"} {
		if rest, ok := strings.CutPrefix(line, k+" "); ok {
			return reason{k, strings.TrimSpace(rest)}
		}
	}
	return reason{Text: line}
}

// split takes the claims apart that repeat another for a part of its evidence: share/hello/90-10/v2/mesh has the ID of
// share/hello/90-10/v2 and more.
func split(claims []verdict.Claim) (main, alone []verdict.Claim) {
	ids := map[string]bool{}
	for _, c := range claims {
		ids[c.ID] = true
	}
	for _, c := range claims {
		part := false
		for i := range c.ID {
			part = part || c.ID[i] == '/' && ids[c.ID[:i]]
		}
		if part {
			alone = append(alone, c)
		} else {
			main = append(main, c)
		}
	}
	return main, alone
}

// tally counts claims: "36 claims: 1 fail, 35 pass".
func tally(claims []verdict.Claim) string {
	by := map[verdict.Outcome]int{}
	for _, c := range claims {
		by[c.Outcome]++
	}
	var out []string
	for _, o := range []verdict.Outcome{verdict.Fail, verdict.Inconclusive, verdict.Pass, verdict.Skip} {
		if by[o] > 0 {
			out = append(out, fmt.Sprintf("%d %s", by[o], o))
		}
	}
	if len(out) == 0 {
		return "no claims"
	}
	return plural(len(claims), "claim") + ": " + strings.Join(out, ", ")
}

func classes(m map[string]int) string {
	var out []string
	for _, k := range sortedNames(m) {
		out = append(out, verdict.Group(m[k])+" "+k)
	}
	return strings.Join(out, ", ")
}

// share of a version in a bin, in percent.
func share(b verdict.Second, version string) string {
	total := 0
	for _, n := range b.Versions {
		total += n
	}
	if total == 0 {
		return ""
	}
	return fmt.Sprintf("%.4g", math.Round(1000*float64(b.Versions[version])/float64(total))/10)
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
