package balance

import (
	"fmt"
	"math"
	"testing"
)

// hashed builds a Set of hosts 127.0.0.1:90 and on, all of the same weight unless weights are given.
func hashed(n int, h HashBuilder, change func(i int, e *Entry)) *Set {
	var entries []Entry
	for i := range n {
		e := Entry{Weight: 1, Healthy: true, Key: fmt.Sprintf("127.0.0.1:%d", 90+i)}
		if change != nil {
			change(i, &e)
		}
		entries = append(entries, e)
	}
	return New(entries, Options{Hash: h, Panic: 50})
}

func at(h uint64, attempt int) Query { return Query{Hash: h, HasHash: true, Attempt: attempt} }

// TestRingVector: the ring of Envoy's ring_hash_lb_test.cc, Basic, point by point, with its edges and attempts.
func TestRingVector(t *testing.T) {
	want := []struct {
		port int
		hash uint64
	}{
		{94, 833437586790550860}, {92, 928266305478181108}, {90, 1033482794131418490}, {95, 3551244743356806947},
		{93, 3851675632748031481}, {91, 5583722120771150861}, {91, 6311230543546372928}, {93, 7700377290971790572},
		{95, 13144177310400110813}, {92, 13444792449719432967}, {94, 15516499411664133160}, {90, 16117243373044804889},
	}
	s := hashed(6, Ring(12, maxRing), nil)
	r := s.levels[0].pick.(ring)
	if len(r) != len(want) {
		t.Fatalf("%d points, want %d", len(r), len(want))
	}
	for i, w := range want {
		if r[i].hash != w.hash || r[i].index != w.port-90 {
			t.Errorf("point %d: %d@%d, want %d@%d", i, r[i].index+90, r[i].hash, w.port, w.hash)
		}
		for _, p := range []struct {
			at   uint64
			want int
		}{{w.hash, w.port}, {w.hash + 1, want[(i+1)%12].port}, {w.hash - 1, w.port}} {
			if got := s.Pick(at(p.at, 0)) + 90; got != p.want {
				t.Errorf("hash %d: host %d, want %d", p.at, got, p.want)
			}
		}
	}
	for h, w := range map[uint64]int{0: 94, math.MaxUint64: 94, 3551244743356806947: 95, 3551244743356806948: 93} {
		if got := s.Pick(at(h, 0)) + 90; got != w {
			t.Errorf("hash %d: host %d, want %d", h, got, w)
		}
	}
	// Retries move along the ring and come round.
	for attempt, w := range []int{95, 93, 91, 91, 93, 95, 92, 94, 90, 94} {
		if got := s.Pick(at(3551244743356806947, attempt)) + 90; got != w {
			t.Errorf("attempt %d: host %d, want %d", attempt, got, w)
		}
	}
}

// maxRing is Envoy's largest ring.
const maxRing = 8 << 20

// TestRingSizes: sizes and points per host, of ring_hash_lb_test.cc (HostWeightedTinyRing, ...LargeRing, UnevenHosts).
func TestRingSizes(t *testing.T) {
	weights := func(i int, e *Entry) { e.Weight = uint32(i + 1) }
	for _, c := range []struct {
		n        int
		min, max uint64
		weights  bool
		want     []int
	}{
		{3, 6, 6, true, []int{1, 2, 3}},
		{3, 6144, maxRing, true, []int{1024, 2048, 3072}},
		{2, 1, maxRing, false, []int{1, 1}},
		{3, 3, maxRing, false, []int{1, 1, 1}},
		{4, 6, 6, false, []int{2, 1, 2, 1}}, // the running sums of ring_hash_lb.cc's own comment
		{3, 1024, maxRing, false, []int{342, 342, 342}},
	} {
		var change func(int, *Entry)
		if c.weights {
			change = weights
		}
		got := make([]int, c.n)
		for _, p := range hashed(c.n, Ring(c.min, c.max), change).levels[0].pick.(ring) {
			got[p.index]++
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%d hosts, %d to %d: points %v, want %v", c.n, c.min, c.max, got, c.want)
		}
	}
}

