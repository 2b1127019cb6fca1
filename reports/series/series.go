// Package series sums up the requests of a stream: quantiles and a timeline, from HDR histograms, failures included.
package series

import (
	"fmt"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
)

// Options say how to sum up.
type Options struct {
	Name, Target string
	Rate         float64       // intended requests per second, for the report
	LateBound    time.Duration // a send later than this after its intended start is late; 0 means 10 ms
	Bin          time.Duration // width of a bin; 0 chooses the finest of a fixed list that gives at most 300 bins of 10 requests or more on average
}

// Histograms hold 1 microsecond to an hour at three digits; the ends saturate.
const (
	lowest  = int64(time.Microsecond)
	highest = int64(time.Hour)
	figures = 3
	maxBins = 300
	perBin  = 10 // requests, on average, so that the quantiles of a bin mean something
)

// Stream sums up requests, in any order. Requests that were cancelled by the end of the run are no evidence and are left
// out; all other failures count with the time they took. It does not keep or change requests. A Bin that would make more
// than 100,000 bins is an error.
func Stream(requests []evidence.Request, o Options) (verdict.Stream, error) {
	if o.LateBound == 0 {
		o.LateBound = 10 * time.Millisecond
	}
	s := verdict.Stream{Name: o.Name, Target: o.Target, Rate: o.Rate, LateBound: o.LateBound.Seconds(),
		Failed: map[string]int{}, Seconds: []verdict.Second{}}
	counted := make([]evidence.Request, 0, len(requests))
	for _, r := range requests {
		if r.Class != "canceled" {
			counted = append(counted, r)
		}
	}
	if len(counted) == 0 {
		return s, nil
	}
	slices.SortStableFunc(counted, func(a, b evidence.Request) int {
		if a.Intended < b.Intended {
			return -1
		}
		if a.Intended > b.Intended {
			return 1
		}
		return 0
	})
	first := counted[0].Intended
	span := time.Duration(counted[len(counted)-1].Intended - first)
	if span < 0 {
		return s, fmt.Errorf("stream %q: intended times from %d to %d are no span of time", o.Name, first, counted[len(counted)-1].Intended)
	}
	if o.Bin == 0 {
		o.Bin = binFor(span, len(counted))
	}
	if o.Bin < 0 || span/o.Bin > 100_000 {
		return s, fmt.Errorf("stream %q: bins of %v over %v are too many", o.Name, o.Bin, span)
	}

	latency, service, bin := newHistogram(), newHistogram(), newHistogram()
	late := 0
	var cur *verdict.Second
	end := func() {
		if cur != nil {
			q := quantiles(bin)
			cur.P50, cur.P90, cur.P99, cur.Max = q.P50, q.P90, q.P99, q.Max
			bin.Reset()
		}
	}
	for _, r := range counted {
		index := time.Duration(r.Intended-first) / o.Bin
		start := time.Unix(0, first+int64(index*o.Bin)).UTC()
		for cur == nil || cur.Start.Before(start) {
			end()
			next := time.Unix(0, first).UTC()
			if cur != nil {
				next = cur.Start.Add(o.Bin)
			}
			s.Seconds = append(s.Seconds, verdict.Second{Start: next, Width: o.Bin.Seconds(), Versions: map[string]int{}})
			cur = &s.Seconds[len(s.Seconds)-1]
		}
		s.Requests++
		cur.Requests++
		record(latency, r.Done-r.Intended)
		record(bin, r.Done-r.Intended)
		if r.Sent != 0 {
			record(service, r.Done-r.Sent)
		}
		if r.Sent-r.Intended > int64(o.LateBound) {
			late++
		}
		if r.Class != "ok" {
			s.Failed[r.Class]++
			cur.Failed++
		}
		if v := label(r); v != "" {
			cur.Versions[v]++
		}
	}
	end()
	s.MissedRate = float64(late) / float64(s.Requests)
	s.Latency, s.Service = quantiles(latency), quantiles(service)
	return s, nil
}

// label is who answered: "app version".
func label(r evidence.Request) string {
	if r.App == "" || r.Version == "" {
		return r.App + r.Version
	}
	return r.App + " " + r.Version
}

func binFor(span time.Duration, requests int) time.Duration {
	bins := time.Duration(min(maxBins, max(requests/perBin, 1)))
	for _, b := range []time.Duration{100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second,
		5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute} {
		if span/b < bins {
			return b
		}
	}
	return span/bins + 1
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(lowest, highest, figures) }

func record(h *hdrhistogram.Histogram, ns int64) {
	h.RecordValue(min(max(ns, lowest), highest)) //nolint:errcheck // the value was put in range
}

func quantiles(h *hdrhistogram.Histogram) verdict.Quantiles {
	if h.TotalCount() == 0 {
		return verdict.Quantiles{}
	}
	at := func(p float64) float64 { return float64(h.ValueAtQuantile(p)) / 1e9 }
	return verdict.Quantiles{P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: float64(h.Max()) / 1e9}
}
