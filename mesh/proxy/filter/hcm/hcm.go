// Package hcm is the HTTP connection manager: it reads requests off a connection, gives each its id, forwarding headers
// and filters, hands it to the router, and decides whether the connection lives on.
package hcm

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
	"github.com/meshproof/meshproof/mesh/proxy/peek"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// Handler ends the filter chain; the router is one.
type Handler interface {
	Serve(context.Context, *filter.Stream)
}

// Recorder is told of every finished exchange, and of messages of gRPC calls that go on. The record and what it points to are only
// valid during the call; of a call that goes on, only what tells who calls whom.
type Recorder interface {
	HTTP(h *conf.HTTP, r *telemetry.Record)
	Messages(r *telemetry.Record, in, out uint64)
}

// Manager serves HTTP connections.
type Manager struct {
	Router   Handler
	Recorder Recorder
	// Filters run on every connection, in this order.
	Filters []filter.HTTP

	mu    sync.Mutex
	conns map[*connection]struct{} // of HTTP/1
	calls calls
}

// Serve reads requests from c until the connection ends, the chain drains, or ctx is done. It does not close c.
func (m *Manager) Serve(ctx context.Context, c *filter.Conn) {
	in := http1.NewReader(c.Conn)
	in.Prefill(c.Prefix)
	l := &life{nc: c.Conn, socket: peek.New(c.Conn)}
	forget := c.Chain.OnDrain(l.drain)
	defer forget()
	l.waits(true)
	two, ok := http2Wanted(c, in, l)
	l.waits(false)
	switch {
	case !ok:
		in.Release()
	case two:
		prefix := in.TakeBuffered()
		in.Release()
		m.serve2(ctx, c, prefix, l)
	default:
		m.serve1(ctx, c, in, l)
	}
}

// http2Wanted decides on the codec: by the chain's config, by ALPN, or by the first bytes (Envoy's codec_type AUTO).
func http2Wanted(c *filter.Conn, in *http1.Reader, l *life) (two, ok bool) {
	h := c.Chain.Current().HTTP
	switch {
	case h.Codec == conf.CodecHTTP1:
		return false, true
	case h.Codec == conf.CodecHTTP2 || c.ALPN == "h2" || c.ALPN == "istio-h2":
		return true, true
	}
	if in.Buffered() == 0 && c.ALPN != "" {
		return false, true
	}
	if h.IdleTimeout > 0 && in.Buffered() == 0 {
		_ = c.SetReadDeadline(time.Now().Add(h.IdleTimeout))
	}
	for {
		two, sure := http2.LooksLike(in.Peek())
		if sure {
			return two, true
		}
		switch err := in.More(); {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return false, false
		case h.IdleTimeout == 0 && !c.Chain.Draining():
			_ = c.SetReadDeadline(time.Time{})
		case !l.arrived():
			return false, false
		}
	}
}

// serve1 serves HTTP/1.
func (m *Manager) serve1(ctx context.Context, c *filter.Conn, in *http1.Reader, l *life) {
	s := &filter.Stream{Conn: c, Out: http1.NewWriter(c.Conn), In: in}
	defer in.Release()
	conn := &connection{m: m, s: s, in: in, life: l, raw: peek.Raw(c.Conn)}
	m.watch(conn)
	defer m.forget(conn)
	defer func() { _ = s.Out.Flush() }()
	for conn.await() && conn.one(ctx) {
		l.answered()
	}
}

type connection struct {
	m     *Manager
	s     *filter.Stream
	in    *http1.Reader
	life  *life
	http  *conf.HTTP
	armed time.Time // when the idle deadline was last set
	idle  time.Duration
	call  call

	// For the watch.
	raw  syscall.RawConn
	busy atomic.Uint64 // epoch of the exchange under way; 0 none
	seen uint64        // busy at the last look
}

// await blocks until a request begins to arrive; false means that none will. A drain alone does not end it: the client was told
// nothing yet, and may be about to send.
func (c *connection) await() bool {
	s := c.s
	c.config()
	if c.in.Buffered() > 0 {
		return true
	}
	c.arm(time.Now())
	c.life.waits(true)
	defer c.life.waits(false)
	for {
		switch err := c.in.Wait(); {
		case err == nil:
			return true
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return false
		case !s.Conn.Chain.Draining() && c.idle == 0:
			// The deadline was that of a drain which has woken an idle connection, or of what came before.
			_ = s.Conn.SetReadDeadline(time.Time{})
		case !c.life.arrived():
			return false
		}
		c.armed = time.Time{}
	}
}

// config takes the newest config of the chain, which a push may have changed between two requests.
func (c *connection) config() {
	h := c.s.Conn.Chain.Current().HTTP
	if h == c.http {
		return
	}
	c.http = h
	if c.idle != h.IdleTimeout {
		c.idle = h.IdleTimeout
		c.armed = time.Time{}
	}
}

