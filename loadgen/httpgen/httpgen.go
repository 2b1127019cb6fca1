// Package httpgen sends HTTP/1.1 load, open loop. Vegeta runs the workers; the schedule, the times and the classes of
// failures are this module's own:
//
// Vegeta stamps a request when a worker picks it up, so time spent waiting for a worker would vanish from its latencies. Here
// the intended time of request n follows from the Pacer alone, whatever vegeta did with it, and both times are kept.
//
// Nothing is retried. net/http sends a replayable request again by itself when a reused connection breaks; requests are built
// so that they are not replayable, and where net/http still may (it had written nothing of a bodiless POST), the second
// attempt makes the Result a failure. What goes to another connection is a request of which nothing was written, because its
// kept connection had ended before.
package httpgen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/meshproof/meshproof/loadgen"
)

// Options are what a Profile cannot carry as data. The zero value is a plain client.
type Options struct {
	// DialContext makes connections, as of a lab's network; net.Dialer's if nil.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	TLS         *tls.Config
	// Verify judges an accepted answer further; its error makes the Result a mismatch. It is called from many goroutines.
	// The body is cut at 1 MiB.
	Verify func(resp *http.Response, body []byte) error
}

// Generator sends the load of one Profile. Each Run has connections of its own, so the first requests of a run dial.
type Generator struct {
	profile loadgen.Profile
	options Options
}

var _ loadgen.Generator = (*Generator)(nil)

// New validates the profile.
func New(p loadgen.Profile, o Options) (*Generator, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &Generator{profile: p.WithDefaults(), options: o}, nil
}

// initialWorkers is what vegeta starts with; it adds more as they are needed, up to the profile's bound.
const initialWorkers = 16

// Run implements loadgen.Generator. When ctx ends, requests in flight are abandoned as Canceled, and requests that were not
// sent yet make no Result. emit is called from this goroutine; while it blocks, workers stay busy.
func (g *Generator) Run(ctx context.Context, emit func(loadgen.Result)) error {
	x, err := newExchanger(ctx, g.profile, g.options)
	if err != nil {
		return err
	}
	defer x.close()
	clock, err := newAlarm()
	if err != nil {
		return err
	}
	defer clock.close()

	start := time.Now()
	x.start = start
	schedule := &schedule{ctx: ctx, pacer: g.profile.Pacer(), start: start, alarm: clock}
	attacker := vegeta.NewAttacker(
		vegeta.Client(&http.Client{
			Transport:     x,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}),
		vegeta.Workers(initialWorkers),
		vegeta.MaxWorkers(uint64(g.profile.MaxWorkers)),
	)
	target := vegeta.NewStaticTargeter(vegeta.Target{Method: g.profile.Method, URL: g.profile.URL})
	var failed error
	for hit := range attacker.Attack(target, schedule, 0, "") {
		result, ok := x.take(hit.Seq)
		if !ok {
			// Only a request that vegeta could not build gets here, and a valid profile has none.
			failed = fmt.Errorf("request %d was never made: %s", hit.Seq, hit.Error)
			continue
		}
		due, _ := loadgen.Due(schedule.pacer, hit.Seq)
		result.Intended = start.Add(due)
		emit(result)
	}
	return errors.Join(failed, schedule.err)
}

// schedule is a loadgen.Pacer as vegeta calls it, from one goroutine. It waits itself rather than have vegeta sleep, so that a
// canceled run ends at once and waits are finer than a timer's.
type schedule struct {
	ctx   context.Context
	pacer loadgen.Pacer
	start time.Time
	alarm *alarm
	err   error // why the schedule broke off; read after the attack
}

var _ vegeta.Pacer = (*schedule)(nil)

// Pace blocks until hit number hits is due. The elapsed time that vegeta gives counts from a start of its own.
func (s *schedule) Pace(_ time.Duration, hits uint64) (time.Duration, bool) {
	if s.ctx.Err() != nil {
		return 0, true
	}
	wait, done := s.pacer.Next(time.Since(s.start), hits)
	if done {
		return 0, true
	}
	if err := s.alarm.wait(s.ctx, wait); err != nil {
		if s.ctx.Err() == nil {
			s.err = err
		}
		return 0, true
	}
	return 0, false
}

// Rate is for vegeta's own reports, which are not used.
func (s *schedule) Rate(time.Duration) float64 { return 0 }
