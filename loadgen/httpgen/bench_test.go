package httpgen_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

// BenchmarkLateness sends to a server in this process for some seconds and reports how late requests left. One iteration is a
// whole run: use -benchtime 1x.
func BenchmarkLateness(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "Hello, this is v1 from bench")
	}))
	defer server.Close()
	for _, rate := range []float64{500, 1000, 2000, 5000, 10000} {
		b.Run(fmt.Sprintf("rps=%.0f", rate), func(b *testing.B) {
			for b.Loop() {
				report(b, run(b, loadgen.Profile{Name: "bench", URL: server.URL, Rate: rate, Duration: 4 * time.Second}))
			}
		})
	}
}

func run(b *testing.B, p loadgen.Profile) []loadgen.Result {
	b.Helper()
	g, err := httpgen.New(p, httpgen.Options{})
	if err != nil {
		b.Fatal(err)
	}
	var results []loadgen.Result
	if err := g.Run(b.Context(), func(r loadgen.Result) { results = append(results, r) }); err != nil {
		b.Fatal(err)
	}
	return results
}

func report(b *testing.B, results []loadgen.Result) {
	b.Helper()
	var late, latency, service []time.Duration
	failed := 0
	for _, r := range results {
		late = append(late, r.Lateness())
		latency = append(latency, r.Latency())
		service = append(service, r.ServiceTime())
		if r.Class != loadgen.OK {
			failed++
		}
	}
	metric := func(name string, ds []time.Duration, q float64) {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[int(q*float64(len(ds)-1))].Microseconds()), name)
	}
	metric("late-p50-µs", late, 0.5)
	metric("late-p99-µs", late, 0.99)
	metric("late-max-µs", late, 1)
	metric("latency-p99-µs", latency, 0.99)
	metric("service-p99-µs", service, 0.99)
	b.ReportMetric(float64(len(results)), "sent")
	b.ReportMetric(float64(failed), "failed")
}
