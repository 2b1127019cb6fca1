package balance

import (
	"math"
	"slices"
	"sync/atomic"
	"testing"
)

func index(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func count(p Picker, n, picks int) []float64 {
	out := make([]float64, n)
	for range picks {
		if i := p.Pick(Query{}); i >= 0 {
			out[i] += 1 / float64(picks)
		}
	}
	return out
}

func near(t *testing.T, what string, got, want []float64, tolerance float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > tolerance {
			t.Errorf("%s: got %.3f, want %.3f", what, got, want)
			return
		}
	}
}

func TestShares(t *testing.T) {
	equal := []Entry{{Weight: 1}, {Weight: 1}, {Weight: 1}, {Weight: 1}}
	uneven := []Entry{{Weight: 1}, {Weight: 2}, {Weight: 7}}
	quarter, tenths := []float64{.25, .25, .25, .25}, []float64{.1, .2, .7}
	// 100,000 draws: 6 standard deviations of a share of one half are 0.0095; EDF and turns are exact.
	const n = 100_000
	near(t, "turns", count(RoundRobin(equal, index(4)), 4, n), quarter, 1e-9)
	near(t, "weighted turns", count(RoundRobin(uneven, index(3)), 3, n), tenths, 1e-4)
	near(t, "least request", count(LeastRequest(2)(equal, index(4)), 4, n), quarter, .0095)
	near(t, "weighted least request", count(LeastRequest(2)(uneven, index(3)), 3, n), tenths, 1e-4)
	near(t, "random", count(Random(uneven, index(3)), 3, n), tenths, .0095)
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	var busy, idle atomic.Int64
	busy.Store(100)
	p := LeastRequest(2)([]Entry{{Weight: 1, Active: &busy}, {Weight: 1, Active: &idle}}, index(2))
	// Both draws must hit the busy one for it to be picked: 1 in 4.
	near(t, "busy", count(p, 2, 100_000), []float64{.25, .75}, .0095)
}

// TestPriorities: vectors of Envoy's documentation on priority levels.
func TestPriorities(t *testing.T) {
	for _, c := range []struct {
		healthy [2]int // percent, of 100 endpoints each
		load    [2]float64
	}{{[2]int{100, 100}, [2]float64{1, 0}}, {[2]int{72, 72}, [2]float64{1, 0}}, {[2]int{71, 71}, [2]float64{.99, .01}}, {[2]int{50, 50}, [2]float64{.7, .3}}, {[2]int{25, 100}, [2]float64{.35, .65}}, {[2]int{25, 25}, [2]float64{.5, .5}}} {
		var entries []Entry
		for p := range 2 {
			for i := range 100 {
				entries = append(entries, Entry{Weight: 1, Priority: uint32(p), Healthy: i < c.healthy[p]})
			}
		}
		s := New(entries, Options{Build: Random})
		got := count(s, 200, 100_000)
		var load [2]float64
		for i, v := range got {
			load[i/100] += v
			if v > 0 && !entries[i].Healthy {
				t.Errorf("%v: unhealthy endpoint %d was picked", c.healthy, i)
			}
		}
		near(t, "priorities", load[:], c.load[:], .0095)
	}
}

