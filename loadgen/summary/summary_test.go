package summary_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/summary"
)

const ms = time.Millisecond

var start = time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC)

// result is a request due after the start at due, sent late by late, served in service.
func result(due, late, service time.Duration, class loadgen.Class, version string) loadgen.Result {
	r := loadgen.Result{Intended: start.Add(due), Sent: start.Add(due + late), Done: start.Add(due + late + service), Class: class}
	if version != "" {
		r.App, r.Version, r.Pod = "hello", version, "hello-"+version
	}
	return r
}

func TestSummary(t *testing.T) {
	r := summary.New(summary.Options{Bin: 500 * ms})
	for _, res := range []loadgen.Result{ // out of order, as results end
		result(1600*ms, 0, 5*ms, loadgen.OK, "v2"),
		result(0, 0, 2*ms, loadgen.OK, "v1"),
		result(100*ms, 10*ms, 2*ms, loadgen.OK, "v2"), // just in time
		result(200*ms, 11*ms, 2*ms, loadgen.Status, "v1"),
		result(300*ms, 0, 900*ms, loadgen.Timeout, ""),
		result(400*ms, 0, 0, loadgen.Canceled, ""),
	} {
		r.Add(res)
	}
	got := r.Summary()
	want := summary.Summary{
		Requests: 5, Failed: 2, Canceled: 1, First: start, Last: start.Add(1605 * ms),
		Classes:   map[loadgen.Class]uint64{loadgen.OK: 3, loadgen.Status: 1, loadgen.Timeout: 1, loadgen.Canceled: 1},
		Versions:  map[string]uint64{"hello/v1": 2, "hello/v2": 2},
		Pods:      map[string]uint64{"hello/v1/hello-v1": 2, "hello/v2/hello-v2": 2},
		LateBound: 10 * ms, Missed: 1, MissedRate: 0.2,
		Bin: 500 * ms,
		Bins: []summary.Bin{
			{Start: start, Requests: 4, Failed: 2, Versions: map[string]uint64{"hello/v1": 2, "hello/v2": 1}, P50: 12 * ms, P90: 900 * ms, P99: 900 * ms, Max: 900 * ms},
			{Start: start.Add(500 * ms)},
			{Start: start.Add(1000 * ms)},
			{Start: start.Add(1500 * ms), Requests: 1, Versions: map[string]uint64{"hello/v2": 1}, P50: 5 * ms, P90: 5 * ms, P99: 5 * ms, Max: 5 * ms},
		},
	}
	near := func(name string, got, want time.Duration) {
		if got < want*999/1000 || got > want*1001/1000 {
			t.Errorf("%s is %s, want %s to three digits", name, got, want)
		}
	}
	near("latency p50", got.Latency.P50, 12*ms)
	near("latency p99", got.Latency.P99, 900*ms)
	near("latency max", got.Latency.Max, 900*ms)
	near("service p50", got.Service.P50, 2*ms)
	near("lateness p50", got.Lateness.P50, 0)
	near("lateness max", got.Lateness.Max, 11*ms)
	got.Latency, got.Service, got.Lateness = want.Latency, want.Service, want.Lateness
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A stall of one second under a constant rate: the quantiles from the intended start hold it, those from the send do not.
func TestCoordinatedOmission(t *testing.T) {
	r := summary.New(summary.Options{})
	for i := range 1000 { // 100/s for 10 s; the server stalls from second 4 to 5
		due := time.Duration(i) * 10 * ms
		late := max(0, min(5*time.Second-due, time.Second))
		if due < 4*time.Second {
			late = 0
		}
		r.Add(result(due, late, ms, loadgen.OK, "v1"))
	}
	s := r.Summary()
	if s.Latency.P99 < 850*ms || s.Service.P99 > 2*ms {
		t.Errorf("p99 from intended start %s, from the send %s", s.Latency.P99, s.Service.P99)
	}
	if s.Missed != 99 { // due from 4.00 to 4.98; the one due at 4.99 is just 10 ms late
		t.Errorf("%d missed, want 99", s.Missed)
	}
}

func TestEmpty(t *testing.T) {
	s := summary.New(summary.Options{}).Summary()
	if s.Requests != 0 || s.MissedRate != 0 || s.Latency.P99 != 0 || len(s.Bins) != 0 {
		t.Errorf("%+v", s)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

// What a summary returned does not change when more is added.
func TestSummaryIsACopy(t *testing.T) {
	r := summary.New(summary.Options{})
	r.Add(result(0, 0, ms, loadgen.OK, "v1"))
	s := r.Summary()
	r.Add(result(0, 0, ms, loadgen.OK, "v1"))
	if s.Versions["hello/v1"] != 1 || s.Bins[0].Versions["hello/v1"] != 1 {
		t.Errorf("%+v", s)
	}
}

func BenchmarkAdd(b *testing.B) {
	r := summary.New(summary.Options{})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r.Add(result(time.Duration(i%100_000)*ms, 0, ms, loadgen.OK, "v1"))
		i++
	}
}