// arm sets the idle deadline, but not at every request: the timer moves when an eighth of the timeout has gone by.
func (c *connection) arm(now time.Time) {
	if c.idle == 0 || now.Sub(c.armed) < c.idle/8 {
		return
	}
	c.armed = now
	_ = c.s.Conn.SetReadDeadline(now.Add(c.idle + c.idle/8))
}

// one serves one request; false ends the connection.
func (c *connection) one(ctx context.Context) bool {
	s := c.s
	c.config()
	h := c.http
	s.HTTP = h
	s.Req.Reset()
	now := time.Now()
	c.m.begin(s, now)
	switch {
	case h.HeadersTimeout > 0:
		_ = s.Conn.SetReadDeadline(now.Add(h.HeadersTimeout))
		c.armed = time.Time{}
	case s.Conn.Chain.Draining():
		_ = s.Conn.SetReadDeadline(time.Time{}) // the drain may have meant to end an idle connection
		c.armed = time.Time{}
	}
	err := c.in.ReadRequest(&s.Req, http1.Limits{HeadBytes: h.MaxHeaderBytes, Headers: h.MaxHeaders, HTTP10: h.HTTP10})
	if err != nil {
		return c.refuse(err)
	}
	s.Rec.HeadIn = int64(s.Req.Bytes)
	s.CloseAfter = s.Req.Close || s.Conn.Chain.Draining() ||
		h.MaxConnDuration > 0 && now.Sub(s.Conn.AcceptedAt) > h.MaxConnDuration
	if s.Req.Framing != http1.NoBody {
		// Bodies may take their time: the idle deadline is for connections without a request.
		_ = s.Conn.SetReadDeadline(time.Time{})
		c.armed = time.Time{}
	}
	c.busy.Store(s.Open())
	s.SetIdle(h.StreamIdleTimeout)
	if c.m.request(s) {
		c.m.route(ctx, s, &c.call)
	}
	if s.Out.Flush() != nil {
		s.CloseAfter = true
	}
	c.busy.Store(0)
	s.Close()
	s.Rec.Duration = time.Since(now)
	c.m.Recorder.HTTP(h, &s.Rec)
	if !s.CloseAfter && !s.In.BodyDone() {
		return c.skip()
	}
	return !s.CloseAfter
}

// skip reads a short rest of a body that nobody wanted, so that the connection can go on.
func (c *connection) skip() bool {
	for !c.s.In.BodyDone() {
		if !c.s.In.BodyBuffered() {
			return false
		}
		if _, err := c.s.In.NextBody(); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
	return true
}

// begin prepares s for the request that came at now.
func (m *Manager) begin(s *filter.Stream, now time.Time) {
	s.Rec = telemetry.Record{Req: &s.Req, Start: now, Direction: s.Conn.Direction, Local: s.Conn.Local, Remote: s.Conn.Remote, SNI: s.Conn.SNI,
		PeerURI: s.Conn.PeerURI, LocalURI: s.Conn.LocalURI, MTLS: s.Conn.PeerURI != ""}
	s.Begin(m.Filters, finish)
	s.CloseAfter = false
	s.Scheme = schemeHTTP
	if s.Conn.TLS {
		s.Scheme = schemeHTTPS
	}
}

// request runs the filters; false means that the request is answered.
func (m *Manager) request(s *filter.Stream) bool {
	s.Rec.GRPC = filter.GRPC(&s.Req)
	if code, details := prepare(s); code != 0 {
		s.Reply(code, nil, "", details)
		return false
	}
	for _, f := range m.Filters {
		if f.Request(s) {
			return false
		}
	}
	return true
}

// route hands the request to the router, where it may stay for long.
func (m *Manager) route(ctx context.Context, s *filter.Stream, c *call) {
	if s.Rec.GRPC {
		m.calls.add(c, s)
		defer m.calls.remove(c)
	}
	m.Router.Serve(ctx, s)
}

// refuse answers what could not be read, unless the connection just ended.
func (c *connection) refuse(err error) bool {
	s := c.s
	var bad *http1.ParseError
	if !errors.As(err, &bad) {
		return false
	}
	s.Rec.Flags |= telemetry.DownstreamProtocolError
	s.CloseAfter = true
	s.Req.Minor = 1
	if bad != http1.ErrHTTP2Preface {
		s.Reply(bad.Status, nil, "", bad.Detail)
		_ = s.Out.Flush()
	}
	s.Rec.Details = bad.Detail
	s.Rec.Duration = time.Since(s.Rec.Start)
	c.m.Recorder.HTTP(c.http, &s.Rec)
	return false
}
