// Package summary turns Results into figures: quantiles from the intended start and from the send, lateness, classes of
// failure, versions, and the same over time. Failures count in every quantile; only Canceled results, which are evidence of
// nothing, are kept apart.
package summary

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/meshproof/meshproof/loadgen"
)

// Defaults of Options.
const (
	DefaultLateBound = 10 * time.Millisecond
	DefaultBin       = time.Second
)

// Options choose what a Recorder counts. The zero value of a field means its default.
type Options struct {
	LateBound time.Duration // a request sent later than this after its intended time is missed
	Bin       time.Duration // length of a Bin
}

// Histograms record nanoseconds, as HdrHistogram's tools expect, up to an hour, to three digits but no finer than a microsecond.
const (
	lowest  = int64(time.Microsecond)
	highest = int64(time.Hour)
	digits  = 3
)

// Recorder adds Results up. It is not safe for concurrent use.
type Recorder struct {
	options                    Options
	latency, service, lateness *hdrhistogram.Histogram
	sum                        Summary
	bins                       map[int64]*bin // by intended time in bins since 1970
}

type bin struct {
	requests, failed uint64
	versions         map[string]uint64
	latencies        []time.Duration
}

// New returns an empty Recorder.
func New(o Options) *Recorder {
	if o.LateBound == 0 {
		o.LateBound = DefaultLateBound
	}
	if o.Bin <= 0 {
		o.Bin = DefaultBin
	}
	histogram := func() *hdrhistogram.Histogram { return hdrhistogram.New(lowest, highest, digits) }
	return &Recorder{
		options: o, latency: histogram(), service: histogram(), lateness: histogram(),
		sum: Summary{
			LateBound: o.LateBound, Bin: o.Bin,
			Classes: map[loadgen.Class]uint64{}, Versions: map[string]uint64{}, Pods: map[string]uint64{},
		},
		bins: map[int64]*bin{},
	}
}

// Add counts one Result.
func (r *Recorder) Add(res loadgen.Result) {
	s := &r.sum
	s.Classes[res.Class]++
	if res.Class == loadgen.Canceled {
		s.Canceled++
		return
	}
	s.Requests++
	if s.First.IsZero() || res.Intended.Before(s.First) {
		s.First = res.Intended
	}
	if res.Done.After(s.Last) {
		s.Last = res.Done
	}
	record(r.latency, res.Latency())
	record(r.service, res.ServiceTime())
	record(r.lateness, res.Lateness())
	if res.Lateness() > r.options.LateBound {
		s.Missed++
	}
	key := res.Intended.UnixNano() / int64(r.options.Bin)
	b := r.bins[key]
	if b == nil {
		b = &bin{versions: map[string]uint64{}}
		r.bins[key] = b
	}
	b.requests++
	b.latencies = append(b.latencies, res.Latency())
	if res.Class.Failed() {
		s.Failed++
		b.failed++
	}
	if res.App != "" {
		version := res.App + "/" + res.Version
		s.Versions[version]++
		s.Pods[version+"/"+res.Pod]++
		b.versions[version]++
	}
}

// record clamps to what a histogram holds; an hour's latency or more is all the same.
func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(int64(d), 0), highest))
}

// Summary are the figures of a stream. Durations are nanoseconds in JSON.
type Summary struct {
	Requests uint64 `json:"requests"` // with an outcome
	Failed   uint64 `json:"failed"`   // of these, every class but ok
	Canceled uint64 `json:"canceled"` // abandoned with the run, beside Requests

	First time.Time `json:"first"` // first intended start
	Last  time.Time `json:"last"`  // end of the last answer

	Classes  map[loadgen.Class]uint64 `json:"classes"`
	Versions map[string]uint64        `json:"versions"` // by app/version, of those that said so
	Pods     map[string]uint64        `json:"pods"`     // by app/version/pod

	Latency  Quantiles `json:"latency"`  // from the intended start
	Service  Quantiles `json:"service"`  // from the send
	Lateness Quantiles `json:"lateness"` // of the send

	LateBound  time.Duration `json:"lateBound"`
	Missed     uint64        `json:"missed"`     // sent later than LateBound
	MissedRate float64       `json:"missedRate"` // Missed of Requests

	Bin  time.Duration `json:"bin"`
	Bins []Bin         `json:"bins"` // without gaps, by intended time
}

// Quantiles of a duration, to three digits.
type Quantiles struct {
	P50  time.Duration `json:"p50"`
	P90  time.Duration `json:"p90"`
	P99  time.Duration `json:"p99"`
	P999 time.Duration `json:"p999"`
	Max  time.Duration `json:"max"`
	Mean time.Duration `json:"mean"`
}

// Bin is what was intended in one stretch of time. Its quantiles are exact.
type Bin struct {
	Start    time.Time         `json:"start"` // a multiple of the bin's length since 1970, so that streams align
	Requests uint64            `json:"requests"`
	Failed   uint64            `json:"failed"`
	Versions map[string]uint64 `json:"versions,omitempty"`
	P50      time.Duration     `json:"p50"`
	P90      time.Duration     `json:"p90"`
	P99      time.Duration     `json:"p99"`
	Max      time.Duration     `json:"max"`
}

// maxGap bounds the empty bins between two that hold something, should clocks or inputs be absurd.
const maxGap = 100_000

// Summary returns the figures so far.
func (r *Recorder) Summary() Summary {
	s := r.sum
	s.Classes, s.Versions, s.Pods = maps.Clone(s.Classes), maps.Clone(s.Versions), maps.Clone(s.Pods)
	s.Latency, s.Service, s.Lateness = quantiles(r.latency), quantiles(r.service), quantiles(r.lateness)
	if s.Requests > 0 {
		s.MissedRate = float64(s.Missed) / float64(s.Requests)
	}
	keys := make([]int64, 0, len(r.bins))
	for k := range r.bins {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	at := func(key int64) time.Time { return time.Unix(0, key*int64(r.options.Bin)).UTC() }
	for i, k := range keys {
		if i > 0 && k-keys[i-1] <= maxGap {
			for gap := keys[i-1] + 1; gap < k; gap++ {
				s.Bins = append(s.Bins, Bin{Start: at(gap)})
			}
		}
		b := r.bins[k]
		sorted := slices.Sorted(slices.Values(b.latencies))
		s.Bins = append(s.Bins, Bin{
			Start: at(k), Requests: b.requests, Failed: b.failed, Versions: maps.Clone(b.versions),
			P50: rank(sorted, 0.50), P90: rank(sorted, 0.90), P99: rank(sorted, 0.99), Max: rank(sorted, 1),
		})
	}
	return s
}

// rank is the least value that at least the share q of all values does not exceed.
func rank(sorted []time.Duration, q float64) time.Duration {
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(i, 0)]
}

func quantiles(h *hdrhistogram.Histogram) Quantiles {
	at := func(percent float64) time.Duration {
		return time.Duration(h.ValueAtPercentile(percent)).Truncate(time.Microsecond)
	}
	return Quantiles{
		P50: at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: time.Duration(h.Max()).Truncate(time.Microsecond), Mean: time.Duration(h.Mean()).Truncate(time.Microsecond),
	}
}
