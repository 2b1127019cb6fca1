package breaker

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestResource(t *testing.T) {
	var r Resource
	if r.Take() || r.Overflows() != 1 || !r.Open() {
		t.Error("a bound of 0 let one through")
	}
	r.Set(2)
	first, second, third := r.Take(), r.Take(), r.Take()
	if !first || !second || third || r.Used() != 2 || r.Overflows() != 2 {
		t.Errorf("used %d, overflows %d", r.Used(), r.Overflows())
	}
	r.Force()
	r.Set(3) // raised to exactly what is in use
	if r.Take() {
		t.Error("taken beyond the bound")
	}
	r.Give()
	if !r.Take() || r.Limit() != 3 {
		t.Error("what was given cannot be taken")
	}
	var none *Resource
	none.Force()
	none.Give()
	if !none.Take() {
		t.Error("nil has a bound")
	}
}

// TestExact: under contention never more than the bound, and never fewer than could be.
func TestExact(t *testing.T) {
	var r Resource
	r.Set(3)
	var in, refused atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 10_000 {
				if !r.Take() {
					refused.Add(1)
					continue
				}
				if in.Add(1) > 3 {
					t.Error("more than three at a time")
				}
				in.Add(-1)
				r.Give()
			}
		})
	}
	wg.Wait()
	if refused.Load() != 0 || r.Used() != 0 {
		t.Errorf("three takers of three: %d refused, %d left", refused.Load(), r.Used())
	}
}
