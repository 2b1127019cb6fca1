package hcm

import (
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// reportEvery is how often a gRPC call that goes on reports its messages: Istio's tcp_reporting_duration, which holds for gRPC too
// (contrib/istio/filters/http/istio_stats/source/istio_stats.cc).
const reportEvery = 5 * time.Second

// calls are the gRPC calls under way, in the order in which they report. A look finds those that are due without the others.
type calls struct {
	mu          sync.Mutex
	first, last *call
}

// call is the place of one in calls. It is a part of what is there for each exchange anyway.
type call struct {
	s            *filter.Stream
	due          time.Time
	before, next *call
}

func (q *calls) add(c *call, s *filter.Stream) {
	q.mu.Lock()
	c.s = s
	q.push(c)
	q.mu.Unlock()
}

// remove must come before the stream's record is read or used again.
func (q *calls) remove(c *call) {
	q.mu.Lock()
	q.unlink(c)
	c.s = nil
	q.mu.Unlock()
}

// push makes c the last, a whole interval from now. The caller holds the lock.
func (q *calls) push(c *call) {
	c.due = time.Now().Add(reportEvery)
	if c.before = q.last; c.before == nil {
		q.first = c
	} else {
		c.before.next = c
	}
	q.last = c
}

// unlink takes c out. The caller holds the lock.
func (q *calls) unlink(c *call) {
	if c.before == nil {
		q.first = c.next
	} else {
		c.before.next = c.next
	}
	if c.next == nil {
		q.last = c.before
	} else {
		c.next.before = c.before
	}
	c.before, c.next = nil, nil
}

// reportCalls reports what those that are due have not reported.
func (m *Manager) reportCalls(now time.Time) {
	for m.reportCall(now) {
	}
}

// reportCall is for one call: others may begin and end between two. It reports whether one was due.
func (m *Manager) reportCall(now time.Time) bool {
	q := &m.calls
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.first
	if c == nil || now.Before(c.due) {
		return false
	}
	if in, out := c.s.Untold(); in+out > 0 {
		m.Recorder.Messages(&c.s.Rec, in, out)
	}
	q.unlink(c)
	q.push(c)
	return true
}
