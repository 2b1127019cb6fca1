package balance

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// RoundRobin goes round in turn; with differing weights by earliest deadline first.
func RoundRobin(entries []Entry, index []int) Picker {
	if sameWeights(entries) {
		p := &roundRobin{index: index}
		p.next.Store(rand.Uint64N(uint64(len(index)))) // many proxies must not all begin with the same endpoint
		return p
	}
	return newEDF(entries, index, func(e *Entry) float64 { return float64(e.Weight) })
}

type roundRobin struct {
	index []int
	next  atomic.Uint64
}

func (p *roundRobin) Pick(Query) int {
	return p.index[(p.next.Add(1)-1)%uint64(len(p.index))]
}

// LeastRequest returns a Builder: with equal weights the least busy of choices random endpoints, else earliest deadline
// first with weight/(active+1).
func LeastRequest(choices int) Builder {
	return func(entries []Entry, index []int) Picker {
		if sameWeights(entries) {
			return &leastRequest{entries: entries, index: index, choices: max(choices, 2)}
		}
		return newEDF(entries, index, func(e *Entry) float64 { return float64(e.Weight) / float64(load(e)+1) })
	}
}

type leastRequest struct {
	entries []Entry
	index   []int
	choices int
}

func load(e *Entry) int64 {
	if e.Active == nil {
		return 0
	}
	return e.Active.Load()
}

func (p *leastRequest) Pick(Query) int {
	n := len(p.index)
	best := rand.IntN(n)
	if n == 1 {
		return p.index[0]
	}
	least := load(&p.entries[best])
	for range p.choices - 1 {
		i := rand.IntN(n)
		if l := load(&p.entries[i]); l < least {
			best, least = i, l
		}
	}
	return p.index[best]
}

// Random picks by chance in proportion to weight.
func Random(entries []Entry, index []int) Picker {
	p := &random{index: index}
	if !sameWeights(entries) {
		sum := uint64(0)
		for i := range entries {
			sum += uint64(entries[i].Weight)
			p.cumulative = append(p.cumulative, sum)
		}
	}
	return p
}

type random struct {
	index      []int
	cumulative []uint64
}

func (p *random) Pick(Query) int {
	if p.cumulative == nil {
		return p.index[rand.IntN(len(p.index))]
	}
	r := rand.Uint64N(p.cumulative[len(p.cumulative)-1])
	lo, hi := 0, len(p.cumulative)-1
	for lo < hi {
		if mid := (lo + hi) / 2; r < p.cumulative[mid] {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return p.index[lo]
}

// edf schedules by earliest deadline first: an entry is due again 1/weight after it was picked; first in, first out on ties.
type edf struct {
	mu      sync.Mutex
	entries []Entry
	index   []int
	weight  func(*Entry) float64
	heap    []due
	now     float64
	order   uint64
}

type due struct {
	at    float64
	order uint64
	i     int
}

func newEDF(entries []Entry, index []int, weight func(*Entry) float64) *edf {
	p := &edf{entries: entries, index: index, weight: weight}
	for i := range entries {
		p.push(i)
	}
	// Begin at a random point of the schedule, so that many proxies do not move in step.
	for range rand.IntN(len(entries)) {
		p.Pick(Query{})
	}
	return p
}

func (p *edf) Pick(Query) int {
	p.mu.Lock()
	d := p.heap[0]
	last := len(p.heap) - 1
	p.heap[0] = p.heap[last]
	p.heap = p.heap[:last]
	p.down(0)
	p.now = d.at
	p.push(d.i)
	p.mu.Unlock()
	return p.index[d.i]
}

func (p *edf) push(i int) {
	p.order++
	p.heap = append(p.heap, due{p.now + 1/p.weight(&p.entries[i]), p.order, i})
	for k := len(p.heap) - 1; k > 0; {
		parent := (k - 1) / 2
		if !p.less(k, parent) {
			break
		}
		p.heap[k], p.heap[parent] = p.heap[parent], p.heap[k]
		k = parent
	}
}

func (p *edf) down(k int) {
	for {
		least := k
		for c := 2*k + 1; c <= 2*k+2 && c < len(p.heap); c++ {
			if p.less(c, least) {
				least = c
			}
		}
		if least == k {
			return
		}
		p.heap[k], p.heap[least] = p.heap[least], p.heap[k]
		k = least
	}
}

func (p *edf) less(a, b int) bool {
	x, y := &p.heap[a], &p.heap[b]
	return x.at < y.at || x.at == y.at && x.order < y.order
}
