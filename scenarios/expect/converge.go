// Package expect holds pure checks of observations, and the one way to wait for a condition.
package expect

import (
	"context"
	"fmt"
	"time"
)

// Budget bounds a wait.
type Budget struct {
	Within time.Duration // after this the wait has failed; required
	Streak int           // how many probes in a row must hold; 1 if 0
	Every  time.Duration // pause between probes; 100 ms if 0
}

// TimeoutError says that a condition did not hold in time, and why it did not hold last.
type TimeoutError struct {
	Budget Budget
	Streak int   // probes in a row that held at the end
	Last   error // why the last probe that did not hold failed
}

func (e *TimeoutError) Error() string {
	if e.Last == nil {
		return fmt.Sprintf("not stable within %s: held %d of %d times in a row", e.Budget.Within, e.Streak, max(1, e.Budget.Streak))
	}
	return fmt.Sprintf("not within %s: %v", e.Budget.Within, e.Last)
}

func (e *TimeoutError) Unwrap() error { return e.Last }

// Converge calls probe until it returns nil Streak times in a row, and returns the last observation, whether it held or not.
// One failure starts the streak over. The error is a *TimeoutError when the budget ran out, or that of ctx. A probe gets a
// context that ends with the budget.
func Converge[T any](ctx context.Context, b Budget, probe func(context.Context) (T, error)) (T, error) {
	if b.Every == 0 {
		b.Every = 100 * time.Millisecond
	}
	budget, cancel := context.WithTimeout(ctx, b.Within)
	defer cancel()
	pause := time.NewTimer(b.Every)
	defer pause.Stop()

	var (
		last   T
		failed error
		streak int
	)
	for {
		observation, err := probe(budget)
		if budget.Err() == nil || err == nil {
			last = observation
		}
		switch {
		case err == nil:
			if streak++; streak >= b.Streak {
				return last, nil
			}
		case budget.Err() != nil && failed != nil:
			// The probe was cut off; what it said before tells more.
			streak = 0
		default:
			failed, streak = err, 0
		}
		pause.Reset(b.Every)
		select {
		case <-pause.C:
		case <-budget.Done():
		}
		if err := ctx.Err(); err != nil {
			return last, context.Cause(ctx)
		}
		if budget.Err() != nil {
			if streak > 0 {
				failed = nil
			}
			return last, &TimeoutError{Budget: b, Streak: streak, Last: failed}
		}
	}
}
