package httpgen

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, d := range []time.Duration{-1, 0, 1, time.Microsecond, 3 * time.Millisecond, time.Microsecond} {
		start := time.Now()
		if err := a.wait(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited < d {
			t.Errorf("waited %s of %s", waited, d)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(time.Millisecond, cancel)
	defer timer.Stop()
	if err := a.wait(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled wait: %v", err)
	}
	if err := a.wait(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait in a context that has ended: %v", err)
	}
}