// TestLoads: percentages of each priority, as Envoy computes them, and who is in panic. Entries are all and healthy by priority.
func TestLoads(t *testing.T) {
	for _, c := range []struct {
		name           string
		all, healthy   []int
		panicThreshold float64
		loads          []int
		panic          []bool
	}{
		{"one priority", []int{3}, []int{1}, 0, []int{100}, []bool{false}},
		{"one of three left, panic at 50", []int{3}, []int{1}, 50, []int{100}, []bool{true}}, // 46 % available, 33 % healthy
		{"two of three left, panic at 50", []int{3}, []int{2}, 50, []int{100}, []bool{false}},
		{"one of two left, panic at 50", []int{2}, []int{1}, 50, []int{100}, []bool{false}}, // not less than 50 %
		{"enough in all: no panic", []int{4, 4}, []int{1, 4}, 50, []int{35, 65}, []bool{false, false}},
		{"failover when the first is out", []int{2, 2}, []int{0, 2}, 0, []int{0, 100}, []bool{false, false}},
		{"failover with panic on", []int{2, 2}, []int{0, 2}, 50, []int{0, 100}, []bool{false, false}},
		{"a rest of rounding goes to the first", []int{100, 100, 100}, []int{20, 20, 20}, 0, []int{34, 33, 33}, []bool{false, false, false}},
		{"and to the first that is healthy", []int{100, 100, 100, 100}, []int{0, 20, 20, 20}, 0, []int{0, 34, 33, 33}, []bool{false, false, false, false}},
		{"nobody anywhere, no panic", []int{2, 2}, []int{0, 0}, 0, []int{100, 0}, []bool{false, false}},
		{"all in panic: by number", []int{6, 2, 1}, []int{0, 0, 0}, 50, []int{67, 22, 11}, []bool{true, true, true}}, // 66 + 1 of rounding
		{"all in panic, the first is empty", []int{0, 3}, []int{0, 1}, 50, []int{0, 100}, []bool{true, true}},
		{"one in panic", []int{10, 10}, []int{1, 5}, 50, []int{17, 83}, []bool{true, false}}, // 14 and 70 of 84, and 1 of rounding
	} {
		var list []priority
		for p := range c.all {
			list = append(list, priority{make([]int, c.all[p]), make([]int, c.healthy[p])})
		}
		loads, panicking := shares(list, c.panicThreshold)
		if !slices.Equal(loads, c.loads) || !slices.Equal(panicking, c.panic) {
			t.Errorf("%s: %v %v, want %v %v", c.name, loads, panicking, c.loads, c.panic)
		}
	}
}

// TestLocalities: vectors of Envoy's documentation on locality weighted load balancing.
func TestLocalities(t *testing.T) {
	for healthy, want := range map[int][]float64{100: {1. / 3, 2. / 3}, 69: {.966 / 2.966, 2 / 2.966}, 50: {.7 / 2.7, 2 / 2.7}, 25: {.35 / 2.35, 2 / 2.35}, 0: {0, 1}} {
		var entries []Entry
		for l := range 2 {
			for i := range 100 {
				entries = append(entries, Entry{Weight: 1, Locality: l, Healthy: l == 1 || i < healthy})
			}
		}
		got := count(New(entries, Options{Build: Random, LocalityWeights: []uint32{1, 2}}), 200, 100_000)
		var load [2]float64
		for i, v := range got {
			load[i/100] += v
		}
		near(t, "localities", load[:], want, .0095)
	}
}

// TestLocalitiesDoNotMatter: in panic, and where none has a weight, endpoints count alone.
func TestLocalitiesDoNotMatter(t *testing.T) {
	entries := []Entry{{Weight: 1, Locality: 0}, {Weight: 1, Locality: 1}, {Weight: 1, Locality: 1}, {Weight: 1, Locality: 1}}
	quarter := []float64{.25, .25, .25, .25}
	near(t, "panic", count(New(entries, Options{Build: Random, Panic: 50, LocalityWeights: []uint32{5, 1}}), 4, 100_000), quarter, .0095)
	for i := range entries {
		entries[i].Healthy = true
	}
	near(t, "no weights", count(New(entries, Options{Build: Random, LocalityWeights: []uint32{0, 0}}), 4, 100_000), quarter, .0095)
}

func TestNobodyHealthy(t *testing.T) {
	sick := []Entry{{Weight: 1}, {Weight: 1}}
	if i := New(sick, Options{Build: Random}).Pick(Query{}); i != -1 {
		t.Errorf("without panic: picked %d", i)
	}
	if i := New(sick, Options{Build: Random, Panic: 50}).Pick(Query{}); i < 0 {
		t.Error("in panic nothing was picked")
	}
	if i := New(nil, Options{Build: Random}).Pick(Query{}); i != -1 {
		t.Errorf("without endpoints: picked %d", i)
	}
}
