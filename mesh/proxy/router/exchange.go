package router

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/mesh/proxy/breaker"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/filter/peer"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
	"github.com/meshproof/meshproof/mesh/proxy/outlier"
	"github.com/meshproof/meshproof/mesh/proxy/pool"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// exchange is one request on its way through one or more tries. It is pooled.
type exchange struct {
	r       *Router
	s       *filter.Stream
	view    *upstream.View
	route   *conf.Route
	vhost   *conf.VirtualHost
	cluster *upstream.Cluster
	levels  levels
	random  uint64
	query   balance.Query
	cookies [][]byte // Set-Cookie values to add to the answer
	http2   bool     // to the upstream

	timeout  time.Duration // of all tries; 0 none
	perTry   time.Duration // from the request's end to the answer's begin; 0 none
	ends     time.Time     // of the stream, from its begin
	bounds   bounds
	opening  opening
	retry    retryState
	retrying bool // holds one of the cluster's retries
	tried    []*upstream.Host
	body     requestBody
	host     upstream.Member
	reset    string // Envoy's reset reason of the last failure
	stales   int
}

func (x *exchange) release() {
	tried := x.tried[:0]
	clear(x.tried)
	saved := x.body.saved[:0]
	*x = exchange{tried: tried}
	if cap(saved) <= maxReplay {
		x.body.saved = saved
	}
	exchanges.Put(x)
}

// result of one try.
type result uint8

const (
	done   result = iota // answered, or beyond help
	again                // failed in a way that may be tried again
	stale                // a used connection was closed under us: not counted as a try
	failed               // failed, no further try
)

// run tries until an answer, and answers by itself when all tries failed.
func (x *exchange) run(ctx context.Context) {
	s := x.s
	if !x.body.begin(s) {
		s.CloseAfter = true
		s.Rec.Flags |= telemetry.DownstreamTermination
		return
	}
	x.cluster.Stats.ActiveRequests.Add(1)
	defer x.cluster.Stats.ActiveRequests.Add(-1)
	defer x.giveRetry()
	if x.timeout > 0 && x.body.complete {
		x.bounds.deadline = time.Now().Add(x.timeout)
	}
	fresh := false
	for {
		if why := s.Interrupted(); why == telemetry.DownstreamTermination {
			x.gone()
			return
		}
		if !fresh {
			s.AttemptCount++
		}
		if x.vhost.Attempts {
			s.Req.Set(hAttempts, number(&s.Req.Header, int64(s.AttemptCount)))
		}
		m, ok := x.pick(s.AttemptCount - 1)
		if !ok {
			s.Rec.Flags |= telemetry.NoHealthyUpstream
			x.body.drop(s)
			x.fail(503, "no healthy upstream", "no_healthy_upstream")
			return
		}
		x.host = m
		res := x.try(ctx, m, fresh)
		fresh = false
		switch res {
		case done:
			return
		case stale:
			fresh = true
			continue
		case again:
			if x.wait(ctx) {
				continue
			}
		}
		x.body.drop(s)
		x.fail(x.failure())
		return
	}
}

func (x *exchange) pick(attempt int) (upstream.Member, bool) {
	q := x.query
	m, ok := x.cluster.Pick(q, x.s.Conn.Local)
	if attempt == 0 || !ok || !x.retry.avoid {
		return m, ok
	}
	for range x.retry.hostAttempts {
		used := false
		for _, h := range x.tried {
			used = used || h == m.Host
		}
		if !used {
			break
		}
		q.Attempt++
		if m, ok = x.cluster.Pick(q, x.s.Conn.Local); !ok {
			break
		}
	}
	return m, ok
}

