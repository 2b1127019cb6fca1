package expect_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/scenarios/expect"
)

var errNo = errors.New("no")

func TestConverge(t *testing.T) {
	for _, c := range []struct {
		name   string
		budget expect.Budget
		holds  func(call int) bool
		calls  int
		took   time.Duration
		err    bool
	}{
		{"at once", expect.Budget{Within: time.Second}, func(int) bool { return true }, 1, 0, false},
		{"third time", expect.Budget{Within: time.Second}, func(n int) bool { return n == 3 }, 3, 200 * time.Millisecond, false},
		{"streak", expect.Budget{Within: time.Second, Streak: 3}, func(n int) bool { return n != 2 }, 5, 400 * time.Millisecond, false},
		{"never", expect.Budget{Within: time.Second, Every: 300 * time.Millisecond}, func(int) bool { return false }, 4, time.Second, true},
		{"flapping", expect.Budget{Within: 950 * time.Millisecond, Streak: 2}, func(n int) bool { return n%2 == 0 }, 10, 950 * time.Millisecond, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, calls := time.Now(), 0
				last, err := expect.Converge(t.Context(), c.budget, func(context.Context) (int, error) {
					calls++
					if c.holds(calls) {
						return calls, nil
					}
					return calls, errNo
				})
				var timeout *expect.TimeoutError
				if errors.As(err, &timeout) != c.err {
					t.Errorf("error %v, want a timeout: %v", err, c.err)
				}
				if calls != c.calls || last != calls {
					t.Errorf("%d calls, last observation %d; want %d", calls, last, c.calls)
				}
				if took := time.Since(start); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
			})
		})
	}
}

func TestConvergeCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("interrupted")
		time.AfterFunc(time.Second, func() { cancel(cause) })
		_, err := expect.Converge(ctx, expect.Budget{Within: time.Hour}, func(context.Context) (int, error) { return 0, errNo })
		if !errors.Is(err, cause) {
			t.Errorf("error %v, want the cause of the cancellation", err)
		}
	})
}
