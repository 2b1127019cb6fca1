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
	s := &Set{hashed: o.Hash != nil}
	byPriority := split(entries)
	loads, panicking := shares(byPriority, o.Panic)
	sum := uint32(0)
	for p, in := range byPriority {
		use := in.healthy
		if panicking[p] {
			use = in.all
		}
		s.levels = append(s.levels, newLevel(entries, use, in.all, panicking[p], o))
		sum += uint32(loads[p])
		s.loads = append(s.loads, sum)
	}
	if len(s.levels) == 1 && s.levels[0].localities == nil {
		s.direct = s.levels[0].pick
	}
	return s
}

// priority is the entries of one priority, by index.
type priority struct{ all, healthy []int }

func split(entries []Entry) []priority {
	var out []priority
	for i := range entries {
		for int(entries[i].Priority) >= len(out) {
			out = append(out, priority{})
		}
		p := &out[entries[i].Priority]
		p.all = append(p.all, i)
		if entries[i].Healthy {
			p.healthy = append(p.healthy, i)
		}
	}
	return out
}

// shares gives each priority its percentage of requests, 100 in all, and says which are in panic. Source: Envoy's
// LoadBalancerBase::recalculatePerPriorityState and recalculateLoadInTotalPanic.
func shares(list []priority, threshold float64) (loads []int, panicking []bool) {
	loads, panicking = make([]int, len(list)), make([]bool, len(list))
	if len(list) == 0 {
		return loads, panicking
	}
	health := make([]int, len(list)) // percent
	total, count := 0, 0
	for p, in := range list {
		if n := len(in.all); n > 0 {
			health[p] = min(100, overprovisioning*len(in.healthy)/n)
		}
		total += health[p]
		count += len(in.all)
	}
	norm := min(100, total)
	left, first := 100, 0
	for p := range list {
		if norm == 0 {
			break
		}
		if left == 100 && health[p] > 0 {
			first = p
		}
		loads[p] = min(left, health[p]*100/norm)
		left -= loads[p]
	}
	// What rounding left over goes to the first priority that has anything; all of it to the first when nothing is healthy.
	loads[first] += left
	if norm == 100 {
		return loads, panicking
	}
	everywhere := threshold > 0
	for p, in := range list {
		percent := 0.0
		if len(in.all) > 0 {
			percent = 100 * float64(len(in.healthy)) / float64(len(in.all))
		}
		panicking[p] = percent < threshold
		everywhere = everywhere && panicking[p]
	}
	if !everywhere {
		return loads, panicking
	}
	// Health says nothing any more: the number of entries decides.
	left, first = 100, -1
	for p, in := range list {
		if first < 0 && len(in.all) > 0 {
			first = p
		}
		loads[p] = 100 * len(in.all) / count
		left -= loads[p]
	}
	loads[first] += left
	return loads, panicking
}

// newLevel makes the pickers of one priority: over use, of all of it. In panic localities do not matter.
func newLevel(entries []Entry, use, all []int, panicking bool, o Options) level {
	if o.Hash != nil {
		return level{pick: hashLevel(entries, use, all, o)}
	}
	if o.LocalityWeights == nil || panicking {
		return level{pick: build(entries, use, o)}
	}
	var l level
	sum := uint64(0)
	for loc, w := range o.LocalityWeights {
		in, n := within(entries, use, loc), len(within(entries, all, loc))
		if len(in) == 0 || w == 0 {
			continue
		}
		// In hundredths of a percent, capped where the locality is full.
		sum += uint64(w) * uint64(min(10_000, 100*overprovisioning*len(in)/n))
		l.localities = append(l.localities, build(entries, in, o))
		l.cumulative = append(l.cumulative, sum)
	}
	if len(l.localities) == 0 {
		return level{pick: build(entries, use, o)} // none weighs anything: they do not matter
	}
	return l
}

func within(entries []Entry, index []int, locality int) []int {
	var out []int
	for _, i := range index {
		if entries[i].Locality == locality {
			out = append(out, i)
		}
	}
	return out
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