// try sends the request once.
func (x *exchange) try(ctx context.Context, m upstream.Member, fresh bool) result {
	s, st := x.s, x.cluster.Stats
	x.tried = append(x.tried, m.Host)
	s.Rec.Upstream, s.Rec.Endpoint = m.Addr, m.Endpoint
	s.Rec.Failure = ""
	s.Rec.Flags &^= telemetry.UpstreamConnectionFailure | telemetry.UpstreamConnectionTermination | telemetry.UpstreamRequestTimeout | telemetry.UpstreamProtocolError
	if x.s.AttemptCount == 1 && x.route.Forward.AutoHost && m.Endpoint.Host != "" {
		setHost(s, x.route.Forward, []byte(m.Endpoint.Host))
	}
	x.opening = opening{parent: ctx, s: s, until: earlier(x.bounds.deadline, x.ends)}
	c, err := m.Open(&x.opening, fresh, x.http2)
	x.opening.end()
	if errors.Is(err, breaker.ErrOverflow) {
		return x.overflow()
	}
	if err != nil && (s.Interrupted() != 0 || passed(x.bounds.deadline) || x.over()) {
		return x.tooLate() // by our own clock: that is not the host's fault
	}
	if err != nil {
		st.ConnectFail.Add(1)
		m.Errors.Add(1)
		s.Rec.Flags |= telemetry.UpstreamConnectionFailure
		x.reset = "remote connection failure"
		if errors.Is(err, context.DeadlineExceeded) {
			x.reset = "connection timeout"
		}
		s.Rec.Failure = err.Error()
		m.Report(outlier.ConnectFailed, 0)
		return x.afterReset(failure{connect: true})
	}
	if !x.cluster.Breakers.Requests.Take() {
		x.giveBack(c, true)
		return x.overflow()
	}
	defer x.cluster.Breakers.Requests.Give()
	s.Guard(c)
	peer.Add(s, m.Mesh)
	if s.Conn.Direction != conf.Inbound {
		s.Rec.MTLS = m.Mesh
		if uri := m.PeerURI.Load(); uri != nil {
			s.Rec.UpstreamURI = *uri
		}
	}
	s.Rec.UpstreamLocal = c.Local()
	m.Report(outlier.Connected, 0)
	st.Requests.Add(1)
	m.Requests.Add(1)
	m.Active.Add(1)
	defer m.Active.Add(-1)
	sent := time.Now()
	x.bounds.begin(x, sent)
	c.Request(&s.Req)
	x.body.send(s, c, x)
	if x.body.pump == nil {
		if err := c.Flush(); err != nil && c.Unsent(err) {
			// Not a byte went out: the connection was dead, and any request may be sent again.
			return x.lost(c, err)
		}
	}
	if err := x.readHead(c); err != nil {
		return x.lost(c, err)
	}
	s.Rec.UpstreamTime = time.Since(sent)
	return x.answer(c, m)
}

// overflow ends an exchange that a circuit breaker does not let through; that is not tried again.
func (x *exchange) overflow() result {
	x.cluster.Stats.PendingOverflow.Add(1)
	x.s.Rec.Flags |= telemetry.UpstreamOverflow
	x.reset = "overflow"
	return failed
}

// giveBack ends the exchange with the upstream; whole says that it was complete.
func (x *exchange) giveBack(c pool.Stream, whole bool) {
	x.s.Unguard()
	if whole {
		c.Put()
	} else {
		c.Discard()
	}
}

var limits = http1.DefaultLimits

// Names that are set on every exchange; they are never changed.
var (
	hServiceTime = []byte("x-envoy-upstream-service-time")
	hAttempts    = []byte("x-envoy-attempt-count")
	hOverloaded  = []byte("x-envoy-overloaded")
	vTrue        = []byte("true")
)

func (x *exchange) readHead(c pool.Stream) error {
	s := x.s
	for range 16 { // interim responses are dropped: the codec has answered Expect itself
		s.Resp.Reset()
		if err := c.ReadResponse(&s.Resp, limits, s.Req.IsHead); err != nil {
			return err
		}
		if s.Resp.Status >= 200 || s.Resp.Status == 101 {
			return nil
		}
	}
	return &http1.ParseError{Status: 502, Detail: "too many interim responses"}
}

