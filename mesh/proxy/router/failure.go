package router

import (
	"fmt"

	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// gone ends an exchange whose client is no more.
func (x *exchange) gone() result {
	s := x.s
	s.Rec.Flags |= telemetry.DownstreamTermination
	s.Rec.Details = "downstream_remote_disconnect"
	s.CloseAfter = true
	return done
}

// interrupted ends an exchange that waited for an answer when it was interrupted.
func (x *exchange) interrupted(why telemetry.Flags) result {
	if why == telemetry.DownstreamTermination {
		return x.gone()
	}
	x.s.Rec.Flags |= why
	return failed
}

// over reports whether the stream has lived as long as it may.
func (x *exchange) over() bool { return passed(x.ends) }

// tooLate ends an exchange whose time is over, or that was interrupted, before an answer.
func (x *exchange) tooLate() result {
	s := x.s
	switch why := s.Interrupted(); {
	case why != 0:
		return x.interrupted(why)
	case x.over():
		s.Rec.Flags |= telemetry.DurationTimeout
	default:
		x.cluster.Stats.Timeouts.Add(1)
		s.Rec.Flags |= telemetry.UpstreamRequestTimeout
		x.reset = "timeout"
	}
	return failed
}

// lateEnd says why an answer was cut off by a deadline within its body, and whether the host was too slow.
func (x *exchange) lateEnd() (slow bool) {
	s := x.s
	f := s.Rec.Flags &^ telemetry.UpstreamConnectionTermination
	switch why := s.Interrupted(); {
	case why == telemetry.DownstreamTermination:
		s.Rec.Details = "downstream_remote_disconnect"
		f |= why
	case why != 0:
		s.Rec.Details = "stream_idle_timeout"
		f |= why
	case x.over():
		s.Rec.Details = "max_duration_timeout"
		f |= telemetry.DurationTimeout
	default:
		f |= telemetry.UpstreamRequestTimeout
		x.cluster.Stats.Timeouts.Add(1)
		slow = true
	}
	s.Rec.Flags = f
	return slow
}

func (x *exchange) failure() (code int, body, details string) {
	f := x.s.Rec.Flags
	switch {
	case f&telemetry.StreamIdleTimeout != 0:
		return 408, "stream timeout", "stream_idle_timeout"
	case f&telemetry.DurationTimeout != 0:
		x.s.GRPCCode = 4 // DeadlineExceeded
		return 408, "downstream duration timeout", "max_duration_timeout"
	case x.reset == "overflow":
		return 503, "upstream connect error or disconnect/reset before headers. reset reason: overflow", "upstream_reset_before_response_started{overflow}"
	case f&telemetry.NoHealthyUpstream != 0:
		return 503, "no healthy upstream", "no_healthy_upstream"
	case f&telemetry.UpstreamRequestTimeout != 0:
		return 504, "upstream request timeout", "response_timeout"
	case f&telemetry.UpstreamProtocolError != 0:
		return 502, "upstream connect error or disconnect/reset before headers. reset reason: protocol error", "upstream_reset_before_response_started{protocol_error}"
	}
	body = "upstream connect error or disconnect/reset before headers. reset reason: " + x.reset
	if x.s.Rec.Failure != "" {
		body += ", transport failure reason: " + x.s.Rec.Failure
	}
	return 503, body, fmt.Sprintf("upstream_reset_before_response_started{%s}", x.reset)
}

func (x *exchange) fail(code int, body, details string) {
	x.s.Resp.Reset()
	if x.reset == "overflow" {
		x.s.Resp.Add(hOverloaded, vTrue)
	}
	x.s.ReplyWith(code, []byte(body), "text/plain", details)
	if x.s.Out.Flush() != nil {
		x.s.CloseAfter = true
	}
}
