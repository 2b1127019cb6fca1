package render

import (
	"fmt"
	"html/template"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
)

// The charts are SVG drawn here, not by a library: they stand without JavaScript, print, and stretch to any width because
// a band is a nested drawing 1000 units wide that keeps its strokes. The page's script only moves the view box.
const chartUnits = 1000

// axis maps time to units.
type axis struct {
	from time.Time
	span float64 // seconds
}

func (a axis) at(t time.Time) float64 { return t.Sub(a.from).Seconds() / a.span }

func (a axis) x(t time.Time) float64 { return a.at(t) * chartUnits }

// chart is the timeline of a scenario, as the template wants it.
type chart struct {
	axis    axis
	Flags   template.HTML
	FlagsH  int
	Axis    template.HTML
	colour  map[string]int // of a version: the same in every stream
	heights heights
	Streams []streamChart
	Marks   []markRow
	Data    chartData
}

type streamChart struct {
	Name     string
	Bands    []band
	Versions []legendEntry
	Table    []verdict.Second
}

// Heights of the three bands in pixels. Many streams are drawn lower, so that the first ones fit a screen together.
type heights struct{ latency, rate, share int }

func heightsFor(streams int) heights {
	if streams > 3 {
		return heights{88, 34, 48}
	}
	return heights{132, 54, 96}
}

type band struct {
	Name   string
	Label  string // what a reader who cannot see it is told
	Height int
	Ticks  []tick
	SVG    template.HTML
}

type tick struct {
	Y    float64 // percent from the top
	Text string
}

type legendEntry struct {
	Class, Name string
}

type markRow struct {
	Number             int
	Offset, Kind, Name string
	Detail             string
}

// chartData is what the script needs to answer a hover: seconds are relative to the axis.
type chartData struct {
	Span    float64      `json:"span"`
	Streams []dataStream `json:"streams"`
	Events  []dataEvent  `json:"events"`
}

type dataStream struct {
	Name     string    `json:"name"`
	Versions []string  `json:"versions"`
	Bins     []dataBin `json:"bins"`
}

// dataBin is start and width in seconds, requests, failed, p50, p90, p99 and max in milliseconds, then the answers of each
// version. There are thousands in a page, so they have no names.
type dataBin []float64

type dataEvent struct {
	T    float64 `json:"t"`
	Text string  `json:"text"`
}

func newChart(s verdict.Scenario) (*chart, bool) {
	a := axisOf(s)
	if a.span <= 0 {
		return nil, false
	}
	c := &chart{axis: a, colour: map[string]int{}, heights: heightsFor(len(s.Streams)), Data: chartData{Span: a.span, Streams: []dataStream{}, Events: []dataEvent{}}}
	marks := c.marks(s)
	c.Axis = a.ticks()
	for i, v := range versionsOf(s.Streams...) {
		c.colour[v] = i
	}
	for _, st := range s.Streams {
		if len(st.Seconds) > 0 {
			c.stream(st, marks)
		}
	}
	return c, len(c.Streams) > 0
}

// axisOf covers every bin, and the events between a second before the first bin and a second after the last.
func axisOf(s verdict.Scenario) axis {
	var from, to time.Time
	for _, st := range s.Streams {
		for _, b := range st.Seconds {
			if from.IsZero() || b.Start.Before(from) {
				from = b.Start
			}
			if end := b.Start.Add(time.Duration(b.Width * float64(time.Second))); end.After(to) {
				to = end
			}
		}
	}
	return axis{from, to.Sub(from).Seconds()}
}

// ticks labels the axis; the script does the same for a part of it.
func (a axis) ticks() template.HTML {
	step := niceAbove(a.span / 10)
	var b strings.Builder
	for v := 0.0; v <= a.span*1.0001; v += step {
		anchor := "middle"
		if f := v / a.span; f < 0.02 {
			anchor = "start"
		} else if f > 0.97 {
			anchor = "end"
		}
		fmt.Fprintf(&b, `<text x="%.3f%%" y="14" text-anchor="%s">%.4g s</text>`, 100*v/a.span, anchor, v)
	}
	return template.HTML(b.String()) //nolint:gosec // numbers only
}

