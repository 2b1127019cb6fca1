package router

import (
	"sync"
	"time"
)

// bounds are how long a try may wait for its upstream. The pump of the request's body moves them when the request is complete,
// also while its answer passes.
type bounds struct {
	mu       sync.Mutex
	deadline time.Time // of all tries, once the request is complete; whoever stops the pump reads it without the lock after that
	answer   bool      // passes: the timeout of a try is over, as in Envoy (source/common/router/upstream_request.cc, onPerTryTimeout)
	gone     bool      // the client
}

// begin bounds a try that begins now. No pump runs.
func (b *bounds) begin(x *exchange, now time.Time) {
	b.answer = false
	b.set(x, now, x.body.complete)
}

// complete notes that the request is, and bounds the wait for the rest.
func (b *bounds) complete(x *exchange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if x.timeout > 0 && b.deadline.IsZero() {
		b.deadline = now.Add(x.timeout)
	}
	b.set(x, now, !b.answer)
}

// answered notes that the answer passes.
func (b *bounds) answered(x *exchange) {
	if x.perTry == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = true
	if !b.gone {
		x.s.SetDeadline(earlier(b.deadline, x.ends))
	}
}

// left wakes whoever waits, for the client is gone.
func (b *bounds) left(x *exchange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	x.s.SetDeadline(time.Unix(1, 0))
}

// set bounds a wait that begins now, waiting for an answer to the whole request or not.
func (b *bounds) set(x *exchange, now time.Time, whole bool) {
	d := earlier(b.deadline, x.ends)
	if whole && x.perTry > 0 {
		d = earlier(d, now.Add(x.perTry))
	}
	if !d.IsZero() {
		x.s.SetDeadline(d)
	}
}

// earlier is the first of two moments, of which zero never comes.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// passed reports whether a moment is over; zero never is.
func passed(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }
