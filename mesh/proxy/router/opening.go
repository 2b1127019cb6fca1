package router

import (
	"context"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// opening is the context of a wait for a connection. It ends with the exchange's time, and when the exchange is interrupted. It
// costs nothing until somebody waits: then, at first in the exchange's own goroutine, the context behind it is made.
type opening struct {
	parent context.Context
	s      *filter.Stream
	until  time.Time // zero is never
	ctx    context.Context
	cancel context.CancelFunc
}

func (o *opening) made() context.Context {
	if o.ctx == nil {
		if o.until.IsZero() {
			o.ctx, o.cancel = context.WithCancel(o.parent)
		} else {
			o.ctx, o.cancel = context.WithDeadline(o.parent, o.until)
		}
		o.s.Guard(o)
	}
	return o.ctx
}

// Deadline implements context.Context.
func (o *opening) Deadline() (time.Time, bool) { return o.made().Deadline() }

// Done implements context.Context.
func (o *opening) Done() <-chan struct{} { return o.made().Done() }

// Err implements context.Context.
func (o *opening) Err() error { return o.made().Err() }

// Value implements context.Context.
func (o *opening) Value(key any) any { return o.made().Value(key) }

// SetReadDeadline implements filter.Deadliner: an interruption is a deadline that has passed.
func (o *opening) SetReadDeadline(t time.Time) error {
	if passed(t) {
		o.cancel()
	}
	return nil
}

// end must come before the connection is used.
func (o *opening) end() {
	if o.ctx != nil {
		o.s.Unguard()
		o.cancel()
	}
	*o = opening{}
}