// marks places the flags of events in rows, so that none covers another at the width of a laptop; the page's script places
// them anew when it zooms. It returns the lines that every band draws. Events of one kind and name that happened together,
// such as one change to two routes, share a flag.
func (c *chart) marks(s verdict.Scenario) string {
	const rows, rowHeight, wide, letter = 4, 17, 900.0, 6.6
	var ends [rows]float64
	for i := range ends {
		ends[i] = math.Inf(-1)
	}
	var flags, out strings.Builder
	used := 1
	for i := 0; i < len(s.Events); i++ {
		e, first := s.Events[i], i+1
		c.addMark(first, e)
		for i+1 < len(s.Events) && together(e, s.Events[i+1]) {
			i++
			c.addMark(i+1, s.Events[i])
		}
		f := c.axis.at(e.Time)
		if f < -0.001 || f > 1.001 {
			continue
		}
		f = min(max(f, 0), 1)
		kind, number := markClass(e.Kind), fmt.Sprint(first)
		if i+1 > first {
			number += fmt.Sprintf("-%d", i+1)
		}
		name := strings.TrimSpace(e.Kind + " " + strings.TrimPrefix(e.Name, e.Kind+" "))
		c.Data.Events = append(c.Data.Events, dataEvent{round(f*c.axis.span, 1e6), number + " " + name})
		fmt.Fprintf(&out, `<line class="mark %s" x1="%.2f" x2="%.2f" y1="0" y2="100"/>`, kind, f*chartUnits, f*chartUnits)
		left, width := f*wide, float64(utf8.RuneCountInString(number+" "+name))*letter+10
		anchor, dx := "start", 3
		if left+width > wide {
			anchor, dx, left = "end", -3, left-width
		}
		y, hidden := 13, ` visibility="hidden"`
		for row := range rows {
			if ends[row] < left {
				ends[row] = left + width
				used = max(used, row+1)
				y, hidden = row*rowHeight+13, ""
				break
			}
		}
		fmt.Fprintf(&flags, `<text class="flag %s" data-f="%.6f" x="%.3f%%" dx="%d" y="%d" text-anchor="%s"%s><tspan class="num">%s</tspan><tspan class="name"> %s</tspan></text>`,
			kind, f, f*100, dx, y, anchor, hidden, number, esc(name))
	}
	c.FlagsH = used*rowHeight + 3
	c.Flags = template.HTML(flags.String()) //nolint:gosec // every text in it went through esc
	return out.String()
}

func (c *chart) addMark(number int, e evidence.Event) {
	c.Marks = append(c.Marks, markRow{number, offset(e.Time.Sub(c.axis.from)), e.Kind, e.Name, detail(e.Detail)})
}

func together(a, b evidence.Event) bool {
	return a.Kind == b.Kind && a.Name == b.Name && b.Time.Sub(a.Time).Abs() < 10*time.Millisecond
}

// ms is seconds in milliseconds, at four digits.
func ms(seconds float64) float64 {
	v, err := strconv.ParseFloat(strconv.FormatFloat(seconds*1e3, 'g', 4, 64), 64)
	if err != nil {
		return 0 // cannot be: it was just written
	}
	return v
}

func round(v, places float64) float64 { return math.Round(v*places) / places }

func (c *chart) stream(st verdict.Stream, marks string) {
	sc := streamChart{Name: st.Name, Table: st.Seconds}
	versions := versionsOf(st)
	for _, v := range versions {
		sc.Versions = append(sc.Versions, legendEntry{versionClass(c.colour[v]), v})
	}
	sc.Bands = append(sc.Bands, c.latency(st, marks), c.outcome(st, marks))
	if len(versions) > 0 {
		sc.Bands = append(sc.Bands, c.share(st, versions, marks))
	}
	c.Streams = append(c.Streams, sc)
	d := dataStream{Name: st.Name, Versions: versions}
	for _, b := range st.Seconds {
		bin := dataBin{round(b.Start.Sub(c.axis.from).Seconds(), 1e4), b.Width, float64(b.Requests), float64(b.Failed), ms(b.P50), ms(b.P90), ms(b.P99), ms(b.Max)}
		for _, v := range versions {
			bin = append(bin, float64(b.Versions[v]))
		}
		d.Bins = append(d.Bins, bin)
	}
	c.Data.Streams = append(c.Data.Streams, d)
}

