package clustertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"sigs.k8s.io/e2e-framework/klient/k8s"
	"sigs.k8s.io/e2e-framework/klient/wait"
	"sigs.k8s.io/e2e-framework/klient/wait/conditions"
)

// Eventually asks until there is no error; at the end of the time the last error fails the test at once.
func Eventually(t testing.TB, within time.Duration, ask func() error) {
	t.Helper()
	var last error
	err := wait.For(func(context.Context) (bool, error) {
		last = ask()
		return last == nil, nil
	}, often(t.Context(), within)...)
	if err != nil {
		t.Fatalf("not within %s: %v", within, last)
	}
}

// often looks at once, and then every few milliseconds.
func often(ctx context.Context, within time.Duration) []wait.Option {
	return []wait.Option{wait.WithContext(ctx), wait.WithTimeout(within), wait.WithInterval(2 * time.Millisecond), wait.WithImmediate()}
}

// match reads obj again and again, by its namespace and name, until it is fine. The error shows what is not as it was read last.
func (s *suite) match(ctx context.Context, obj k8s.Object, fine func() bool, what func() any) error {
	is := conditions.New(s.client.Resources()).ResourceMatch(obj, func(k8s.Object) bool { return fine() })
	if err := wait.For(is, wait.WithContext(ctx), wait.WithTimeout(budget), wait.WithInterval(50*time.Millisecond), wait.WithImmediate()); err != nil {
		return fmt.Errorf("%w: %+v", err, what())
	}
	return nil
}
