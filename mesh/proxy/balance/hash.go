package balance

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// HashBuilder makes a Picker that sends equal hashes to the same entry. weights are the entries' shares of 1; together they
// may be less, where a locality of the priority has no entry to use. index is as for Builder.
//
// It differs from Builder in that one table is built for a whole priority, over all its localities, as Envoy does.
type HashBuilder func(keys []string, weights []float64, index []int) Picker

// Ring returns a HashBuilder of ketama rings, equal to Envoy's entry by entry: minSize to maxSize points, placed by the
// xxHash64 of "key_i". Source: ring_hash_lb.cc.
func Ring(minSize, maxSize uint64) HashBuilder {
	return func(keys []string, weights []float64, index []int) Picker {
		least := slices.Min(weights)
		scale := min(math.Ceil(least*float64(minSize))/least, float64(maxSize))
		r := make(ring, 0, int(math.Ceil(scale)))
		// Points per entry are no whole numbers; the running sums spread the rest.
		var current, target float64
		var buf []byte
		for i, k := range keys {
			target += scale * weights[i]
			buf = append(append(buf[:0], k...), '_')
			stem := len(buf)
			for n := 0; current < target; n++ {
				buf = strconv.AppendInt(buf[:stem], int64(n), 10)
				r = append(r, point{xxhash.Sum64(buf), index[i]})
				current++
			}
		}
		slices.SortStableFunc(r, func(a, b point) int { return cmp.Compare(a.hash, b.hash) })
		return r
	}
}

type point struct {
	hash  uint64
	index int
}

type ring []point

// Pick takes the first point at or after the hash. Attempt moves on from it, point by point.
func (r ring) Pick(q Query) int {
	h := hashOf(q)
	i, _ := slices.BinarySearchFunc(r, h, func(p point, h uint64) int { return cmp.Compare(p.hash, h) })
	if i == len(r) {
		i = 0
	}
	return r[(i+q.Attempt)%len(r)].index
}

// Maglev returns a HashBuilder of Maglev tables, equal to Envoy's. size is a prime. Source: maglev_lb.cc; Eisenbud et al.,
// Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, listing 1.
func Maglev(size uint64) HashBuilder {
	type entry struct {
		key                string
		at                 int
		weight, target     float64
		offset, skip, next uint64
	}
	return func(keys []string, weights []float64, index []int) Picker {
		entries := make([]entry, len(keys))
		for i, k := range keys {
			seeded := xxhash.NewWithSeed(1)
			_, _ = seeded.WriteString(k) // never fails
			entries[i] = entry{key: k, at: index[i], weight: weights[i], offset: xxhash.Sum64String(k) % size, skip: seeded.Sum64()%(size-1) + 1}
		}
		slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Compare(a.key, b.key) })
		most := slices.Max(weights)
		table := make(maglev, size)
		for i := range table {
			table[i] = -1
		}
		filled := uint64(0)
		for turn := 1; filled < size; turn++ {
			for i := 0; i < len(entries) && filled < size; i++ {
				e := &entries[i]
				if float64(turn)*e.weight < e.target {
					continue // an entry of a third of the greatest weight has every third turn
				}
				e.target += most
				c := (e.offset + e.skip*e.next) % size
				for table[c] >= 0 {
					e.next++
					c = (e.offset + e.skip*e.next) % size
				}
				table[c] = int32(e.at)
				e.next++
				filled++
			}
		}
		return table
	}
}

type maglev []int32

// Pick looks the hash up. Attempt changes its high bits, so that other entries come up.
func (t maglev) Pick(q Query) int {
	h := hashOf(q)
	if q.Attempt > 0 {
		h ^= ^uint64(0) - uint64(q.Attempt) + 1
	}
	return int(t[h%uint64(len(t))])
}

// hashOf is the request's hash; a request without one goes anywhere, as in Envoy.
func hashOf(q Query) uint64 {
	if q.HasHash {
		return q.Hash
	}
	return rand.Uint64()
}

// hashLevel builds the table of one priority over the entries in use; all are those of the priority.
func hashLevel(entries []Entry, use, all []int, o Options) Picker {
	keys := make([]string, 0, len(use))
	weights := make([]float64, 0, len(use))
	index := make([]int, 0, len(use))
	share := map[int]float64{} // of each locality, by Options.LocalityWeights
	sums := map[int]float64{}  // of weights in it
	if o.LocalityWeights == nil {
		for _, i := range use {
			sums[0] += float64(max(entries[i].Weight, 1))
		}
		share[0] = 1
	} else {
		total := 0.0
		for _, i := range all {
			if loc := entries[i].Locality; share[loc] == 0 {
				share[loc] = float64(o.LocalityWeights[loc])
				total += share[loc]
			}
		}
		for loc := range share {
			share[loc] /= total
		}
		for _, i := range use {
			sums[entries[i].Locality] += float64(max(entries[i].Weight, 1))
		}
	}
	for _, i := range use {
		loc := 0
		if o.LocalityWeights != nil {
			loc = entries[i].Locality
		}
		if !(share[loc] > 0) { // also when every locality weighs 0
			continue
		}
		keys = append(keys, entries[i].Key)
		weights = append(weights, float64(max(entries[i].Weight, 1))*share[loc]/sums[loc])
		index = append(index, i)
	}
	if len(index) == 0 {
		return none{}
	}
	return o.Hash(keys, weights, index)
}