func (c *chart) latency(st verdict.Stream, marks string) band {
	low, high := math.Inf(1), 0.0
	for _, b := range st.Seconds {
		if b.Requests > 0 {
			low, high = min(low, b.P50), max(high, b.Max)
		}
	}
	low, high = max(niceBelow(max(low, 1e-6)), 1e-6), niceAbove(max(high, 1e-5))
	if math.IsInf(low, 1) || low >= high {
		low = high / 10
	}
	y := func(v float64) float64 { return 100 - 100*math.Log(max(v, low)/low)/math.Log(high/low) }
	bd := band{Name: "latency", Label: fmt.Sprintf("Latency of %s over time, logarithmic: p50 %s, p90 %s, p99 %s over the whole stream", st.Name,
		verdict.Seconds(st.Latency.P50), verdict.Seconds(st.Latency.P90), verdict.Seconds(st.Latency.P99)), Height: c.heights.latency}
	var out strings.Builder
	for v := math.Pow(10, math.Floor(math.Log10(low))); v <= high*1.001; v *= 10 {
		for _, m := range []float64{1, 2, 5} {
			w := v * m
			if w < low*0.999 || w > high*1.001 || m != 1 && high/low > 300 {
				continue
			}
			fmt.Fprintf(&out, `<line class="grid" x1="0" x2="1000" y1="%.2f" y2="%.2f"/>`, y(w), y(w))
			bd.Ticks = append(bd.Ticks, tick{min(max(y(w), 5), 95), verdict.Seconds(w)})
		}
	}
	bd.Ticks = spread(bd.Ticks)
	for _, run := range runs(st.Seconds) {
		var top, bottom []string
		var most strings.Builder
		for _, b := range run {
			x := c.mid(b)
			top = append(top, fmt.Sprintf("%.1f,%.1f", x, y(b.P99)))
			bottom = append([]string{fmt.Sprintf("%.1f,%.1f", x, y(b.P50))}, bottom...)
			fmt.Fprintf(&most, "M%.1f %.1fh0", x, y(b.Max))
		}
		fmt.Fprintf(&out, `<path class="max" d="%s"/>`, most.String())
		fmt.Fprintf(&out, `<polygon class="spread" points="%s %s"/>`, strings.Join(top, " "), strings.Join(bottom, " "))
		for _, q := range []struct {
			class string
			of    func(verdict.Second) float64
		}{{"p99", func(b verdict.Second) float64 { return b.P99 }}, {"p90", func(b verdict.Second) float64 { return b.P90 }}, {"p50", func(b verdict.Second) float64 { return b.P50 }}} {
			var pts []string
			for _, b := range run {
				pts = append(pts, fmt.Sprintf("%.1f,%.1f", c.mid(b), y(q.of(b))))
			}
			fmt.Fprintf(&out, `<polyline class="line %s" points="%s"/>`, q.class, strings.Join(pts, " "))
		}
	}
	bd.SVG = template.HTML(out.String() + marks) //nolint:gosec // numbers and constant text only
	return bd
}

func (c *chart) outcome(st verdict.Stream, marks string) band {
	most := 1.0
	rate := func(n int, b verdict.Second) float64 { return float64(n) / max(b.Width, 1e-9) }
	for _, b := range st.Seconds {
		most = max(most, rate(b.Requests, b))
	}
	top := niceAbove(most)
	var ok, bad strings.Builder
	for _, b := range st.Seconds {
		x, end := c.edges(b)
		h, f := 100*rate(b.Requests, b)/top, 100*rate(b.Failed, b)/top
		if b.Failed > 0 {
			f = max(f, 6) // one failure in thousands must be seen
		}
		fmt.Fprintf(&ok, "M%.2f 100V%.1fH%.2fV100z", x, 100-h, end)
		if f > 0 {
			fmt.Fprintf(&bad, "M%.2f 100V%.1fH%.2fV100z", x, 100-f, end)
		}
	}
	svg := fmt.Sprintf(`<path class="ok" d="%s"/><path class="bad" d="%s"/>`, ok.String(), bad.String())
	return band{Name: "requests/s", Label: fmt.Sprintf("Requests a second of %s, failed ones marked: %s failed of %s", st.Name, verdict.Group(failed(st)), verdict.Group(st.Requests)),
		Height: c.heights.rate, Ticks: []tick{{10, verdict.Group(int(top))}, {90, "0"}}, SVG: template.HTML(svg + marks)} //nolint:gosec // numbers only
}

