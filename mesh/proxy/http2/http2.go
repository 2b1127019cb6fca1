// Package http2 is the proxy's HTTP/2 codec (RFC 9113), for both sides of a connection. It reads and writes the same
// messages as package http1: a Stream gives a head, then pieces of a body, then trailers, and takes the same.
//
// One goroutine reads a connection and one writes it; streams append to what the writer sends next, so that many small
// frames become one write. A body waits for the peer's windows and for the writer: that is the back pressure. What a peer
// may make this side hold is bounded by windows, by limits of heads, and by the number of streams.
package http2

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"
)

// Options of a connection. Zero fields take the defaults.
type Options struct {
	MaxStreams     uint32 // that the peer may have open; default 1024
	MaxHeaderBytes int    // of a decoded head; default 60 KiB
	MaxHeaders     int    // default 100
	Window         int32  // of a stream, in bytes; default 256 KiB
	ConnWindow     int32  // of the connection; default 16 MiB
	// Idle ends a server connection that had no stream for so long (a quarter later at most); 0 never.
	Idle time.Duration
	// Life ends a server connection politely after so long; 0 never.
	Life time.Duration
	// KeepAlive is how often a connection with streams is pinged; one that gives no answer before KeepAliveTimeout is
	// closed. 0 never.
	KeepAlive, KeepAliveTimeout time.Duration
	// Changed is called, without locks, when a client connection may have got or lost room for streams.
	Changed func()
}

func (o Options) withDefaults() Options {
	set := func(p *int32, v int32) {
		if *p <= 0 {
			*p = v
		}
	}
	if o.MaxStreams == 0 {
		o.MaxStreams = 1024
	}
	if o.MaxHeaderBytes <= 0 {
		o.MaxHeaderBytes = 60 << 10
	}
	if o.MaxHeaders <= 0 {
		o.MaxHeaders = 100
	}
	set(&o.Window, 256<<10)
	set(&o.ConnWindow, 16<<20)
	if o.KeepAliveTimeout <= 0 {
		o.KeepAliveTimeout = 15 * time.Second
	}
	return o
}

// Preface is what a client's connection begins with (RFC 9113 section 3.4).
const Preface = http2.ClientPreface

// Limits against peers that make work without making requests.
const (
	maxFrame        = 16 << 10  // that is read and written
	highWater       = 256 << 10 // unwritten bytes that stop bodies
	maxQuiet        = 2000      // frames in a second that bring nothing: PING, SETTINGS, PRIORITY, empty DATA, heads that come late
	maxUnwritten    = 1 << 20   // bytes that the peer does not read: such frames end the connection then, requests wait
	minResets       = 500       // streams that were cancelled early before their share counts
	remembered      = 64        // streams that were reset here: what is still on its way to them is ignored
	maxWindow       = 1<<31 - 1
	initialWindow   = 64<<10 - 1
	goAwayWait      = time.Second // for what the peer sent before it heard of the first GOAWAY
	maxContinuation = 2           // times MaxHeaderBytes: of a header block on the wire
)

// ErrUnprocessed is the failure of a request that the peer did not look at: it may be sent again, whatever its method.
var ErrUnprocessed = errors.New("http2: the connection ended before the request was processed")

// ErrClosed is the failure of streams on a connection that ended.
var ErrClosed = errors.New("http2: connection closed")

// ResetError is a stream that the peer reset.
type ResetError struct{ Code http2.ErrCode }

func (e *ResetError) Error() string { return fmt.Sprintf("http2: stream reset by peer: %v", e.Code) }

// Refused reports whether err is a stream that the peer refused before it did anything with it (RFC 9113 section 8.7).
func Refused(err error) bool {
	var r *ResetError
	return errors.As(err, &r) && r.Code == http2.ErrCodeRefusedStream
}

// connError ends a connection with a GOAWAY of its code.
type connError struct {
	code http2.ErrCode
	why  string
}

func (e *connError) Error() string { return fmt.Sprintf("http2: %v: %s", e.code, e.why) }

func violation(code http2.ErrCode, why string) error { return &connError{code, why} }
