package hcm

import (
	"context"
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// exchange is what a request needs; it is used again.
type exchange struct {
	filter.Stream
	call  call
	epoch uint64
	gone  func() // made once
}

var exchanges = sync.Pool{New: func() any {
	x := new(exchange)
	x.gone = func() { x.Interrupt(x.epoch, telemetry.DownstreamTermination) }
	return x
}}

// serve2 serves HTTP/2: each request on a goroutine of its own.
func (m *Manager) serve2(ctx context.Context, c *filter.Conn, prefix []byte, l *life) {
	_ = c.SetReadDeadline(time.Time{})
	h := c.Chain.Current().HTTP
	conn := http2.NewServer(c.Conn, prefix, http2.Options{
		MaxStreams: h.HTTP2.MaxStreams, MaxHeaderBytes: h.MaxHeaderBytes, MaxHeaders: h.MaxHeaders, Window: h.HTTP2.Window, ConnWindow: h.HTTP2.ConnWindow,
		Idle: h.IdleTimeout, Life: h.MaxConnDuration, KeepAlive: h.HTTP2.KeepAlive, KeepAliveTimeout: h.HTTP2.KeepAliveTimeout,
	})
	l.became(conn)
	defer l.ended()
	_ = conn.Serve(ctx, func(st *http2.Stream) { m.stream(ctx, c, st) }) // how a connection ends is of interest to its streams
}

// stream serves one request.
func (m *Manager) stream(ctx context.Context, c *filter.Conn, st *http2.Stream) {
	x := exchanges.Get().(*exchange)
	s := &x.Stream
	now := time.Now()
	s.Conn, s.In, s.Out = c, st, st
	s.HTTP = c.Chain.Current().HTTP
	st.ReadRequest(&s.Req)
	m.begin(s, now)
	x.epoch = s.Open()
	s.SetIdle(s.HTTP.StreamIdleTimeout)
	st.OnFail(x.gone)
	s.Rec.HeadIn = int64(s.Req.Bytes)
	if s.Req.TooLarge {
		s.Reply(431, nil, "", "http2.headers_too_large")
	} else if m.request(s) {
		m.route(ctx, s, &x.call)
	}
	_ = st.Flush() // its failure is the stream's
	st.OnFail(nil)
	s.Close()
	s.Rec.Duration = time.Since(now)
	m.Recorder.HTTP(s.HTTP, &s.Rec)
	s.Clear()
	exchanges.Put(x)
}
