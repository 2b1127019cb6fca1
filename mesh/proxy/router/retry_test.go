package router

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/breaker"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// attempt is an exchange with a policy, at its first try.
func attempt(retry *conf.Retry, fields ...string) *exchange {
	cl := &upstream.Cluster{Stats: &upstream.Stats{}, Breakers: &breaker.Breakers{}}
	cl.Breakers.Retries.Set(3)
	x := &exchange{s: stream("/", fields...), route: &conf.Route{Forward: &conf.Forward{Retry: retry}}, cluster: cl}
	x.policy()
	return x
}

func on(t *testing.T, names string) *conf.Retry {
	t.Helper()
	bits, unknown := conf.ParseRetryOn(names)
	if unknown != nil {
		t.Fatal(unknown)
	}
	return &conf.Retry{On: bits, Num: 2}
}

// TestRetryStatus: which answers are tried again. Source: the router filter's x-envoy-retry-on.
func TestRetryStatus(t *testing.T) {
	for _, c := range []struct {
		on     string
		status int
		fields []string
		want   bool
	}{
		{"5xx", 500, nil, true}, {"5xx", 599, nil, true}, {"5xx", 499, nil, false},
		{"gateway-error", 502, nil, true}, {"gateway-error", 504, nil, true}, {"gateway-error", 500, nil, false}, {"gateway-error", 505, nil, false},
		{"retriable-4xx", 409, nil, true}, {"retriable-4xx", 404, nil, false},
		{"retriable-status-codes", 418, nil, true}, {"retriable-status-codes", 503, nil, false},
		{"connect-failure,refused-stream,reset", 503, nil, false},
		{"cancelled", 200, []string{"grpc-status", "1"}, true}, {"deadline-exceeded", 200, []string{"grpc-status", "4"}, true},
		{"resource-exhausted", 200, []string{"grpc-status", "8"}, true}, {"internal", 200, []string{"grpc-status", "13"}, true},
		{"unavailable", 200, []string{"grpc-status", "14"}, true}, {"unavailable", 200, []string{"grpc-status", "13"}, false},
		{"unavailable", 200, nil, false}, {"", 500, nil, false},
		{"5xx", 503, []string{"x-envoy-ratelimited", "true"}, false}, {"5xx,envoy-ratelimited", 429, []string{"x-envoy-ratelimited", "true"}, true},
	} {
		p := on(t, c.on)
		p.Codes = []int{418}
		x := attempt(p)
		x.s.Resp.Status = c.status
		for i := 0; i < len(c.fields); i += 2 {
			x.s.Resp.Add([]byte(c.fields[i]), []byte(c.fields[i+1]))
		}
		if got := x.retryStatus(); got != c.want {
			t.Errorf("%s, status %d %v: %v", c.on, c.status, c.fields, got)
		}
	}
}

// TestAfterReset: which failures without an answer are tried again, and what stops them.
func TestAfterReset(t *testing.T) {
	connect, unsent, refused, lost := failure{connect: true}, failure{unsent: true}, failure{refused: true}, failure{}
	for _, c := range []struct {
		on   string
		f    failure
		want result
	}{
		{"connect-failure", connect, again}, {"connect-failure", lost, failed}, {"reset", lost, again}, {"5xx", lost, again}, {"gateway-error", connect, again},
		{"reset-before-request", unsent, again}, {"reset-before-request", connect, again}, {"reset-before-request", lost, failed},
		{"refused-stream", refused, again}, {"refused-stream", lost, failed}, {"retriable-status-codes", connect, failed}, {"", connect, failed},
	} {
		if got := attempt(on(t, c.on)).afterReset(c.f); got != c.want {
			t.Errorf("%s, %+v: %v", c.on, c.f, got)
		}
	}
	x := attempt(on(t, "reset"))
	x.retry.left = 0
	if got := x.afterReset(lost); got != failed || x.s.Rec.Flags != telemetry.RetryLimitExceeded || x.cluster.Stats.RetryExhausted.Load() != 1 {
		t.Errorf("none left: %v, flags %s", got, x.s.Rec.Flags)
	}
	x = attempt(on(t, "reset"))
	x.body.overflow = true
	if got := x.afterReset(lost); got != failed || x.cluster.Breakers.Retries.Used() != 0 {
		t.Errorf("a body that cannot be sent again: %v", got)
	}
}

