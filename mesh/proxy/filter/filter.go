// Package filter is the contract between what reads requests and what handles them. Filters of a chain run in order on
// the request and in reverse order on the response's head; the router ends the chain.
package filter

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// Conn is one accepted connection after sniffing and, where the chain says so, after the TLS handshake.
type Conn struct {
	net.Conn
	Prefix     []byte // bytes that sniffing read and that belong to the stream
	Listener   string
	Direction  conf.Direction
	Local      netip.AddrPort // where the peer wanted to go: the original destination when that was restored
	Remote     netip.AddrPort
	TLS        bool
	SNI        string
	ALPN       string
	PeerURI    string // first URI name of the peer's certificate
	LocalURI   string
	XFCC       []byte // this hop's x-forwarded-client-cert element; nil without a peer certificate
	Chain      Chain
	AcceptedAt time.Time
}

// Chain is the filter chain of a connection. Current returns its newest config, which may change while the connection
// lives; Draining reports whether the connection should end at its next chance. OnDrain has f called when that begins, and
// with last set when connections without an exchange should end at once; what has begun is told before OnDrain returns.
// forget takes f back.
type Chain interface {
	Current() *conf.FilterChain
	Draining() bool
	OnDrain(f func(last bool)) (forget func())
}

// Source is the body of a request. Both codecs are one.
type Source interface {
	// NextBody returns the next piece, valid until the next call. io.EOF is the end: trailers are in the request then.
	NextBody() ([]byte, error)
	// BodyDone reports whether the request was read to its end.
	BodyDone() bool
	// BodyBuffered reports whether the rest of the body is here, so that NextBody cannot block.
	BodyBuffered() bool
	// Buffered is how many bytes are here and were not taken.
	Buffered() int
	// SetReadDeadline bounds NextBody, also one that is waiting. Zero is no bound.
	SetReadDeadline(time.Time) error
}

// Sink takes the response. Its errors stick: the first is returned by each later call.
type Sink interface {
	// Continue sends an interim 100 response.
	Continue() error
	// Response takes the final head, which ends the message where toHead or the status says that no body follows. minor and
	// close matter to HTTP/1 alone.
	Response(p *http1.Response, minor int, toHead, close bool)
	// Body takes a piece of the body; it may wait for the peer.
	Body([]byte) error
	// End ends the message. Trailers may be nil.
	End(trailers *http1.Header) error
	// Flush sends what was gathered.
	Flush() error
	Err() error
	// Abort fails the Sink at once, also a call that waits.
	Abort()
}

// Stream is one HTTP exchange. It is reused, within a connection or between streams.
type Stream struct {
	Conn *Conn
	HTTP *conf.HTTP
	Req  http1.Request
	Resp http1.Response
	Rec  telemetry.Record
	In   Source // the request's body
	Out  Sink

	Scheme       []byte
	Internal     bool // x-envoy-internal
	CloseAfter   bool // the downstream connection ends after this exchange
	AttemptCount int
	GRPCCode     int // told to gRPC clients by Reply instead of what follows from the status; 0 none
	// PeerID and PeerMetadata are what endpoints of the mesh are told about this proxy; nil for nothing. PeerAsked says
	// that the downstream told about itself and wants to know.
	PeerID, PeerMetadata []byte
	PeerAsked            bool

	filters []HTTP
	finish  func(*Stream)

	headWritten atomic.Bool
	epochs      uint64
	interrupt   interrupt
}

// HTTP is one HTTP filter. Both calls may change the head that they see.
type HTTP interface {
	// Request runs before the router. Returning true means that the filter answered by Reply.
	Request(*Stream) (answered bool)
	// Response runs before the response's head is written, also for answers that the proxy makes itself.
	Response(*Stream)
}

// Begin prepares the stream for a request with the filters of its chain and the codec's own last changes to response heads.
func (s *Stream) Begin(filters []HTTP, finish func(*Stream)) {
	s.filters, s.finish = filters, finish
	s.headWritten.Store(false)
	s.AttemptCount, s.GRPCCode = 0, 0
	s.PeerID, s.PeerMetadata, s.PeerAsked = nil, nil, false
}

// Clear forgets the exchange and keeps the memory.
func (s *Stream) Clear() {
	s.Req.Reset()
	s.Resp.Reset()
	s.Conn, s.HTTP, s.In, s.Out = nil, nil, nil, nil
	s.Rec = telemetry.Record{}
	s.Begin(nil, nil)
	s.Scheme, s.Internal, s.CloseAfter = nil, false, false
}

// WriteHead runs the response filters over s.Resp and writes the head.
func (s *Stream) WriteHead() {
	for i := len(s.filters) - 1; i >= 0; i-- {
		s.filters[i].Response(s)
	}
	s.finish(s)
	s.headWritten.Store(true)
	if s.Conn.Chain.Draining() {
		s.CloseAfter = true
	}
	s.Rec.Status = s.Resp.Status
	s.Rec.Resp = &s.Resp
	if s.Rec.GRPC {
		s.Settled() // there is no other try after this
	}
	s.Out.Response(&s.Resp, s.Req.Minor, s.Req.IsHead, s.CloseAfter)
}

// Reply answers with a body of the proxy's own. details is Envoy's %RESPONSE_CODE_DETAILS%.
func (s *Stream) Reply(code int, body []byte, contentType, details string) {
	s.Resp.Reset()
	s.ReplyWith(code, body, contentType, details)
}

// ReplyWith is Reply with the headers that s.Resp already holds.
func (s *Stream) ReplyWith(code int, body []byte, contentType, details string) {
	r := &s.Resp
	if GRPC(&s.Req) {
		s.replyGRPC(code, body, details)
		return
	}
	r.Status, r.Framing, r.Length = code, http1.Length, int64(len(body))
	if len(body) == 0 {
		r.Framing = http1.NoBody
	}
	if len(body) > 0 {
		r.Set([]byte("content-type"), []byte(contentType))
	}
	s.Rec.Details = details
	if s.Req.IsHead || code == 204 || code == 304 {
		r.Framing = http1.NoBody
		body = nil
	}
	s.WriteHead()
	_ = s.Out.Body(body) // errors stick to the Writer; Flush returns them
	_ = s.Out.End(nil)
	s.Rec.BytesOut += int64(len(body))
}
