package filter

import (
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// Deadliner is what an exchange waits on: a past deadline ends the wait.
type Deadliner interface{ SetReadDeadline(time.Time) error }

// interrupt lets others end what an exchange waits for.
type interrupt struct {
	mu    sync.Mutex
	epoch uint64 // of the exchange; 0 between two
	on    Deadliner
	why   telemetry.Flags
	idle  *time.Timer
	limit time.Duration
	last  time.Time     // when bytes last moved, while limit is set
	abort chan struct{} // closed when the Abort of an idle exchange's answer is over
	known bool          // Settled was called
}

var past = time.Unix(1, 0)

// Guard has an interruption end waits on d, until Unguard.
func (s *Stream) Guard(d Deadliner) {
	i := &s.interrupt
	i.mu.Lock()
	i.on = d
	if i.why != 0 {
		_ = d.SetReadDeadline(past)
	}
	i.mu.Unlock()
}

// Unguard must come before what was guarded is given away.
func (s *Stream) Unguard() {
	s.interrupt.mu.Lock()
	s.interrupt.on = nil
	s.interrupt.mu.Unlock()
}

// SetDeadline moves the deadline of what is guarded, unless it was interrupted.
func (s *Stream) SetDeadline(t time.Time) {
	i := &s.interrupt
	i.mu.Lock()
	if i.why == 0 && i.on != nil {
		_ = i.on.SetReadDeadline(t) // a dead connection shows at the read
	}
	i.mu.Unlock()
}

// Interrupt ends the exchange of that epoch, for the reason that the flag gives, if it is not over.
func (s *Stream) Interrupt(epoch uint64, why telemetry.Flags) {
	i := &s.interrupt
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.epoch != epoch || epoch == 0 || i.why != 0 {
		return
	}
	i.why = why
	if i.on != nil {
		_ = i.on.SetReadDeadline(past)
	}
}

// Interrupted returns why the exchange was interrupted; 0 means that it was not.
func (s *Stream) Interrupted() telemetry.Flags {
	s.interrupt.mu.Lock()
	defer s.interrupt.mu.Unlock()
	return s.interrupt.why
}

// Open begins an exchange and returns its epoch, which is never 0.
func (s *Stream) Open() uint64 {
	i := &s.interrupt
	i.mu.Lock()
	defer i.mu.Unlock()
	s.epochs++
	i.epoch, i.why, i.on, i.limit, i.known = s.epochs, 0, nil, 0, false
	return i.epoch
}

// Close ends an exchange: it can no longer be interrupted, and nothing of an interruption is under way any more. The caller must hold
// nothing that Out.Abort takes.
func (s *Stream) Close() {
	i := &s.interrupt
	i.mu.Lock()
	i.epoch, i.on = 0, nil
	abort := i.abort
	i.abort = nil
	if i.idle != nil {
		i.idle.Stop()
		i.idle = nil
	}
	i.limit = 0
	i.mu.Unlock()
	if abort != nil {
		<-abort
	}
}

// SetIdle interrupts the exchange when no byte of a body moves for so long; 0 is never.
func (s *Stream) SetIdle(d time.Duration) {
	i := &s.interrupt
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.idle != nil {
		i.idle.Stop()
		i.idle = nil
	}
	i.limit = d
	if d == 0 || i.epoch == 0 {
		return
	}
	i.last = time.Now()
	epoch := i.epoch
	i.idle = time.AfterFunc(d, func() { s.idleTick(epoch) })
}

// Moved notes that bytes moved.
func (s *Stream) Moved() {
	i := &s.interrupt
	i.mu.Lock()
	i.moved()
	i.mu.Unlock()
}

// moved is Moved with the lock held.
func (i *interrupt) moved() {
	if i.limit > 0 {
		i.last = time.Now()
	}
}

func (s *Stream) idleTick(epoch uint64) {
	i := &s.interrupt
	i.mu.Lock()
	if i.epoch != epoch || i.limit == 0 {
		i.mu.Unlock()
		return
	}
	if left := time.Until(i.last.Add(i.limit)); left > 0 {
		i.idle.Reset(left)
		i.mu.Unlock()
		return
	}
	out := s.Out
	var abort chan struct{}
	if s.headWritten.Load() {
		abort = make(chan struct{})
		i.abort = abort
	}
	i.mu.Unlock()
	s.Interrupt(epoch, telemetry.StreamIdleTimeout)
	if abort != nil {
		out.Abort() // it may wait for a client that does not read
		close(abort)
	}
}