// TestRetryBreaker: a try holds one of the cluster's retries until the next or the end.
func TestRetryBreaker(t *testing.T) {
	x := attempt(on(t, "reset"))
	r := &x.cluster.Breakers.Retries
	r.Set(1)
	if x.afterReset(failure{}) != again || r.Used() != 1 {
		t.Errorf("%d used", r.Used())
	}
	other := attempt(on(t, "reset"))
	other.cluster = x.cluster
	if other.afterReset(failure{}) != failed || other.s.Rec.Flags != telemetry.UpstreamOverflow || r.Overflows() != 1 {
		t.Errorf("flags %s", other.s.Rec.Flags)
	}
	if x.afterReset(failure{}) != again || r.Used() != 1 {
		t.Error("the second retry of one request is not the first one's")
	}
	x.giveRetry()
	x.giveRetry()
	if r.Used() != 0 {
		t.Errorf("%d used at the end", r.Used())
	}
}

// TestRequestPolicy: x-envoy-* headers change the route's policy and do not go on.
func TestRequestPolicy(t *testing.T) {
	x := attempt(&conf.Retry{On: conf.RetryReset, Num: 2, PerTry: time.Second},
		"x-envoy-retry-on", "5xx, unknown", "x-envoy-retry-grpc-on", "cancelled", "x-envoy-max-retries", "7", "x-envoy-upstream-rq-timeout-ms", "1500", "x-envoy-upstream-rq-per-try-timeout-ms", "250", "kept", "1")
	if x.retry.on != conf.RetryReset|conf.Retry5xx|conf.RetryGRPCCancelled || x.retry.num != 7 || x.retry.left != 7 || x.timeout != 1500*time.Millisecond || x.perTry != 250*time.Millisecond {
		t.Errorf("%+v, timeout %v, per try %v", x.retry, x.timeout, x.perTry)
	}
	if len(x.s.Req.Fields) != 1 {
		t.Errorf("%d headers go on", len(x.s.Req.Fields))
	}
	if x.expected() != 250*time.Millisecond {
		t.Errorf("the upstream is told %v", x.expected())
	}
	x = attempt(nil, "x-envoy-retry-on", "5xx", "x-envoy-max-retries", "many", "x-envoy-upstream-rq-timeout-ms", "soon")
	if x.retry.num != 1 || x.timeout != 0 || x.retry.base != 25*time.Millisecond || x.retry.max != 250*time.Millisecond {
		t.Errorf("%+v, timeout %v", x.retry, x.timeout)
	}
}

// TestBackOff: waits lie within the window that doubles, never beyond the maximum nor the deadline.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		longest := map[int]time.Duration{}
		for range 300 {
			x := attempt(&conf.Retry{On: conf.Retry5xx, Num: 5})
			for n := 1; n <= 5; n++ {
				began := time.Now()
				if !x.wait(t.Context()) {
					t.Fatalf("retry %d was not granted", n)
				}
				longest[n] = max(longest[n], time.Since(began))
			}
			if x.wait(t.Context()) {
				t.Fatal("a sixth retry")
			}
		}
		for n, limit := range map[int]time.Duration{1: 25, 2: 75, 3: 175, 4: 250, 5: 250} {
			if d := longest[n]; d > limit*time.Millisecond || d < limit*time.Millisecond*8/10 {
				t.Errorf("retry %d waited at most %v of 300 times, want a little below %dms", n, d, limit)
			}
		}
		x := attempt(&conf.Retry{On: conf.Retry5xx, Num: 5, BackoffBase: time.Hour, BackoffMax: time.Hour})
		x.bounds.deadline = time.Now().Add(time.Microsecond)
		if x.wait(t.Context()) || x.s.Rec.Flags != telemetry.UpstreamRequestTimeout {
			t.Errorf("waited beyond the deadline: %s", x.s.Rec.Flags)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if attempt(&conf.Retry{On: conf.Retry5xx, Num: 5, BackoffBase: time.Hour}).wait(ctx) {
			t.Error("waited although nobody waits for it")
		}
	})
}

// TestOutcome: what outlier detection hears of a response.
func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		contentType, grpc string
		status, want      int
	}{
		{"text/plain", "14", 200, 200}, {"application/grpc", "", 200, 200}, {"application/grpc", "0", 200, 200}, {"application/grpc", "1", 200, 499},
		{"application/grpc+proto", "14", 200, 503}, {"application/grpc", "13", 200, 500}, {"application/grpc", "16", 200, 401}, {"application/grpc", "17", 200, 500},
		{"application/grpc", "x", 200, 500}, {"application/grpc", "99999999999999999999", 200, 500}, {"application/json", "", 503, 503},
	} {
		s := stream("/", "content-type", c.contentType)
		s.Resp.Status = c.status
		if c.grpc != "" {
			s.Resp.Add([]byte("grpc-status"), []byte(c.grpc))
		}
		if got := outcome(s); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
