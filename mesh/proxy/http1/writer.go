package http1

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// Writer writes messages to one connection, gathering small parts into one write. It is not safe for concurrent use.
type Writer struct {
	dst     io.Writer
	buf     []byte
	own     *[]byte
	chunked bool
	bare    bool // the response has no body: what is given for it goes nowhere
	err     error
	// Written counts the bytes handed to the connection.
	Written int64
}

// NewWriter returns a Writer on dst. Its memory is taken from a pool while something waits to be flushed.
func NewWriter(dst io.Writer) *Writer { return &Writer{dst: dst} }

func (w *Writer) room(n int) {
	if w.own == nil {
		w.own = bufs.Get().(*[]byte)
		w.buf = (*w.own)[:0]
	}
	if len(w.buf)+n > cap(w.buf) && len(w.buf) > 0 {
		w.flush()
	}
}

func (w *Writer) flush() {
	if len(w.buf) > 0 && w.err == nil {
		var n int
		n, w.err = w.dst.Write(w.buf)
		w.Written += int64(n)
	}
	w.buf = w.buf[:0]
}

// Flush writes what was gathered and gives the memory back. It returns the first error of the Writer.
func (w *Writer) Flush() error {
	w.flush()
	if w.own != nil {
		if cap(w.buf) == len(*w.own) {
			bufs.Put(w.own)
		}
		w.own, w.buf = nil, nil
	}
	return w.err
}

// Err is the first error.
func (w *Writer) Err() error { return w.err }

// Abort fails writes from now on, and one that waits, where the destination has deadlines.
func (w *Writer) Abort() {
	if d, ok := w.dst.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = d.SetWriteDeadline(time.Unix(1, 0))
	}
}

// Buffered is how many bytes wait for Flush.
func (w *Writer) Buffered() int { return len(w.buf) }

// hop reports fields that belong to one connection: the codec writes its own.
func hop(name []byte) bool {
	switch len(name) {
	case 2:
		return string(name) == "te"
	case 4:
		return string(name) == "host"
	case 7:
		return string(name) == "upgrade"
	case 10:
		return string(name) == "connection" || string(name) == "keep-alive"
	case 14:
		return string(name) == "content-length"
	case 16:
		return string(name) == "proxy-connection"
	case 17:
		return string(name) == "transfer-encoding"
	}
	return false
}

// HeadTE keeps "te: trailers", the only value that may pass a proxy.
func te(value []byte) bool { return asciiEqualFold(value, "trailers") }

func (w *Writer) fields(h *Header) {
	for i := range h.Fields {
		f := &h.Fields[i]
		if hop(f.Name) && (len(f.Name) != 2 || !te(f.Value)) {
			continue
		}
		w.field(f.Name, f.Value)
	}
}

func (w *Writer) field(name, value []byte) {
	if len(w.buf)+len(name)+len(value)+4 > cap(w.buf) {
		w.room(len(name) + len(value) + 4)
	}
	b := append(w.buf, name...)
	b = append(b, ':', ' ')
	b = append(b, value...)
	w.buf = append(b, '\r', '\n')
}

// Request writes the head of q. Framing, Length, Host, Method and Target are taken from q's own fields; an Upgrade is passed on.
func (w *Writer) Request(q *Request) {
	w.room(len(q.Method) + len(q.Target) + len(q.Host) + 64)
	b := append(w.buf, q.Method...)
	b = append(b, ' ')
	b = append(b, q.Target...)
	b = append(b, " HTTP/1.1\r\nhost: "...)
	b = append(b, q.Host...)
	w.buf = append(b, '\r', '\n')
	w.fields(&q.Header)
	w.framing(q.Framing, q.Length)
	if q.Framing == NoBody {
		switch string(q.Method) {
		case "POST", "PUT", "PATCH": // RFC 9110 section 8.6: say so when a body would be expected
			w.buf = append(w.buf, "content-length: 0\r\n"...)
		}
	}
	if q.Upgrade != nil {
		w.buf = append(w.buf, "connection: Upgrade\r\nupgrade: "...)
		w.buf = append(append(w.buf, q.Upgrade...), '\r', '\n')
	}
	w.buf = append(w.buf, '\r', '\n')
}