// lost ends a try whose connection failed before an answer.
func (x *exchange) lost(c pool.Stream, err error) result {
	s, st := x.s, x.cluster.Stats
	gone := x.body.stop(s)
	unsent := c.Unsent(err)
	silent := c.Buffered() == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, http2.ErrClosed))
	reused := c.Reused()
	x.giveBack(c, false)
	if gone {
		return x.gone()
	}
	if why := s.Interrupted(); why != 0 {
		return x.interrupted(why)
	}
	if x.stales < maxStales && x.body.replayable() && (unsent || reused && silent && safe(s.Req.Method)) {
		x.stales++
		return stale
	}
	x.host.Errors.Add(1)
	switch late := errors.Is(err, os.ErrDeadlineExceeded); {
	case late && x.over(): // the stream's own end is not the host's fault
	case late:
		x.host.Timeouts.Add(1)
		x.host.Report(outlier.TimedOut, 0)
	default:
		x.host.Report(outlier.ConnectFailed, 0)
	}
	var bad *http1.ParseError
	var peerReset *http2.ResetError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && (x.over() || passed(x.bounds.deadline)):
		return x.tooLate()
	case errors.Is(err, os.ErrDeadlineExceeded):
		st.Timeouts.Add(1)
		s.Rec.Flags |= telemetry.UpstreamRequestTimeout
		x.reset = "timeout"
		st.PerTryTimeouts.Add(1)
	case errors.As(err, &bad):
		s.Rec.Flags |= telemetry.UpstreamProtocolError
		x.reset = "protocol error"
		s.Rec.Failure = bad.Detail
	case http2.Refused(err):
		s.Rec.Flags |= telemetry.UpstreamRemoteReset
		x.reset = "remote refused stream reset"
		st.Resets.Add(1)
		return x.afterReset(failure{refused: true})
	case errors.As(err, &peerReset):
		s.Rec.Flags |= telemetry.UpstreamRemoteReset
		x.reset = "remote reset"
	default:
		s.Rec.Flags |= telemetry.UpstreamConnectionTermination
		x.reset = "connection termination"
	}
	st.Resets.Add(1)
	return x.afterReset(failure{unsent: unsent})
}

// maxStales bounds how often a request is sent again without being counted as tried.
const maxStales = 3

// safe methods (RFC 9110 section 9.2.1) may be sent again even if the upstream saw them.
func safe(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// answer passes a response on, or gives it up for another try.
func (x *exchange) answer(c pool.Stream, m upstream.Member) result {
	s := x.s
	status := s.Resp.Status
	if cl := status / 100; cl < len(x.cluster.Stats.Class) {
		x.cluster.Stats.Class[cl].Add(1)
	}
	m.Report(outlier.Answered, outcome(s))
	if status >= 500 {
		m.Errors.Add(1)
	} else {
		m.Success.Add(1)
	}
	if status == 101 {
		return x.tunnel(c)
	}
	if x.retry.left > 0 && x.retryStatus() && x.takeRetry() {
		if x.body.stop(s) {
			x.giveBack(c, false)
			s.Rec.Flags |= telemetry.DownstreamTermination
			s.CloseAfter = true
			return done
		}
		if x.body.replayable() {
			x.drain(c, m)
			x.reset = "retriable status"
			return again
		}
	}
	if x.retry.left == 0 && x.retry.num > 0 && x.retryStatus() {
		s.Rec.Flags |= telemetry.RetryLimitExceeded
		x.cluster.Stats.RetryExhausted.Add(1)
	} else if s.AttemptCount > 1 {
		x.cluster.Stats.RetrySuccess.Add(1)
	}
	s.Rec.Details = "via_upstream"
	h := &s.Resp.Header
	for _, c := range x.cookies {
		h.Add(hSetCookie, c)
	}
	h.Set(hServiceTime, millis(h, s.Rec.UpstreamTime))
	if x.vhost.AttemptsInResponse {
		h.Set(hAttempts, number(h, int64(s.AttemptCount)))
	}
	x.levels.response(s)
	if s.Req.Major < 2 && s.Req.Minor == 0 && (s.Resp.Framing == http1.UntilClose || s.Resp.Framing == http1.Chunked) {
		s.CloseAfter = true
	}
	closing := s.Resp.Close
	s.WriteHead()
	x.bounds.answered(x)
	return x.stream(c, m, closing)
}

// stream copies the body and settles both connections.
func (x *exchange) stream(c pool.Stream, m upstream.Member, closing bool) result {
	s := x.s
	if c.Buffered() == 0 && !c.BodyDone() {
		_ = s.Out.Flush() // the client may wait for the head before it says more
	}
	for {
		p, err := c.NextBody()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.Rec.Flags |= telemetry.UpstreamConnectionTermination
			var r *http2.ResetError
			if errors.As(err, &r) {
				s.Rec.Flags = s.Rec.Flags&^telemetry.UpstreamConnectionTermination | telemetry.UpstreamRemoteReset
			}
			s.Rec.Details = "upstream_reset_after_response_started{connection_termination}"
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				m.Report(outlier.ConnectFailed, 0)
			} else if x.lateEnd() {
				m.Report(outlier.TimedOut, 0)
			}
			x.cluster.Stats.Resets.Add(1)
			x.body.stop(s)
			x.giveBack(c, false)
			_ = s.Out.Flush() // what came goes out; the missing end tells the client that it is not all
			s.CloseAfter = true
			return done
		}
		s.BodyOut(p)
		if s.Out.Body(p) == nil && !c.BodyDone() && c.Buffered() == 0 {
			_ = s.Out.Flush()
		}
		if s.Out.Err() != nil {
			break
		}
	}
	if s.Out.Err() == nil {
		_ = s.Out.End(&s.Resp.Trailers)
	}
	if x.body.pump != nil {
		_ = s.Out.Flush() // the client need not wait until its request is settled; an error shows below
	}
	sentAll := x.body.settle(s)
	if !closing && sentAll && c.BodyDone() {
		x.giveBack(c, true)
	} else {
		x.giveBack(c, false)
	}
	if s.Out.Flush() != nil {
		s.Rec.Flags |= telemetry.DownstreamTermination
		s.Rec.Details = "downstream_remote_disconnect"
		s.CloseAfter = true
	}
	if !sentAll {
		s.CloseAfter = true
	}
	return done
}

