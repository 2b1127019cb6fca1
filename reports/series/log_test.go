package series

import (
	"bytes"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/meshproof/meshproof/reports/evidence"
)

func TestLog(t *testing.T) {
	requests := []evidence.Request{
		request(time.Second, 0, 2*time.Millisecond),
		request(0, 10*time.Millisecond, time.Millisecond),
		request(2*time.Second, 0, time.Minute, class("canceled")),
		request(3*time.Second, 0, 500*time.Millisecond, class("timeout")),
	}
	var buf bytes.Buffer
	if err := Log(&buf, requests); err != nil {
		t.Fatal(err)
	}
	reader := hdrhistogram.NewHistogramLogReader(&buf)
	for _, want := range []struct {
		tag   string
		least time.Duration
	}{{"latency", 2 * time.Millisecond}, {"service", time.Millisecond}} {
		got, err := reader.NextIntervalHistogram()
		if err != nil || got == nil {
			t.Fatalf("%s: %v", want.tag, err)
		}
		if got.Tag() != want.tag || got.TotalCount() != 3 || got.StartTimeMs() != start.UnixMilli() || got.EndTimeMs() != start.Add(3500*time.Millisecond).UnixMilli() {
			t.Errorf("tag %q, %d values from %d to %d", got.Tag(), got.TotalCount(), got.StartTimeMs(), got.EndTimeMs())
		}
		if !got.ValuesAreEquivalent(got.Min(), int64(want.least)) || !got.ValuesAreEquivalent(got.Max(), int64(500*time.Millisecond)) {
			t.Errorf("%s from %v to %v", want.tag, time.Duration(got.Min()), time.Duration(got.Max()))
		}
	}
}

func TestLogOfNothing(t *testing.T) {
	var buf bytes.Buffer
	if err := Log(&buf, []evidence.Request{request(0, 0, time.Second, class("canceled"))}); err != nil {
		t.Fatal(err)
	}
	if got, err := hdrhistogram.NewHistogramLogReader(&buf).NextIntervalHistogram(); err != nil || got != nil {
		t.Errorf("read %v, error %v, want nothing", got, err)
	}
}