// Response writes the head of p for a client that sent an HTTP/1.minor request. close ends the connection after it.
// When the framing cannot be told to the client (UntilClose), chunked is used for 1.1 and the connection ends for 1.0.
// toHead says that the request was a HEAD: the head tells of the body, which is not written.
func (w *Writer) Response(p *Response, minor int, toHead, close bool) {
	w.room(len(p.Reason) + 64)
	b := append(w.buf, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(p.Status), 10)
	b = append(b, ' ')
	if p.Reason != nil {
		b = append(b, p.Reason...)
	} else {
		b = append(b, http.StatusText(p.Status)...)
	}
	w.buf = append(b, '\r', '\n')
	w.fields(&p.Header)
	w.room(64)
	w.bare = p.Bodiless(toHead)
	switch {
	case p.Status < 200 || p.Status == 204: // RFC 9110 section 8.6, RFC 9112 section 6.1
		w.chunked = false
	case p.Framing == NoBody:
		if p.Length >= 0 || !w.bare {
			w.framing(Length, max(p.Length, 0)) // else the client would wait for the connection's end
		}
		w.chunked = false
	case p.Framing == UntilClose || p.Framing == Chunked:
		if minor == 0 {
			w.chunked = false
		} else {
			w.framing(Chunked, 0)
		}
	default:
		w.framing(Length, p.Length)
	}
	w.chunked = w.chunked && !w.bare
	switch {
	case p.Status == 101 && p.Upgrade != nil:
		w.buf = append(w.buf, "connection: Upgrade\r\nupgrade: "...)
		w.buf = append(append(w.buf, p.Upgrade...), '\r', '\n')
	case close:
		w.buf = append(w.buf, "connection: close\r\n"...)
	case minor == 0:
		w.buf = append(w.buf, "connection: keep-alive\r\n"...)
	}
	w.buf = append(w.buf, '\r', '\n')
}

func (w *Writer) framing(f Framing, n int64) {
	w.room(64)
	w.chunked = f == Chunked
	switch f {
	case Chunked:
		w.buf = append(w.buf, "transfer-encoding: chunked\r\n"...)
	case Length:
		w.buf = append(w.buf, "content-length: "...)
		w.buf = strconv.AppendInt(w.buf, n, 10)
		w.buf = append(w.buf, '\r', '\n')
	}
}

// Continue writes an interim 100 response and flushes it.
func (w *Writer) Continue() error {
	w.room(32)
	w.buf = append(w.buf, "HTTP/1.1 100 Continue\r\n\r\n"...)
	return w.Flush()
}

// Body writes a piece of the body in the framing of the head. Large pieces go out at once, small ones wait for Flush.
func (w *Writer) Body(p []byte) error {
	if len(p) == 0 || w.bare {
		return w.err
	}
	if w.chunked {
		w.room(20)
		w.buf = strconv.AppendInt(w.buf, int64(len(p)), 16)
		w.buf = append(w.buf, '\r', '\n')
	}
	w.raw(p)
	if w.chunked {
		w.room(2)
		w.buf = append(w.buf, '\r', '\n')
	}
	return w.err
}

func (w *Writer) raw(p []byte) {
	if w.own == nil {
		w.room(0)
	}
	if len(w.buf)+len(p) <= cap(w.buf) {
		w.buf = append(w.buf, p...)
		return
	}
	// Fill the buffer so that head and first bytes share a segment, then send the rest without a copy.
	n := min(cap(w.buf)-len(w.buf), len(p))
	w.buf = append(w.buf, p[:n]...)
	w.flush()
	if rest := p[n:]; w.err == nil {
		var k int
		k, w.err = w.dst.Write(rest)
		w.Written += int64(k)
	}
}

// End ends the body. Trailers are written when the framing is chunked; nil means none. It does not flush.
func (w *Writer) End(trailers *Header) error {
	if w.chunked {
		w.room(8)
		w.buf = append(w.buf, "0\r\n"...)
		if trailers != nil {
			for i := range trailers.Fields {
				if f := &trailers.Fields[i]; !hop(f.Name) {
					w.field(f.Name, f.Value)
				}
			}
		}
		w.room(2)
		w.buf = append(w.buf, '\r', '\n')
	}
	w.chunked = false
	return w.err
}
