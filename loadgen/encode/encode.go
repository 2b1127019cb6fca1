// Package encode writes and reads Results as JSON, one a line, and histograms as HdrHistogram interval logs.
package encode

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/meshproof/meshproof/loadgen"
)

// Encoder writes Results, buffered: Flush at the end, and before the output is read.
type Encoder struct {
	out  *bufio.Writer
	json *json.Encoder
}

// NewEncoder returns an Encoder that writes to w.
func NewEncoder(w io.Writer) *Encoder {
	out := bufio.NewWriterSize(w, 32<<10)
	return &Encoder{out: out, json: json.NewEncoder(out)}
}

// Encode writes one line. Times keep their nanoseconds and lose their monotonic reading; the differences between the three
// times of a Result stay exact, because generators derive them from one start.
func (e *Encoder) Encode(r loadgen.Result) error {
	if err := e.json.Encode(r); err != nil {
		return fmt.Errorf("encode result %d: %w", r.Seq, err)
	}
	return nil
}

// Flush writes what is buffered.
func (e *Encoder) Flush() error { return e.out.Flush() }

// maxLine is far above what a Result can need: its texts are bounded.
const maxLine = 1 << 20

// Decode reads what Encode wrote, as it is consumed. An error names its line and ends the sequence.
func Decode(r io.Reader) iter.Seq2[loadgen.Result, error] {
	return func(yield func(loadgen.Result, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		n := 1
		for ; lines.Scan(); n++ {
			if len(bytes.TrimSpace(lines.Bytes())) == 0 {
				continue
			}
			result, err := Line(lines.Bytes())
			if err != nil {
				yield(loadgen.Result{}, fmt.Errorf("results: line %d: %w", n, err))
				return
			}
			if !yield(result, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(loadgen.Result{}, fmt.Errorf("results: line %d: %w", n, err))
		}
	}
}

// Line decodes one Result. Unknown fields and classes are errors: a reader that skips what it does not know would lose
// evidence.
func Line(data []byte) (loadgen.Result, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var r loadgen.Result
	if err := dec.Decode(&r); err != nil {
		return loadgen.Result{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return loadgen.Result{}, errors.New("more than one value")
	}
	if !slices.Contains(loadgen.Classes(), r.Class) {
		return loadgen.Result{}, fmt.Errorf("class: %q is not one of %v", r.Class, loadgen.Classes())
	}
	return r, nil
}

// Interval is one histogram of nanoseconds and the time that it covers.
type Interval struct {
	Tag        string // no spaces or commas
	Start, End time.Time
	Histogram  *hdrhistogram.Histogram
}

// HDRLog writes an HdrHistogram interval log, version 1.3, which HdrHistogram's tools in every language read. Its maxima are
// in milliseconds, which is the convention for histograms of nanoseconds.
func HDRLog(w io.Writer, intervals ...Interval) error {
	log := hdrhistogram.NewHistogramLogWriter(w)
	if err := errors.Join(log.OutputComment("[values in nanoseconds, maxima in milliseconds]"), log.OutputLogFormatVersion(), log.OutputLegend()); err != nil {
		return fmt.Errorf("histogram log: %w", err)
	}
	for _, i := range intervals {
		h := i.Histogram.Clone()
		h.SetTag(i.Tag)
		h.SetStartTimeMs(i.Start.UnixMilli())
		h.SetEndTimeMs(i.End.UnixMilli())
		if err := log.OutputIntervalHistogram(h); err != nil {
			return fmt.Errorf("histogram log: %s: %w", i.Tag, err)
		}
	}
	return nil
}
