package record

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/loadgen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParsePressure(t *testing.T) {
	us, err := parsePressure([]byte("some avg10=1.00 avg60=0.50 avg300=0.10 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"))
	if err != nil || us != 2.5e6 {
		t.Errorf("got %v, %v; want 2.5e6", us, err)
	}
	if _, err := parsePressure([]byte("full total=1\n")); err == nil {
		t.Error("took a file without a some line")
	}
}

func TestParseStat(t *testing.T) {
	total, idle, steal, cpus := parseStat([]byte("cpu  10 1 20 100 5 2 3 9 4 4\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n"))
	if total != 150 || idle != 105 || steal != 9 || cpus != 2 {
		t.Errorf("total %v idle %v steal %v cpus %d; want 150 105 9 2", total, idle, steal, cpus)
	}
}

func TestWatchHost(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		write("pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=0\n")
		write("stat", "cpu 0 0 0 0 0 0 0 0\ncpu0 0\n")
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan Host)
		go func() { got <- WatchHost(ctx, proc) }()
		time.Sleep(1500 * time.Millisecond)
		write("pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=500000\n")
		write("stat", "cpu 30 0 10 50 0 0 0 10\ncpu0 0\n")
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		cancel()
		h := <-got
		if h.CPUStall < 0.16 || h.CPUStall > 0.17 || h.CPUStallMax != 0.5 || h.Steal != 0.1 || h.Busy != 0.5 || h.IOStall != -1 || h.CPUs != 1 {
			t.Errorf("got %+v", h)
		}
	})
}

func TestLive(t *testing.T) {
	r := New(nil)
	start := time.Now()
	for i := range 200 {
		at := start.Add(time.Duration(i) * 10 * time.Millisecond)
		class := loadgen.OK
		if i == 7 {
			class = loadgen.Reset
		}
		r.Result(loadgen.Result{Stream: "s", Intended: at, Sent: at, Done: at.Add(time.Duration(i%100) * time.Microsecond), Class: class})
	}
	r.Step("step 1 of 2")
	l := r.Live(start.Add(2 * time.Second))
	if l.Requests != 200 || l.Lost != 1 || l.Step != "step 1 of 2" || l.Rate < 98 || l.Rate > 101 {
		t.Errorf("got %+v", l)
	}
	if l.P99 < 97*time.Microsecond || l.P50 > 52*time.Microsecond {
		t.Errorf("quantiles %s %s", l.P50, l.P99)
	}
}

func TestAnsweredUntilWaitsForEveryStreamAndTheSlowest(t *testing.T) {
	r := New(nil)
	r.Stream(Stream{Name: "a"})
	r.Stream(Stream{Name: "b"})
	start := time.Now()
	due := func(n uint64) time.Time { return start.Add(time.Duration(n) * time.Second) }
	for i, step := range []struct {
		stream string
		seq    uint64
		want   time.Time
	}{
		{"a", 0, time.Time{}}, // b has none
		{"b", 0, due(0)},
		{"b", 1, due(0)},
		{"a", 2, due(0)}, // 1 is still under way
		{"a", 3, due(0)},
		{"a", 1, due(1)}, // now b is the slower one
		{"b", 2, due(2)},
		{"b", 3, due(3)},
	} {
		r.Result(loadgen.Result{Stream: step.stream, Seq: step.seq, Intended: due(step.seq)})
		if got := r.AnsweredUntil(); !got.Equal(step.want) {
			t.Errorf("after %d (%s %d): %v, want %v", i, step.stream, step.seq, got.Sub(start), step.want.Sub(start))
		}
	}
}
