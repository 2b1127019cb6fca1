package router

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

type retryState struct {
	on           conf.RetryOn
	num, left    int
	codes        []int
	base, max    time.Duration
	avoid        bool
	hostAttempts int
}

// policy takes timeouts and retries from the route and from the x-envoy-* request headers, which end here.
func (x *exchange) policy() {
	f, q := x.route.Forward, &x.s.Req
	x.timeout = f.Timeout
	x.duration()
	if f.IdleTimeout > 0 {
		x.s.SetIdle(f.IdleTimeout)
	}
	if p := f.Retry; p != nil {
		x.perTry = p.PerTry
		x.retry = retryState{on: p.On, num: p.Num, codes: p.Codes, base: p.BackoffBase, max: p.BackoffMax, avoid: p.PreviousHosts, hostAttempts: p.HostAttempts}
	}
	// One pass over the names: these headers are rare.
	any := false
	for i := range q.Fields {
		if n := q.Fields[i].Name; len(n) > 11 && string(n[:8]) == "x-envoy-" {
			any = true
			break
		}
	}
	if any {
		x.headerPolicy()
	}
	x.retry.left = x.retry.num
	if x.retry.base == 0 {
		x.retry.base = 25 * time.Millisecond
	}
	if x.retry.max == 0 {
		x.retry.max = 10 * x.retry.base
	}
}

// duration bounds the life of the stream: for gRPC by what its client grants, where the route says so.
func (x *exchange) duration() {
	f, s := x.route.Forward, x.s
	d := f.MaxDuration
	if f.GRPCTimeout && s.Rec.GRPC {
		if t, ok := grpcTimeout(s.Req.Get("grpc-timeout")); ok {
			d = t
			if f.GRPCMax > 0 {
				d = min(d, f.GRPCMax)
			}
			d = max(d, time.Millisecond)
		}
	}
	if d > 0 {
		x.ends = s.Rec.Start.Add(d)
	}
}

// grpcTimeout reads gRPC's header: at most eight digits and a unit (PROTOCOL-HTTP2.md).
func grpcTimeout(b []byte) (time.Duration, bool) {
	if len(b) < 2 || len(b) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[:len(b)-1]), 10, 32)
	if err != nil {
		return 0, false
	}
	var unit time.Duration
	switch b[len(b)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	if n > uint64(100*365*24*time.Hour/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

func (x *exchange) headerPolicy() {
	q := &x.s.Req
	if d, ok := x.ms("x-envoy-upstream-rq-timeout-ms"); ok {
		x.timeout = d
	}
	if d, ok := x.ms("x-envoy-upstream-rq-per-try-timeout-ms"); ok {
		x.perTry = d
	}
	for _, name := range []string{"x-envoy-retry-on", "x-envoy-retry-grpc-on"} {
		if v := q.Get(name); v != nil {
			on, _ := conf.ParseRetryOn(string(v))
			x.retry.on |= on
			if x.retry.num == 0 {
				x.retry.num = 1
			}
			q.Del([]byte(name))
		}
	}
	if v := q.Get("x-envoy-max-retries"); v != nil {
		if n, err := strconv.Atoi(string(v)); err == nil && n >= 0 && n < 1000 {
			x.retry.num = n
		}
		q.Del([]byte("x-envoy-max-retries"))
	}
}

func (x *exchange) ms(name string) (time.Duration, bool) {
	v := x.s.Req.Get(name)
	if v == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v), 10, 32)
	x.s.Req.Del([]byte(name))
	return time.Duration(n) * time.Millisecond, err == nil
}

// failure says how a try ended without an answer.
type failure struct {
	connect bool // no connection
	unsent  bool // the upstream saw nothing of it
	refused bool // REFUSED_STREAM
}

// afterReset decides about a try that ended without an answer.
func (x *exchange) afterReset(f failure) result {
	on := x.retry.on
	want := on&(conf.Retry5xx|conf.RetryGatewayError|conf.RetryReset) != 0 ||
		f.connect && on&conf.RetryConnectFailure != 0 ||
		f.refused && on&conf.RetryRefusedStream != 0 ||
		(f.connect || f.unsent) && on&conf.RetryResetBeforeRequest != 0
	if !want {
		return failed
	}
	if x.retry.left == 0 {
		x.s.Rec.Flags |= telemetry.RetryLimitExceeded
		x.cluster.Stats.RetryExhausted.Add(1)
		return failed
	}
	if !x.body.replayable() || !x.takeRetry() {
		return failed
	}
	return again
}

// takeRetry asks the cluster's breaker for another try. The last one that was granted is given back.
func (x *exchange) takeRetry() bool {
	x.giveRetry()
	if x.retrying = x.cluster.Breakers.Retries.Take(); !x.retrying {
		x.s.Rec.Flags |= telemetry.UpstreamOverflow
	}
	return x.retrying
}

func (x *exchange) giveRetry() {
	if x.retrying {
		x.retrying = false
		x.cluster.Breakers.Retries.Give()
	}
}

// retryStatus reports whether the policy wants another try for the head in s.Resp.
func (x *exchange) retryStatus() bool {
	on, r := x.retry.on, &x.s.Resp
	if on == 0 {
		return false
	}
	if r.Has("x-envoy-ratelimited") && on&conf.RetryEnvoyRatelimited == 0 {
		return false
	}
	st := r.Status
	switch {
	case on&conf.Retry5xx != 0 && st >= 500,
		on&conf.RetryGatewayError != 0 && st >= 502 && st <= 504,
		on&conf.RetryRetriable4xx != 0 && st == 409,
		on&conf.RetryStatusCodes != 0 && slices.Contains(x.retry.codes, st),
		on&conf.RetryEnvoyRatelimited != 0 && r.Has("x-envoy-ratelimited"):
		return true
	}
	const grpc = conf.RetryGRPCCancelled | conf.RetryGRPCDeadline | conf.RetryGRPCInternal | conf.RetryGRPCExhausted | conf.RetryGRPCUnavailable
	if on&grpc == 0 {
		return false
	}
	switch string(r.Get("grpc-status")) {
	case "1":
		return on&conf.RetryGRPCCancelled != 0
	case "4":
		return on&conf.RetryGRPCDeadline != 0
	case "8":
		return on&conf.RetryGRPCExhausted != 0
	case "13":
		return on&conf.RetryGRPCInternal != 0
	case "14":
		return on&conf.RetryGRPCUnavailable != 0
	}
	return false
}

// wait takes one retry and sleeps its jittered back-off; false means that time or context ended.
func (x *exchange) wait(ctx context.Context) bool {
	if x.retry.left <= 0 {
		return false
	}
	x.retry.left--
	n := x.retry.num - x.retry.left
	x.cluster.Stats.Retries.Add(1)
	window := time.Duration(1<<min(n, 20)-1) * x.retry.base
	d := rand.N(max(window, 1))
	d = min(d, x.retry.max)
	if !x.bounds.deadline.IsZero() && time.Until(x.bounds.deadline) <= d {
		x.s.Rec.Flags |= telemetry.UpstreamRequestTimeout
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
