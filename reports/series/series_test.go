package series

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
)

var start = time.Date(2026, 11, 20, 18, 3, 11, 0, time.UTC)

// request is intended at at, sent late after it, and done took after that.
func request(at, late, took time.Duration, change ...func(*evidence.Request)) evidence.Request {
	i := start.Add(at).UnixNano()
	r := evidence.Request{Intended: i, Sent: i + int64(late), Done: i + int64(late+took), Class: "ok", App: "hello", Version: "v1"}
	for _, c := range change {
		c(&r)
	}
	return r
}

func class(c string) func(*evidence.Request) {
	return func(r *evidence.Request) { r.Class, r.App, r.Version = c, "", "" }
}

func version(v string) func(*evidence.Request) { return func(r *evidence.Request) { r.Version = v } }

const ms = time.Millisecond

func TestStream(t *testing.T) {
	requests := []evidence.Request{
		request(2100*ms, 0, 4*ms, version("v2")), // out of order
		request(0, 0, 2*ms),
		request(400*ms, 11*ms, 2*ms),
		request(999*ms, 10*ms, 2*ms), // just not late
		request(2200*ms, 0, 3*time.Second, class("timeout")),
		request(2300*ms, 0, 0, class("canceled")), // no evidence
		request(2400*ms, 0, 1*ms, func(r *evidence.Request) { r.Class, r.Sent = "connect", 0 }),
	}
	before := slices.Clone(requests)
	got, err := Stream(requests, Options{Name: "n", Target: "t", Rate: 5, Bin: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, requests); d != "" {
		t.Errorf("changed what it was given: %s", d)
	}
	want := verdict.Stream{Name: "n", Target: "t", Rate: 5, Requests: 6, Failed: map[string]int{"timeout": 1, "connect": 1}, MissedRate: 1.0 / 6, LateBound: 0.01,
		Latency: verdict.Quantiles{P50: .004, P90: 3, P99: 3, P999: 3, Max: 3},
		Service: verdict.Quantiles{P50: .002, P90: 3, P99: 3, P999: 3, Max: 3},
		Seconds: []verdict.Second{
			{Start: start, Width: 1, Requests: 3, Versions: map[string]int{"hello v1": 3}, P50: .012, P90: .013, P99: .013, Max: .013},
			{Start: start.Add(time.Second), Width: 1, Versions: map[string]int{}},
			{Start: start.Add(2 * time.Second), Width: 1, Requests: 3, Failed: 2, Versions: map[string]int{"hello v1": 1, "hello v2": 1}, P50: .004, P90: 3, P99: 3, Max: 3},
		}}
	near := cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) <= 1e-3*max(math.Abs(a), math.Abs(b)) })
	if d := cmp.Diff(want, got, near); d != "" {
		t.Error(d)
	}
}

func TestStreamOfNothing(t *testing.T) {
	for name, requests := range map[string][]evidence.Request{"none": nil, "all canceled": {request(0, 0, 0, class("canceled"))}} {
		got, err := Stream(requests, Options{Name: "n"})
		if err != nil || got.Requests != 0 || got.Failed == nil || got.Seconds == nil || len(got.Seconds) != 0 || got.MissedRate != 0 {
			t.Errorf("%s: %+v, error %v", name, got, err)
		}
	}
}

func TestStreamRefuses(t *testing.T) {
	far := []evidence.Request{request(0, 0, 0), request(time.Hour, 0, 0)}
	for name, c := range map[string]struct {
		requests []evidence.Request
		bin      time.Duration
		say      string
	}{
		"too many bins": {far, ms, "too many"},
		"negative bin":  {far, -time.Second, "too many"},
		"no span":       {[]evidence.Request{{Intended: math.MinInt64, Class: "ok"}, {Intended: math.MaxInt64, Class: "ok"}}, 0, "no span of time"},
	} {
		if _, err := Stream(c.requests, Options{Name: "n", Bin: c.bin}); err == nil || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), `"n"`) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// Values beyond the histogram saturate and are still counted.
func TestStreamSaturates(t *testing.T) {
	got, err := Stream([]evidence.Request{request(0, 0, -time.Second), request(1, 0, 5*time.Hour)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if l := got.Latency; got.Requests != 2 || math.Abs(l.P50-1e-6) > 2e-9 || l.Max < 3596 || l.Max > 3604 {
		t.Errorf("%d requests, %+v", got.Requests, l)
	}
}

func TestBinFor(t *testing.T) {
	for _, c := range []struct {
		span     time.Duration
		requests int
		want     time.Duration
	}{
		{0, 1, 100 * ms}, {29 * time.Second, 1 << 20, 100 * ms}, {30 * time.Second, 1 << 20, 250 * ms}, {40 * time.Second, 1 << 20, 250 * ms},
		{30 * time.Second, 150, 5 * time.Second}, {30 * time.Second, 9, time.Minute}, {24 * time.Hour, 1 << 30, 5 * time.Minute}, {48 * time.Hour, 1 << 30, 48*time.Hour/300 + 1},
	} {
		if got := binFor(c.span, c.requests); got != c.want {
			t.Errorf("%d requests in %v: bins of %v, want %v", c.requests, c.span, got, c.want)
		}
	}
}

// Against sorting: quantiles are within the histogram's three digits of the true ones, and bins add up.
func TestStreamAgainstSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var requests []evidence.Request
	var took []float64
	for range 20_000 {
		d := time.Duration(rng.ExpFloat64() * 5e6)
		took = append(took, max(d.Seconds(), 1e-6))
		requests = append(requests, request(time.Duration(rng.Int64N(int64(30*time.Second))), 0, d))
	}
	slices.Sort(took)
	got, err := Stream(requests, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for q, v := range map[float64]float64{.5: got.Latency.P50, .9: got.Latency.P90, .99: got.Latency.P99, .999: got.Latency.P999, 1: got.Latency.Max} {
		want := took[int(math.Ceil(q*float64(len(took))))-1]
		if math.Abs(v-want) > 1e-3*want+1e-9 {
			t.Errorf("quantile %v is %v, by sorting %v", q, v, want)
		}
	}
	n := 0
	for i, b := range got.Seconds {
		n += b.Requests
		if i > 0 && !b.Start.Equal(got.Seconds[i-1].Start.Add(time.Duration(b.Width*1e9))) {
			t.Errorf("a gap before bin %d", i)
		}
	}
	if n != len(requests) || len(got.Seconds) > maxBins+1 {
		t.Errorf("%d requests in %d bins", n, len(got.Seconds))
	}
}

func FuzzStream(f *testing.F) {
	f.Add(int64(0), int64(5), int64(9), int64(1e9))
	f.Add(int64(math.MinInt64), int64(math.MaxInt64), int64(-1), int64(0))
	f.Fuzz(func(t *testing.T, a, b, c, bin int64) {
		requests := []evidence.Request{{Intended: a, Sent: b, Done: c, Class: "ok"}, {Intended: b, Sent: c, Done: a, Class: "reset"}}
		s, err := Stream(requests, Options{Bin: time.Duration(bin)})
		if err == nil && (s.Requests != 2 || s.Failed["reset"] != 1) {
			t.Errorf("%+v", s)
		}
	})
}
