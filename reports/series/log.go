package series

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/meshproof/meshproof/reports/evidence"
)

// Log writes the latencies and service times of a stream as an HdrHistogram interval log, version 1.3, which HdrHistogram's tools in
// every language read: two intervals, tagged latency and service, over the whole time of the stream. It counts what Stream counts;
// where that is nothing the log has no interval. Maxima are in milliseconds, which is the convention for histograms of nanoseconds.
func Log(w io.Writer, requests []evidence.Request) error {
	latency, service := newHistogram(), newHistogram()
	var from, to int64
	for _, r := range requests {
		if r.Class == "canceled" {
			continue
		}
		if latency.TotalCount() == 0 {
			from = r.Intended
		}
		from, to = min(from, r.Intended), max(to, r.Done)
		record(latency, r.Done-r.Intended)
		if r.Sent != 0 {
			record(service, r.Done-r.Sent)
		}
	}
	log := hdrhistogram.NewHistogramLogWriter(w)
	if err := errors.Join(log.OutputComment("[values in nanoseconds, maxima in milliseconds]"), log.OutputLogFormatVersion(), log.OutputLegend()); err != nil {
		return fmt.Errorf("histogram log: %w", err)
	}
	for _, i := range []struct {
		tag string
		h   *hdrhistogram.Histogram
	}{{"latency", latency}, {"service", service}} {
		if i.h.TotalCount() == 0 {
			continue
		}
		i.h.SetTag(i.tag)
		i.h.SetStartTimeMs(from / int64(time.Millisecond))
		i.h.SetEndTimeMs(to / int64(time.Millisecond))
		if err := log.OutputIntervalHistogram(i.h); err != nil {
			return fmt.Errorf("histogram log: %s: %w", i.tag, err)
		}
	}
	return nil
}
