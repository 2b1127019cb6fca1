package hcm

import (
	"context"
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
)

// exchanges are the streams of HTTP/2 connections between two requests.
var exchanges = sync.Pool{New: func() any { return new(filter.Stream) }}

// serve2 serves HTTP/2: each request on a goroutine of its own.
func (m *Manager) serve2(ctx context.Context, c *filter.Conn, prefix []byte) {
	_ = c.SetReadDeadline(time.Time{})
	h := c.Chain.Current().HTTP
	conn := http2.NewServer(c.Conn, prefix, http2.Options{
		MaxStreams: h.HTTP2.MaxStreams, MaxHeaderBytes: h.MaxHeaderBytes, MaxHeaders: h.MaxHeaders, Window: h.HTTP2.Window, ConnWindow: h.HTTP2.ConnWindow,
		Idle: h.IdleTimeout, Life: h.MaxConnDuration, KeepAlive: h.HTTP2.KeepAlive, KeepAliveTimeout: h.HTTP2.KeepAliveTimeout,
	})
	forget := c.Chain.OnDrain(conn.Shutdown)
	defer forget()
	_ = conn.Serve(ctx, func(st *http2.Stream) { m.stream(ctx, c, st) }) // how a connection ends is of interest to its streams
}

// stream serves one request.
func (m *Manager) stream(ctx context.Context, c *filter.Conn, st *http2.Stream) {
	s := exchanges.Get().(*filter.Stream)
	now := time.Now()
	s.Conn, s.In, s.Out = c, st, st
	s.HTTP = c.Chain.Current().HTTP
	st.ReadRequest(&s.Req)
	m.begin(s, now)
	s.Rec.HeadIn = int64(s.Req.Bytes)
	if s.Req.TooLarge {
		s.Reply(431, nil, "", "http2.headers_too_large")
	} else if m.request(s) {
		m.Router.Serve(ctx, s)
	}
	_ = st.Flush() // its failure is the stream's
	s.Rec.Duration = time.Since(now)
	m.Recorder.HTTP(s.HTTP, &s.Rec)
	s.Req.Reset()
	s.Resp.Reset()
	*s = filter.Stream{Req: s.Req, Resp: s.Resp}
	exchanges.Put(s)
}
