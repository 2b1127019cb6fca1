// Package record collects what a scenario observes while it runs: requests, events and what the host was short of. It judges
// nothing.
package record

import (
	"slices"
	"sync"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
)

// Stream describes the load of one profile.
type Stream struct {
	Name   string
	Target string  // URL, with the Host it was sent for
	Rate   float64 // intended, per second
	Source string  // where the requests start: runner, or the workload of an agent
	Via    string  // the gateway that they enter by, "" if none
	Short  bool    // it ends long before the load does: nobody waits for more of it
}

// Sink keeps everything as it is recorded. An *evidence.Store is one. It remembers its own errors.
type Sink interface {
	Request(evidence.Request) error
	Event(evidence.Event) error
}

// Recorder is safe for concurrent use.
type Recorder struct {
	sink Sink // or nil

	mu       sync.Mutex
	streams  []Stream
	requests []evidence.Request
	events   []evidence.Event
	step     string
	begun    time.Time // of the load
	planned  time.Duration
	lost     int
	recent   []sample // answers of the last second, oldest first
	answered map[string]*answered
	// The memory of the lab, around the load.
	memoryBefore, memoryAfter uint64
}

// answered follows one stream: every request before next has its answer.
type answered struct {
	next  uint64
	until time.Time            // when the one before next was due
	ahead map[uint64]time.Time // answered ones past next, and when they were due
}

type sample struct {
	done    time.Time
	latency time.Duration
}

// New returns an empty recorder. sink may be nil.
func New(sink Sink) *Recorder { return &Recorder{sink: sink, answered: map[string]*answered{}} }

// Stream declares a stream before its first result.
func (r *Recorder) Stream(s Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams = append(r.streams, s)
	r.answered[s.Name] = &answered{ahead: map[uint64]time.Time{}}
}

// Result records one request. It has the signature that generators emit to.
func (r *Recorder) Result(res loadgen.Result) {
	req := evidence.Request{
		Stream: res.Stream, Seq: res.Seq,
		Intended: res.Intended.UnixNano(), Sent: res.Sent.UnixNano(), Done: res.Done.UnixNano(),
		Code: res.Code, Class: string(res.Class), Err: res.Err, App: res.App, Version: res.Version, Pod: res.Pod, Cluster: res.Cluster,
		Session: res.Session, Cookie: res.Cookie, SetCookie: res.SetCookie,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
	if res.Class != loadgen.OK && res.Class != loadgen.Canceled {
		r.lost++
	}
	if a := r.answered[res.Stream]; a != nil {
		a.ahead[res.Seq] = res.Intended
		for due, ok := a.ahead[a.next]; ok; due, ok = a.ahead[a.next] {
			delete(a.ahead, a.next)
			a.next, a.until = a.next+1, due
		}
	}
	r.recent = append(r.recent, sample{done: res.Done, latency: res.Latency()})
	old := 0
	for old < len(r.recent) && r.recent[old].done.Before(res.Done.Add(-time.Second)) {
		old++
	}
	r.recent = r.recent[old:]
	if r.sink != nil {
		_ = r.sink.Request(req) // the sink's owner asks it for its errors in the end
	}
}

// Event records that something happened to the lab at the time t.
func (r *Recorder) Event(t time.Time, kind, name string, detail map[string]string) {
	e := evidence.Event{Time: t, Kind: kind, Name: name, Detail: detail}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if r.sink != nil {
		_ = r.sink.Event(e)
	}
}

// MemoryBefore notes what all processes of the lab take in bytes right before load begins; the first reading counts.
func (r *Recorder) MemoryBefore(bytes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.memoryBefore == 0 {
		r.memoryBefore = bytes
	}
}

// MemoryAfter notes the same right after load has ended; the highest reading counts.
func (r *Recorder) MemoryAfter(bytes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.memoryAfter = max(r.memoryAfter, bytes)
}

// Memory returns what MemoryBefore and MemoryAfter noted, 0 for nothing.
func (r *Recorder) Memory() (before, after uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.memoryBefore, r.memoryAfter
}

// Step says what the scenario does now, for people who watch: "step 3 of 6: 10/90".
func (r *Recorder) Step(text string) {
	r.mu.Lock()
	r.step = text
	r.mu.Unlock()
	r.Event(time.Now(), "step", text, nil)
}

// Planned says that load begins now and is meant to last this long.
func (r *Recorder) Planned(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun, r.planned = time.Now(), d
}

// AnsweredUntil is the moment up to which every request that was due, of every declared stream that is not Short, has its answer or
// its failure.
// It is zero before each stream had a first one.
func (r *Recorder) AnsweredUntil() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var least time.Time
	first := true
	for _, s := range r.streams {
		if s.Short {
			continue
		}
		if t := r.answered[s.Name].until; first || t.Before(least) {
			least, first = t, false
		}
	}
	return least
}

// Requests returns a copy of the requests so far, in the order in which they were answered.
func (r *Recorder) Requests() []evidence.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Events returns a copy of the events so far, by time.
func (r *Recorder) Events() []evidence.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := slices.Clone(r.events)
	slices.SortStableFunc(events, func(a, b evidence.Event) int { return a.Time.Compare(b.Time) })
	return events
}

// Streams returns the declared streams, those that last as long as the load first.
func (r *Recorder) Streams() []Stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	streams := slices.Clone(r.streams)
	slices.SortStableFunc(streams, func(a, b Stream) int {
		switch {
		case a.Short == b.Short:
			return 0
		case a.Short:
			return 1
		}
		return -1
	})
	return streams
}

// Live is what somebody who watches wants to know.
type Live struct {
	Step     string
	Done     float64       // of the planned time of load, 0 to 1; 0 before it begins
	Requests int           // answered so far
	Rate     float64       // answers in the second before now
	P50, P99 time.Duration // of that second, from the intended start
	Lost     int
}

// Live returns the state at the time now.
func (r *Recorder) Live(now time.Time) Live {
	r.mu.Lock()
	l := Live{Step: r.step, Requests: len(r.requests), Lost: r.lost}
	if r.planned > 0 {
		l.Done = min(1, float64(now.Sub(r.begun))/float64(r.planned))
	}
	var latencies []time.Duration
	for _, s := range r.recent {
		if s.done.After(now.Add(-time.Second)) {
			latencies = append(latencies, s.latency)
		}
	}
	r.mu.Unlock()
	if n := len(latencies); n > 0 {
		slices.Sort(latencies)
		l.Rate = float64(n)
		l.P50, l.P99 = latencies[n/2], latencies[n*99/100]
	}
	return l
}
