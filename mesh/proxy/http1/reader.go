package http1

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"
)

const bufSize = 8 << 10

var bufs = sync.Pool{New: func() any { b := make([]byte, bufSize); return &b }}

// Reader reads messages from one connection. It is not safe for concurrent use.
type Reader struct {
	src  io.Reader
	buf  []byte
	own  *[]byte // of bufs, when buf is pooled
	r, w int
	body body
}

// NewReader returns a Reader on src. Release gives its memory back.
func NewReader(src io.Reader) *Reader { return &Reader{src: src} }

// Prefill puts bytes that were read from the source before (by an inspector) in front.
func (r *Reader) Prefill(b []byte) {
	if len(b) == 0 {
		return
	}
	r.need()
	if len(r.buf)-r.w < len(b) {
		r.grow(r.w + len(b))
	}
	r.w += copy(r.buf[r.w:], b)
}

// SetReadDeadline bounds reads of the source, where that has deadlines.
func (r *Reader) SetReadDeadline(t time.Time) error {
	if d, ok := r.src.(interface{ SetReadDeadline(time.Time) error }); ok {
		return d.SetReadDeadline(t)
	}
	return nil
}

// Peek returns what is buffered and not used yet; it is valid until the next read.
func (r *Reader) Peek() []byte { return r.buf[r.r:r.w] }

// More reads once from the source, to what is buffered.
func (r *Reader) More() error { return r.fill(bufSize) }

// Buffered returns how many bytes were read from the source and not used yet.
func (r *Reader) Buffered() int { return r.w - r.r }

// TakeBuffered returns a copy of the unread bytes and empties the buffer: for a connection that leaves HTTP.
func (r *Reader) TakeBuffered() []byte {
	b := bytes.Clone(r.buf[r.r:r.w])
	r.r, r.w = 0, 0
	return b
}

// Release gives the buffer back when nothing unread is in it. The Reader stays usable.
func (r *Reader) Release() {
	if r.r != r.w || r.buf == nil {
		return
	}
	r.r, r.w = 0, 0
	if r.own != nil {
		bufs.Put(r.own)
	}
	r.buf, r.own = nil, nil
}

func (r *Reader) need() {
	if r.buf == nil {
		r.own = bufs.Get().(*[]byte)
		r.buf = *r.own
	}
}

func (r *Reader) grow(atLeast int) {
	n := max(2*len(r.buf), atLeast)
	b := make([]byte, n)
	r.w = copy(b, r.buf[r.r:r.w])
	r.r = 0
	if r.own != nil {
		bufs.Put(r.own)
		r.own = nil
	}
	r.buf = b
}

// fill reads once, making room first. limit bounds how much may lie unread.
func (r *Reader) fill(limit int) error {
	r.need()
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if r.w == len(r.buf) {
		if r.r > 0 {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		} else if len(r.buf) >= limit {
			return ErrHeadTooLarge
		} else {
			r.grow(0)
		}
	}
	n, err := r.src.Read(r.buf[r.w:])
	if n > 0 {
		r.w += n
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// head reads until a complete head is buffered and returns it with its closing empty line. The slice is valid until
// the next read. io.EOF means that the source ended before the first byte.
func (r *Reader) head(limit int) ([]byte, error) {
	if r.body.framing != NoBody {
		return nil, errBodyNotFinished
	}
	scanned := 0
	for {
		// One or more empty lines before a start line are skipped (RFC 9112 section 2.2).
		for scanned == 0 && r.r < r.w && (r.buf[r.r] == '\r' || r.buf[r.r] == '\n') {
			if r.buf[r.r] == '\r' {
				if r.r+1 == r.w {
					break
				}
				if r.buf[r.r+1] != '\n' {
					return nil, ErrBadStartLine
				}
				r.r++
			}
			r.r++
		}
		if b := r.buf[r.r:r.w]; len(b) > scanned {
			from := max(scanned-3, 0)
			if i := endOfHead(b[from:]); i >= 0 {
				end := from + i
				if end > limit {
					return nil, ErrHeadTooLarge
				}
				r.r += end
				return b[:end], nil
			}
			if len(b) > 1 || b[0] != '\r' { // a lone CR may still begin an empty line
				scanned = len(b)
			}
			if scanned > limit {
				return nil, ErrHeadTooLarge
			}
		}
		if err := r.fill(limit + bufSize); err != nil {
			if errors.Is(err, io.EOF) && r.r != r.w {
				return nil, ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// endOfHead returns the index after the empty line that ends a head, or -1. Lines may end in LF alone (RFC 9112 2.2).
func endOfHead(b []byte) int {
	off := 0
	for {
		i := bytes.IndexByte(b[off:], '\n')
		if i < 0 {
			return -1
		}
		i += off + 1
		switch {
		case i < len(b) && b[i] == '\n':
			return i + 1
		case i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n':
			return i + 2
		}
		off = i
	}
}

// Wait blocks until at least one byte of the next message is buffered.
func (r *Reader) Wait() error {
	if r.r < r.w {
		return nil
	}
	return r.fill(bufSize)
}