// TestMaglevVector: the tables of Envoy's maglev_lb_test.cc, Basic, BasicWithHostName and Weighted.
func TestMaglevVector(t *testing.T) {
	names := func(i int, e *Entry) { e.Key = fmt.Sprint(90 + i) }
	for _, c := range []struct {
		name   string
		n      int
		size   uint64
		change func(int, *Entry)
		want   []int
	}{
		{"by address", 6, 7, nil, []int{92, 94, 90, 91, 95, 90, 93}},
		{"by hostname", 6, 7, names, []int{92, 95, 90, 93, 94, 91, 90}},
		{"weighted", 2, 17, func(i int, e *Entry) { e.Weight = uint32(i + 1) }, []int{91, 90, 90, 91, 90, 91, 91, 90, 91, 91, 91, 91, 91, 90, 91, 90, 91}},
	} {
		s := hashed(c.n, Maglev(c.size), c.change)
		var got []int
		for h := range c.size {
			got = append(got, s.Pick(at(h, 0))+90)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	// BasicWithRetryHostPredicate: attempts flip the high bits of the hash.
	s := hashed(6, Maglev(7), nil)
	for attempt, want := range []int{91, 90, 95} {
		if got := s.Pick(at(10, attempt)) + 90; got != want {
			t.Errorf("attempt %d: %d, want %d", attempt, got, want)
		}
	}
}

// TestMaglevLocalities: LocalityWeightedSameLocalityWeights and ...DifferentLocalityWeights of maglev_lb_test.cc.
func TestMaglevLocalities(t *testing.T) {
	for _, c := range []struct {
		localities []int
		weights    []uint32
		want       []int
	}{
		{[]int{0, 1}, []uint32{1, 1}, []int{1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1}},
		{[]int{0, 2, 1}, []uint32{8, 0, 2}, []int{1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0}},
	} {
		var entries []Entry
		for i, l := range c.localities {
			entries = append(entries, Entry{Weight: uint32(i + 1), Healthy: true, Locality: l, Key: fmt.Sprintf("127.0.0.1:%d", 90+i)})
		}
		s := New(entries, Options{Hash: Maglev(17), LocalityWeights: c.weights})
		var got []int
		for h := range uint64(17) {
			got = append(got, s.Pick(at(h, 0)))
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("weights %v: %v, want %v", c.weights, got, c.want)
		}
	}
}

// TestMovement: when a host leaves, its keys move. Others move only as far as the table demands it: never while each host
// keeps its points; but Envoy's ring keeps its size, so hosts that stay get more points, which take keys from one another.
func TestMovement(t *testing.T) {
	for name, c := range map[string]struct {
		five, four HashBuilder
		strays     float64 // share of keys that may move between hosts which stayed
	}{
		"points kept":  {Ring(1000, 1000), Ring(800, 800), 0},
		"default ring": {Ring(1024, maxRing), Ring(1024, maxRing), .13}, // .098 here; at most the 204 new points of 1,024
		"maglev":       {Maglev(65537), Maglev(65537), .02},
	} {
		all := hashed(5, c.five, nil)
		less := hashed(5, c.four, func(i int, e *Entry) { e.Healthy = i != 2 })
		const n = 50_000
		moved, strays := 0, 0
		for i := range uint64(n) {
			h := i * 0x9e3779b97f4a7c15
			was, is := all.Pick(at(h, 0)), less.Pick(at(h, 0))
			switch {
			case is == 2:
				t.Fatalf("%s: hash %d goes to the host that left", name, h)
			case was == 2:
				moved++
			case was != is:
				strays++
			}
		}
		if float64(strays)/n > c.strays {
			t.Errorf("%s: %d of %d keys moved between hosts that stayed", name, strays, n)
		}
		if share := float64(moved) / n; share < .15 || share > .25 {
			t.Errorf("%s: the host had %.3f of the keys, want about .2", name, share)
		}
	}
}

// TestHashLocalities: localities weigh entries within the one table, and no locality is picked on its own.
func TestHashLocalities(t *testing.T) {
	var entries []Entry
	for i := range 6 {
		entries = append(entries, Entry{Weight: 1, Healthy: true, Locality: i % 2, Key: fmt.Sprint(i)})
	}
	got := make([]int, 2)
	for _, p := range New(entries, Options{Hash: Ring(6000, maxRing), LocalityWeights: []uint32{1, 3}}).levels[0].pick.(ring) {
		got[p.index%2]++
	}
	if got[0] != 1500 || got[1] != 4500 {
		t.Errorf("points per locality %v, want 1500 and 4500", got)
	}
	if i := New(entries, Options{Hash: Maglev(7), LocalityWeights: []uint32{0, 0}}).Pick(at(1, 0)); i != -1 {
		t.Errorf("with localities that weigh nothing %d was picked", i)
	}
}

// TestHashPriorities: the hash also picks the priority, so that a session stays where it is.
func TestHashPriorities(t *testing.T) {
	var entries []Entry
	for i := range 8 {
		entries = append(entries, Entry{Weight: 1, Priority: uint32(i / 4), Healthy: i > 1, Key: fmt.Sprint(i)})
	}
	s := New(entries, Options{Hash: Ring(1024, maxRing)})
	second := 0
	for h := range uint64(100) {
		first := s.Pick(at(h, 0))
		if again := s.Pick(at(h, 0)); again != first {
			t.Fatalf("hash %d: %d, then %d", h, first, again)
		}
		if first >= 4 {
			second++
		}
	}
	if second != 30 { // 50 % healthy: 70/30, and hashes 0 to 99 are one of each percent
		t.Errorf("%d of 100 went to the second priority, want 30", second)
	}
}

func TestHashPickDoesNotAllocate(t *testing.T) {
	for name, h := range map[string]HashBuilder{"ring": Ring(1024, maxRing), "maglev": Maglev(65537)} {
		s := hashed(5, h, nil)
		if n := testing.AllocsPerRun(100, func() { s.Pick(at(12345, 1)) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
