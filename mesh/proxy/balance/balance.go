// Package balance picks endpoints: pure pickers under a choice of priority and locality. It knows nothing of connections.
//
// Sources: Envoy's load balancing documentation; docs/proxy.md lists what is built.
package balance

import (
	"math/rand/v2"
	"sync/atomic"
)

// Entry is one endpoint as a picker sees it.
type Entry struct {
	Weight   uint32 // at least 1
	Priority uint32
	Locality int // index into Options.LocalityWeights
	Healthy  bool
	Active   *atomic.Int64 // requests in flight; nil counts as 0
	Key      string        // of the endpoint in tables of hashes
}

// Query is what a pick may depend on.
type Query struct {
	Hash    uint64 // for Ring and Maglev
	HasHash bool
	// Attempt counts picks for one try: 0 for the first, more where the endpoint that came up was not wanted. It is Envoy's
	// host selection attempt, not the number of the retry.
	Attempt int
}

// Picker picks one endpoint and returns its index in the entries it was built from, or -1 when there is none.
// Pickers are safe for concurrent use.
type Picker interface {
	Pick(Query) int
}

// Builder makes a Picker over entries that all count; index maps its positions to the caller's.
type Builder func(entries []Entry, index []int) Picker

// Options of a Set.
type Options struct {
	Build Builder
	// Hash, when not nil, is used instead of Build.
	Hash HashBuilder
	// Panic is the percentage of healthy endpoints below which health is ignored; 0 is never.
	Panic float64
	// LocalityWeights, when not nil, spreads over localities by weight and availability.
	LocalityWeights []uint32
}

// overprovisioning is Envoy's factor of 1.4: a priority is full while 72 % of it is healthy.
const overprovisioning = 140

// Set picks a priority, then a locality, then an endpoint. It is immutable; build a new one when endpoints change.
type Set struct {
	levels []level
	loads  []uint32 // cumulative percentage of levels
	direct Picker   // the only choice there is
	hashed bool     // the hash of a request also picks the priority
}

type level struct {
	pick       Picker // without localities
	localities []Picker
	cumulative []uint64
}

// New builds a Set.
func New(entries []Entry, o Options) *Set {
	top := -1
	for i := range entries {
		top = max(top, int(entries[i].Priority))
	}
	s := &Set{hashed: o.Hash != nil}
	health := make([]int, top+1) // percent, capped at 100
	byPriority := make([][]int, top+1)
	healthy := make([]int, top+1)
	total := 0
	for i := range entries {
		p := entries[i].Priority
		byPriority[p] = append(byPriority[p], i)
		if entries[i].Healthy {
			healthy[p]++
		}
	}
	for p := range byPriority {
		if n := len(byPriority[p]); n > 0 {
			health[p] = min(100, overprovisioning*healthy[p]/n)
		}
		total += health[p]
	}
	norm := min(100, total)
	sum := uint32(0)
	left := 100
	for p, all := range byPriority {
		load := 0
		switch {
		case norm > 0:
			load = min(left, health[p]*100/norm)
		case p == 0:
			load = 100 // nothing is healthy: all stays with the first priority
		}
		left -= load
		sum += uint32(load)
		panicking := norm < 100 && o.Panic > 0 && len(all) > 0 && float64(healthy[p]*100)/float64(len(all)) < o.Panic
		use := all
		if !panicking {
			use = nil
			for _, i := range all {
				if entries[i].Healthy {
					use = append(use, i)
				}
			}
		}
		s.levels = append(s.levels, newLevel(entries, use, all, o))
		s.loads = append(s.loads, sum)
	}
	// Rounding may leave a percent or two: they belong to the last level that has any load.
	for p := len(s.loads) - 1; p >= 0 && sum > 0 && s.loads[p] == sum; p-- {
		s.loads[p] = 100
	}
	if len(s.levels) == 1 && s.levels[0].localities == nil {
		s.direct = s.levels[0].pick
	}
	return s
}

func newLevel(entries []Entry, use, all []int, o Options) level {
	if o.Hash != nil {
		return level{pick: hashLevel(entries, use, all, o)}
	}
	if o.LocalityWeights == nil {
		return level{pick: build(entries, use, o)}
	}
	var l level
	sum := uint64(0)
	for loc, w := range o.LocalityWeights {
		var in []int
		n := 0
		for _, i := range use {
			if entries[i].Locality == loc {
				in = append(in, i)
			}
		}
		for _, i := range all {
			if entries[i].Locality == loc {
				n++
			}
		}
		if len(in) == 0 || w == 0 {
			continue
		}
		sum += uint64(w) * uint64(min(100, overprovisioning*len(in)/n))
		l.localities = append(l.localities, build(entries, in, o))
		l.cumulative = append(l.cumulative, sum)
	}
	return l
}

func build(entries []Entry, index []int, o Options) Picker {
	if len(index) == 0 {
		return none{}
	}
	picked := make([]Entry, len(index))
	for k, i := range index {
		picked[k] = entries[i]
		picked[k].Weight = max(picked[k].Weight, 1)
	}
	return o.Build(picked, index)
}

// Pick implements Picker.
func (s *Set) Pick(q Query) int {
	if s.direct != nil {
		return s.direct.Pick(q)
	}
	if len(s.levels) == 0 {
		return -1
	}
	p := 0
	if s.hashed && !q.HasHash {
		q.Hash, q.HasHash = rand.Uint64(), true // one value for the priority and the endpoint
	}
	if len(s.levels) > 1 {
		r := uint32(s.draw(q, 100))
		for p < len(s.loads)-1 && r >= s.loads[p] {
			p++
		}
	}
	l := &s.levels[p]
	if l.pick != nil {
		return l.pick.Pick(q)
	}
	if len(l.localities) == 0 {
		return -1
	}
	r := s.draw(q, l.cumulative[len(l.cumulative)-1])
	for i, c := range l.cumulative {
		if r < c {
			return l.localities[i].Pick(q)
		}
	}
	return -1
}

func (s *Set) draw(q Query, n uint64) uint64 {
	if s.hashed {
		return q.Hash % n
	}
	return rand.Uint64N(n)
}

type none struct{}

func (none) Pick(Query) int { return -1 }

func sameWeights(entries []Entry) bool {
	for i := range entries {
		if entries[i].Weight != entries[0].Weight {
			return false
		}
	}
	return true
}
