package render

import (
	"fmt"
	"html/template"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/meshproof/meshproof/reports/verdict"
)

// spark is the p99 of the first stream with a timeline, small.
func spark(s verdict.Scenario) template.HTML {
	for _, st := range s.Streams {
		var pts []string
		most := 0.0
		for _, b := range st.Seconds {
			most = max(most, b.P99)
		}
		if most == 0 || len(st.Seconds) < 2 {
			continue
		}
		for i, b := range st.Seconds {
			if b.Requests > 0 {
				pts = append(pts, fmt.Sprintf("%.1f,%.1f", 120*float64(i)/float64(len(st.Seconds)-1), 23-21*b.P99/most))
			}
		}
		return template.HTML(fmt.Sprintf(`<svg class="spark" width="120" height="26" viewBox="0 0 120 26" role="img" aria-label="p99 over time, at most %s"><polyline points="%s"/></svg><span class="unit">p99 &#8804; %s</span>`, //nolint:gosec // numbers only
			verdict.Seconds(most), strings.Join(pts, " "), verdict.Seconds(most)))
	}
	return ""
}

// interval draws the accepted values as a bar, the expected one as a tick and the observed one as a dot.
func interval(c verdict.Claim) template.HTML {
	i := c.Interval
	if i == nil {
		return ""
	}
	low, high := min(i.Low, i.Observed), max(i.High, i.Observed)
	margin := (high - low) * 0.15
	if margin == 0 {
		margin = 1
	}
	low, high = low-margin, high+margin
	x := func(v float64) float64 { return 130 * (v - low) / (high - low) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="interval %s" width="130" height="18" viewBox="0 0 130 18" role="img" aria-label="observed %.4g %s, accepted %.4g to %.4g"><line class="base" x1="0" x2="130" y1="9" y2="9"/><rect class="accept" x="%.1f" width="%.1f" y="5" height="8" rx="2"/>`,
		esc(string(c.Outcome)), i.Observed, esc(i.Unit), i.Low, i.High, x(i.Low), max(x(i.High)-x(i.Low), 2))
	if i.Want != nil {
		fmt.Fprintf(&b, `<line class="want" x1="%.1f" x2="%.1f" y1="2" y2="16"/>`, x(*i.Want), x(*i.Want))
	}
	fmt.Fprintf(&b, `<circle class="seen" cx="%.1f" cy="9" r="4"/></svg>`, x(i.Observed))
	return template.HTML(b.String()) //nolint:gosec // numbers, and text through esc
}

// topology draws the graph from left to right: a node stands one column right of the last that calls it.
func topology(t verdict.Topology) template.HTML {
	if len(t.Nodes) == 0 {
		return ""
	}
	const boxW, boxH, gapX, gapY = 168, 44, 92, 18
	column := map[string]int{}
	known := map[string]bool{}
	for _, n := range t.Nodes {
		known[n.ID] = true
	}
	for range t.Nodes { // longest path; a cycle stops at the number of nodes
		for _, e := range t.Edges {
			if known[e.From] && known[e.To] && e.From != e.To && column[e.To] < column[e.From]+1 && column[e.From]+1 < len(t.Nodes) {
				column[e.To] = column[e.From] + 1
			}
		}
	}
	byColumn := map[int][]verdict.TopologyNode{}
	columns, tallest := 0, 0
	for _, n := range t.Nodes {
		c := column[n.ID]
		byColumn[c] = append(byColumn[c], n)
		columns = max(columns, c+1)
	}
	for _, ns := range byColumn {
		tallest = max(tallest, len(ns))
	}
	height := tallest*(boxH+gapY) + 8
	width := columns*(boxW+gapX) - gapX + 4
	type point struct{ x, y float64 }
	at := map[string]point{}
	for c, ns := range byColumn {
		sort.SliceStable(ns, func(i, j int) bool { return ns[i].ID < ns[j].ID })
		for i, n := range ns {
			top := (float64(height) - float64(len(ns)*(boxH+gapY)-gapY)) / 2
			at[n.ID] = point{2 + float64(c*(boxW+gapX)), top + float64(i*(boxH+gapY))}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="topology" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="Topology: %s and %s">`, width, height, width, height, plural(len(t.Nodes), "node"), plural(len(t.Edges), "edge"))
	most := 1
	for _, e := range t.Edges {
		most = max(most, e.Requests)
	}
	for _, e := range t.Edges {
		f, okF := at[e.From]
		g, okG := at[e.To]
		if !okF || !okG {
			continue
		}
		x1, y1, x2, y2 := f.x+boxW, f.y+boxH/2, g.x, g.y+boxH/2
		mid := (x1 + x2) / 2
		fmt.Fprintf(&b, `<path class="edge" stroke-width="%.1f" d="M%.0f %.1fC%.0f %.1f %.0f %.1f %.0f %.1f"><title>%s to %s: %s</title></path><text class="count" x="%.0f" y="%.1f" text-anchor="end">%s</text>`,
			1+4*float64(e.Requests)/float64(most), x1, y1, mid, y1, mid, y2, x2, y2, esc(e.From), esc(e.To), plural(e.Requests, "request"), x2-5, y2-6, verdict.Group(e.Requests))
	}
	for _, n := range t.Nodes {
		p := at[n.ID]
		sub := n.Kind
		if n.Pods > 0 {
			sub += ", " + plural(n.Pods, "pod")
		}
		if n.Cluster != "" {
			sub += ", " + n.Cluster
		}
		fmt.Fprintf(&b, `<g class="node"><title>%s: %s</title><rect x="%.0f" y="%.1f" width="%d" height="%d" rx="5"/><text class="id" x="%.0f" y="%.1f">%s</text><text class="sub" x="%.0f" y="%.1f">%s</text></g>`,
			esc(n.ID), esc(sub), p.x, p.y, boxW, boxH, p.x+10, p.y+19, esc(short(n.ID, 21)), p.x+10, p.y+35, esc(short(sub, 25)))
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // numbers, and text through esc
}

func short(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
