// Package breaker bounds what a cluster may use at a time: connections, waiting requests, requests, retries. Each bound is
// kept for the whole cluster, over all its endpoints, and checked without waiting.
//
// Source: Envoy's circuit_breaker.proto and resource_manager_impl.h.
package breaker

import (
	"errors"
	"sync/atomic"
)

// ErrOverflow says that a bound was reached.
var ErrOverflow = errors.New("overflow")

// Resource is one bounded thing. A nil Resource has no bound. It is safe for concurrent use.
type Resource struct {
	limit    atomic.Uint32
	used     atomic.Int64
	overflow atomic.Int64
}

// Set changes the bound. What is in use stays in use.
func (r *Resource) Set(limit uint32) { r.limit.Store(limit) }

// Take takes one, or counts an overflow and reports false.
func (r *Resource) Take() bool {
	if r == nil {
		return true
	}
	for {
		n := r.used.Load()
		if n >= int64(r.limit.Load()) {
			r.overflow.Add(1)
			return false
		}
		if r.used.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Force takes one beyond any bound.
func (r *Resource) Force() {
	if r != nil {
		r.used.Add(1)
	}
}

// Give returns one that was taken.
func (r *Resource) Give() {
	if r != nil {
		r.used.Add(-1)
	}
}

// Limit is the bound.
func (r *Resource) Limit() uint32 { return r.limit.Load() }

// Used is how many are taken; it may be beyond a bound that was lowered.
func (r *Resource) Used() int64 { return r.used.Load() }

// Overflows counts refusals.
func (r *Resource) Overflows() int64 { return r.overflow.Load() }

// Open reports whether nothing more can be taken.
func (r *Resource) Open() bool { return r.used.Load() >= int64(r.limit.Load()) }

// Remaining is how many more can be taken.
func (r *Resource) Remaining() int64 { return max(0, int64(r.limit.Load())-r.used.Load()) }

// Breakers are those of one cluster, for requests of default priority.
type Breakers struct {
	Connections, Pending, Requests, Retries Resource
}

// Used reports whether anything is taken.
func (b *Breakers) Used() bool {
	return b.Connections.Used() > 0 || b.Pending.Used() > 0 || b.Requests.Used() > 0 || b.Retries.Used() > 0
}
