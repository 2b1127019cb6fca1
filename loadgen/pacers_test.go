package loadgen_test

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/loadgen"
)

func dues(t *testing.T, p loadgen.Pacer) []time.Duration {
	t.Helper()
	var all []time.Duration
	for n := uint64(0); n < 1_000_000; n++ {
		due, ok := loadgen.Due(p, n)
		if !ok {
			return all
		}
		all = append(all, due)
	}
	t.Fatal("the schedule does not end")
	return nil
}

func TestDueTimes(t *testing.T) {
	ms := time.Millisecond
	for _, test := range []struct {
		name string
		p    loadgen.Pacer
		want []time.Duration
	}{
		{"four a second", loadgen.Constant(4, time.Second), []time.Duration{0, 250 * ms, 500 * ms, 750 * ms}},
		{"a rate that does not divide the time", loadgen.Constant(3, time.Second), []time.Duration{0, 333333333, 666666667}},
		{"slower than the run is long", loadgen.Constant(0.1, time.Second), []time.Duration{0}},
		{"the shortest run there is", loadgen.Constant(1, 1), []time.Duration{0}},
		{"a pause between steps", loadgen.Steps([]loadgen.Step{{Rate: 2, For: time.Second}, {Rate: 0, For: time.Second}, {Rate: 4, For: 500 * ms}}),
			[]time.Duration{0, 500 * ms, 2000 * ms, 2250 * ms}},
		{"half a request carried into the next step", loadgen.Steps([]loadgen.Step{{Rate: 1, For: 1500 * ms}, {Rate: 1, For: 1500 * ms}}),
			[]time.Duration{0, 1000 * ms, 2000 * ms}},
		{"a ramp from nothing", loadgen.Ramp(0, 8, 2*time.Second), []time.Duration{0, 707106781, 1000 * ms, 1224744871, 1414213562, 1581138830, 1732050808, 1870828693}},
		{"a ramp down to nothing", loadgen.Ramp(2, 0, 2*time.Second), []time.Duration{0, 585786438}},
		{"a ramp that is level", loadgen.Ramp(4, 4, time.Second), []time.Duration{0, 250 * ms, 500 * ms, 750 * ms}},
		{"nothing at all", loadgen.Ramp(0, 0, time.Second), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := dues(t, test.p); !slices.Equal(got, test.want) {
				t.Errorf("due at %v, want %v", got, test.want)
			}
		})
	}
}

// Every schedule sends as many requests as its rate integrates to, in order, none after its end.
func TestCounts(t *testing.T) {
	for _, test := range []struct {
		name   string
		p      loadgen.Pacer
		count  int
		length time.Duration
	}{
		{"constant", loadgen.Constant(500, 31*time.Second), 15500, 31 * time.Second},
		{"constant, awkward rate", loadgen.Constant(333.3, 30*time.Second), 9999, 30 * time.Second},
		{"ramp up", loadgen.Ramp(100, 900, 10*time.Second), 5000, 10 * time.Second},
		{"ramp down", loadgen.Ramp(900, 100, 10*time.Second), 5000, 10 * time.Second},
		{"steps", loadgen.Steps([]loadgen.Step{{Rate: 100.1, For: 10 * time.Second}, {Rate: 0, For: time.Second}, {Rate: 299.9, For: 10 * time.Second}}), 4000, 21 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := dues(t, test.p)
			if len(got) != test.count {
				t.Errorf("%d requests, want %d", len(got), test.count)
			}
			if !slices.IsSorted(got) {
				t.Error("requests are not due in order")
			}
			if last := got[len(got)-1]; last >= test.length {
				t.Errorf("the last is due at %s, after the end at %s", last, test.length)
			}
		})
	}
}

// A pacer tells one who is early how long to wait, and one who is late to send at once, without forgetting what is owed.
func TestNextAgainstElapsed(t *testing.T) {
	p := loadgen.Constant(10, time.Second)
	for _, test := range []struct {
		elapsed time.Duration
		sent    uint64
		wait    time.Duration
		done    bool
	}{
		{0, 0, 0, false},
		{0, 5, 500 * time.Millisecond, false},
		{450 * time.Millisecond, 5, 50 * time.Millisecond, false},
		{900 * time.Millisecond, 5, 0, false},
		{5 * time.Second, 9, 0, false}, // far behind: the rest is still owed
		{5 * time.Second, 10, 0, true},
		{0, math.MaxUint64, 0, true},
	} {
		if wait, done := p.Next(test.elapsed, test.sent); wait != test.wait || done != test.done {
			t.Errorf("Next(%s, %d) = %s, %t; want %s, %t", test.elapsed, test.sent, wait, done, test.wait, test.done)
		}
	}
}

// Played by a clock, a schedule keeps its times though each request takes long: waits are from the start, not from the last.
func TestPlayedSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := loadgen.Constant(10, time.Second)
		start := time.Now()
		var sent []time.Duration
		for n := uint64(0); ; n++ {
			wait, done := p.Next(time.Since(start), n)
			if done {
				break
			}
			time.Sleep(wait)
			sent = append(sent, time.Since(start))
			if n == 2 {
				time.Sleep(250 * time.Millisecond) // a stall
			}
		}
		ms := time.Millisecond
		want := []time.Duration{0, 100 * ms, 200 * ms, 450 * ms, 450 * ms, 500 * ms, 600 * ms, 700 * ms, 800 * ms, 900 * ms}
		if !slices.Equal(sent, want) {
			t.Errorf("sent at %v, want %v", sent, want)
		}
	})
}

func BenchmarkNext(b *testing.B) {
	p := loadgen.Steps([]loadgen.Step{{Rate: 500, For: time.Hour}, {Rate: 1000, For: time.Hour}})
	b.ReportAllocs()
	var n uint64
	for b.Loop() {
		p.Next(0, n%3_000_000)
		n++
	}
}