// drain reads a short answer that is not wanted to its end, so that the connection can be used again.
func (x *exchange) drain(c pool.Stream, m upstream.Member) {
	for c.BodyBuffered() {
		if _, err := c.NextBody(); err != nil {
			break
		}
	}
	if c.BodyDone() && !x.s.Resp.Close && x.body.complete && !x.body.cut {
		x.giveBack(c, true)
		return
	}
	x.giveBack(c, false)
}

// tunnel joins both connections after a 101, until one side ends.
func (x *exchange) tunnel(st pool.Stream) result {
	s := x.s
	c, ok := st.(*pool.Conn)
	in, ok2 := s.In.(*http1.Reader)
	if !ok || !ok2 || s.Req.Upgrade == nil {
		x.body.drop(s)
		x.giveBack(st, false)
		s.Rec.Flags |= telemetry.UpstreamProtocolError
		x.fail(502, "the upstream switched protocols unasked", "upstream_reset_before_response_started{protocol_error}")
		return done
	}
	s.Rec.Details = "via_upstream"
	x.levels.response(s)
	s.CloseAfter = true
	s.WriteHead()
	if s.Out.Flush() != nil {
		x.giveBack(c, false)
		return done
	}
	// What bounds a tunnel is that nothing moves, where the listener or the route says so.
	_ = c.SetDeadline(time.Time{})
	_ = s.Conn.SetDeadline(time.Time{})
	early, late := in.TakeBuffered(), c.TakeBuffered()
	up := make(chan int64, 1)
	go func() {
		n := copyAfter(c.Conn, moving{s.Conn.Conn, s}, early)
		up <- n
	}()
	s.Rec.BytesOut += copyAfter(s.Conn.Conn, moving{c.Conn, s}, late)
	c.CutWrites()
	x.giveBack(c, false)
	_ = s.Conn.SetReadDeadline(time.Unix(1, 0))
	s.Rec.BytesIn += <-up
	return done
}

// moving notes what is read from a side of a tunnel.
type moving struct {
	from io.Reader
	s    *filter.Stream
}

func (m moving) Read(p []byte) (int, error) {
	n, err := m.from.Read(p)
	if n > 0 {
		m.s.Moved()
	}
	return n, err
}

// copyAfter writes early and then everything from src, and ends dst's side when src ends.
func copyAfter(dst net.Conn, src io.Reader, early []byte) (n int64) {
	if len(early) > 0 {
		k, err := dst.Write(early)
		if n = int64(k); err != nil {
			return n
		}
	}
	k, _ := io.Copy(dst, src) // an error ends the tunnel like an end does
	if cw, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
	return n + k
}

func number(h *http1.Header, n int64) []byte { return h.Take(strconv.AppendInt(h.Scratch(), n, 10)) }

func millis(h *http1.Header, d time.Duration) []byte { return number(h, d.Milliseconds()) }
