package telemetry

import (
	"context"
	"maps"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

const (
	// quiet is how long a series lives in which nothing happens: workloads come and go, and their names with them. Istio can
	// begin all series anew now and then for the same reason (rotation_interval), those in use among them.
	quiet = time.Hour
	// expireEvery is how often series are looked at, and by how much one may live longer.
	expireEvery = 5 * time.Minute
)

// age tells how long ago something happened in a series.
type age struct {
	moved atomic.Bool // since the last look
	since time.Time   // of the last look that found it moved; guarded by the lock
}

// touch notes that something happens. It only writes what changes, for many counters may share a line of the cache.
func (a *age) touch() {
	if !a.moved.Load() {
		a.moved.Store(true)
	}
}

// over looks at a series, and reports that it is to go.
func (a *age) over(now time.Time) bool {
	if a.moved.Swap(false) {
		a.since = now
	}
	return now.Sub(a.since) >= quiet
}

// Run lets series go in which nothing has happened for an hour, until ctx ends.
func (m *Metrics) Run(ctx context.Context) error {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			m.expire(now)
		case <-ctx.Done():
			return nil
		}
	}
}

// expire drops the series that are over, and the names of peers that no other has.
func (m *Metrics) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.http.all, func(_ string, s *httpSeries) bool { return s.over(now) })
	maps.DeleteFunc(m.grpc, func(_ string, s *messageSeries) bool { return s.over(now) })
	maps.DeleteFunc(m.tcp.all, func(_ string, s *tcpSeries) bool {
		return s.opened.Load() == s.closed.Load() && s.over(now) // an open connection ends in its series
	})
	clear(m.http.known)
	clear(m.tcp.known)
	m.peers = map[conf.Workload]struct{}{}
	for _, s := range m.http.all {
		if s.peer != nil {
			m.peers[*s.peer] = struct{}{}
		}
	}
	for _, s := range m.grpc {
		if s.peer != nil {
			m.peers[*s.peer] = struct{}{}
		}
	}
}