func (c *chart) share(st verdict.Stream, versions []string, marks string) band {
	paths := make([]strings.Builder, len(versions))
	for _, b := range st.Seconds {
		total := 0
		for _, n := range b.Versions {
			total += n
		}
		if total == 0 {
			continue
		}
		x, end := c.edges(b)
		y := 100.0
		for i, v := range versions {
			if h := 100 * float64(b.Versions[v]) / float64(total); h > 0 {
				fmt.Fprintf(&paths[i], "M%.2f %.1fV%.1fH%.2fV%.1fz", x, y, y-h, end, y)
				y -= h
			}
		}
	}
	var out strings.Builder
	for i, v := range versions {
		fmt.Fprintf(&out, `<path class="%s" d="%s"/>`, versionClass(c.colour[v]), paths[i].String())
	}
	out.WriteString(`<line class="grid over" x1="0" x2="1000" y1="50" y2="50"/>`)
	return band{Name: "share of versions", Label: "Share of answers by version over time: " + strings.Join(versions, ", "), Height: c.heights.share,
		Ticks: []tick{{7, "100%"}, {50, "50%"}, {93, "0%"}}, SVG: template.HTML(out.String() + marks)} //nolint:gosec // numbers only
}

// edges of a bin; the end of one is the start of the next to the digit that is written, so that no seam shows.
func (c *chart) edges(b verdict.Second) (x, end float64) {
	return c.axis.x(b.Start), c.axis.x(b.Start.Add(time.Duration(b.Width * float64(time.Second))))
}

func (c *chart) mid(b verdict.Second) float64 {
	return c.axis.x(b.Start) + b.Width/c.axis.span*chartUnits/2
}

// runs splits a timeline where nothing was sent.
func runs(bins []verdict.Second) [][]verdict.Second {
	var out [][]verdict.Second
	open := false
	for _, b := range bins {
		if b.Requests == 0 {
			open = false
			continue
		}
		if !open {
			out = append(out, nil)
			open = true
		}
		out[len(out)-1] = append(out[len(out)-1], b)
	}
	return out
}

// spread drops ticks that would cover one another.
func spread(ticks []tick) []tick {
	var out []tick
	for _, t := range ticks {
		if len(out) == 0 || math.Abs(out[len(out)-1].Y-t.Y) > 16 {
			out = append(out, t)
		}
	}
	return out
}

func versionsOf(streams ...verdict.Stream) []string {
	seen := map[string]bool{}
	var out []string
	for _, st := range streams {
		for _, b := range st.Seconds {
			for v := range b.Versions {
				if !seen[v] {
					seen[v] = true
					out = append(out, v)
				}
			}
		}
	}
	sort.Strings(out)
	return out
}

func versionClass(i int) string { return fmt.Sprintf("v v%d", i%8) }

func markClass(kind string) string {
	switch kind {
	case "apply", "ack", "fault", "step":
		return kind
	}
	return "note"
}

func niceBelow(v float64) float64 { return nice(v, false) }
func niceAbove(v float64) float64 { return nice(v, true) }

func nice(v float64, up bool) float64 {
	if math.IsInf(v, 0) || v <= 0 {
		return v
	}
	base := math.Pow(10, math.Floor(math.Log10(v)))
	steps := []float64{1, 2, 5, 10}
	best := base
	for _, m := range steps {
		if up && base*m >= v*0.999999 {
			return base * m
		}
		if !up && base*m <= v*1.000001 {
			best = base * m
		}
	}
	return best
}

func offset(d time.Duration) string { return fmt.Sprintf("%+.3f s", d.Seconds()) }

func detail(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var out []string
	for _, k := range keys {
		out = append(out, k+" "+m[k])
	}
	return strings.Join(out, ", ")
}

func esc(s string) string { return template.HTMLEscapeString(s) }
