// Package http1 is the proxy's HTTP/1.1 codec: heads are parsed in place, bodies stream through without a copy.
//
// What could be read in two ways by two parties is refused: Content-Length next to Transfer-Encoding, folded header
// lines, bare CR, white space before the colon, several differing lengths (RFC 9112 sections 2.2, 5.1, 5.2, 6.1, 6.3).
package http1

import "errors"

// Limits of a message head.
type Limits struct {
	HeadBytes int // of the whole head
	Headers   int
	HTTP10    bool // accept HTTP/1.0 requests
}

// DefaultLimits are Envoy's.
var DefaultLimits = Limits{HeadBytes: 60 << 10, Headers: 100}

// ParseError is a request or response that cannot be read. The codec of the listener answers requests with Status.
type ParseError struct {
	Status int
	Detail string // in Envoy's words: the %RESPONSE_CODE_DETAILS% of the answer
}

func (e *ParseError) Error() string { return "http1: " + e.Detail }

// Errors of the codec. All but ErrUnexpectedEOF are *ParseError.
var (
	ErrHeadTooLarge    = &ParseError{431, "http1.headers_too_large"}
	ErrTooManyHeaders  = &ParseError{431, "http1.too_many_headers"}
	ErrBadStartLine    = &ParseError{400, "http1.codec_error.invalid_start_line"}
	ErrBadHeader       = &ParseError{400, "http1.codec_error.invalid_header"}
	ErrFolded          = &ParseError{400, "http1.codec_error.obs_fold"}
	ErrLengthConflict  = &ParseError{400, "http1.content_length_and_chunked_not_allowed"}
	ErrBadLength       = &ParseError{400, "http1.codec_error.invalid_content_length"}
	ErrBadTransfer     = &ParseError{501, "http1.invalid_transfer_encoding"}
	ErrBadChunk        = &ParseError{400, "http1.codec_error.invalid_chunk"}
	ErrVersion         = &ParseError{505, "http1.codec_error.unsupported_version"}
	ErrHTTP10          = &ParseError{426, "low_version"}
	ErrHTTP2Preface    = &ParseError{400, "http1.codec_error.http2_preface"}
	ErrBadStatus       = &ParseError{502, "http1.codec_error.invalid_status"}
	ErrBadConnection   = &ParseError{400, "http1.connection_header_rejected"}
	ErrBadHost         = &ParseError{400, "invalid_authority"}
	ErrUnexpectedEOF   = errors.New("http1: connection ended within a message")
	errBodyNotFinished = errors.New("http1: body not read to its end")
)

// Framing is how the end of a body is known.
type Framing uint8

// The framings of RFC 9112 section 6.
const (
	NoBody Framing = iota
	Length
	Chunked
	UntilClose
)

// Request is one request head. It is reused: Reset before reading the next.
type Request struct {
	Header
	Method   []byte
	Target   []byte // origin form after an absolute form was taken apart
	Scheme   []byte // of an absolute form, else nil
	Host     []byte // lower case is not forced
	Major    int    // 2 is HTTP/2; else it is HTTP/1
	Minor    int    // HTTP/1.Minor
	Framing  Framing
	Length   int64
	Close    bool   // the client will not use the connection again
	Upgrade  []byte // protocol of an Upgrade header that Connection names; nil when none
	Expect   bool   // 100-continue
	IsHead   bool
	TooLarge bool // the head was beyond the limits and its fields are lost (HTTP/2)
	Trailers Header
	Bytes    int // of the head on the wire
}

// Response is one response head. It is reused: Reset before reading the next.
type Response struct {
	Header
	Status   int
	Reason   []byte
	Major    int // as in Request
	Minor    int
	Framing  Framing
	Length   int64 // also of a body that is not there; -1 not told
	Close    bool
	Upgrade  []byte
	Trailers Header
	Bytes    int
}

// Bodiless reports whether the response ends with its head whatever its fields say (RFC 9110 section 6.4.1). toHead says that
// the request was a HEAD.
func (p *Response) Bodiless(toHead bool) bool {
	return toHead || p.Status < 200 || p.Status == 204 || p.Status == 304
}

// Reset makes the request ready to be read into.
func (q *Request) Reset() {
	h, t := q.Header, q.Trailers
	h.Reset()
	t.Reset()
	*q = Request{Header: h, Trailers: t}
}

// Reset makes the response ready to be read into.
func (p *Response) Reset() {
	h, t := p.Header, p.Trailers
	h.Reset()
	t.Reset()
	*p = Response{Header: h, Trailers: t}
}
