package http1

import (
	"errors"
	"io"
)

// body is the state of the body that is being read.
type body struct {
	framing  Framing
	left     int64 // of the body or of the chunk
	crlf     bool  // the line end after a chunk's bytes is due
	tail     bool  // the last chunk was read, trailers follow
	total    int   // bytes of trailers
	trailers *Header
	lim      Limits
}

// BodyDone reports whether the current message was read to its end.
func (r *Reader) BodyDone() bool { return r.body.framing == NoBody }

// BodyBuffered reports whether the rest of the current body already lies in the buffer, so that reading it cannot block.
// Chunked bodies count as not buffered unless they are done.
func (r *Reader) BodyBuffered() bool {
	switch r.body.framing {
	case NoBody:
		return true
	case Length:
		return r.body.left <= int64(r.Buffered())
	default:
		return false
	}
}

// NextBody returns the next piece of the body, at most once around a read of the source. It is valid until the next
// call on the Reader. io.EOF is the end of the body; trailers are in the message then.
func (r *Reader) NextBody() ([]byte, error) {
	b := &r.body
	switch b.framing {
	case NoBody:
		return nil, io.EOF
	case Length:
		p, err := r.piece(b.left)
		if err != nil {
			return nil, unexpected(err)
		}
		if b.left -= int64(len(p)); b.left == 0 {
			b.framing = NoBody
		}
		return p, nil
	case UntilClose:
		p, err := r.piece(1 << 62)
		if errors.Is(err, io.EOF) {
			b.framing = NoBody
			return nil, io.EOF
		}
		return p, err
	}
	if b.left == 0 {
		if err := r.chunkHead(); err != nil {
			return nil, unexpected(err)
		}
		if b.framing == NoBody {
			return nil, io.EOF
		}
	}
	p, err := r.piece(b.left)
	if err != nil {
		return nil, unexpected(err)
	}
	if b.left -= int64(len(p)); b.left == 0 && r.w-r.r >= 2 && r.buf[r.r] == '\r' && r.buf[r.r+1] == '\n' {
		// The chunk's end goes with it: what is buffered then is more of the message, and a sender that pauses here has nothing
		// more to wait for.
		r.r += 2
		b.crlf = false
	}
	return p, nil
}

// piece returns what is buffered, or reads once.
func (r *Reader) piece(most int64) ([]byte, error) {
	if r.r == r.w {
		if most > 4*bufSize && len(r.buf) < 4*bufSize {
			r.grow(4 * bufSize) // a large body: fewer system calls
		}
		if err := r.fill(bufSize); err != nil {
			return nil, err
		}
	}
	n := int64(r.w - r.r)
	if n > most {
		n = most
	}
	p := r.buf[r.r : r.r+int(n)]
	r.r += int(n)
	return p, nil
}

// maxChunkLine bounds a chunk's size line with its extensions.
const maxChunkLine = 4 << 10

// chunkHead reads the end of the chunk before, the next size line and, after the last chunk, the trailers.
func (r *Reader) chunkHead() error {
	b := &r.body
	// Each step is noted before the next begins: a read that a deadline interrupts is taken up again here.
	if b.crlf {
		line, err := r.line(2)
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return ErrBadChunk
		}
		b.crlf = false
	}
	if !b.tail {
		line, err := r.line(maxChunkLine)
		if err != nil {
			return err
		}
		size, ok := chunkSize(line)
		if !ok {
			return ErrBadChunk
		}
		if size > 0 {
			b.left, b.crlf = size, true
			return nil
		}
		b.tail = true
	}
	for {
		line, err := r.line(b.lim.HeadBytes)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			b.framing = NoBody
			return nil
		}
		if b.total += len(line); b.total > b.lim.HeadBytes {
			return ErrHeadTooLarge
		}
		cp := append(b.trailers.Scratch(), line...)
		cp = append(cp, '\n', '\n')
		if err := parseFields(b.trailers, b.trailers.Take(cp), b.lim.Headers); err != nil {
			return err
		}
	}
}

// line returns the next line without its end. CRLF only: a bare LF in chunk framing is a known way to smuggle.
func (r *Reader) line(limit int) ([]byte, error) {
	scanned := 0
	for {
		b := r.buf[r.r:r.w]
		for i := scanned; i < len(b); i++ {
			if b[i] != '\n' {
				continue
			}
			if i == 0 || b[i-1] != '\r' {
				return nil, ErrBadChunk
			}
			r.r += i + 1
			return b[:i-1], nil
		}
		if scanned = len(b); scanned > limit {
			return nil, ErrBadChunk
		}
		if err := r.fill(limit + bufSize); err != nil {
			return nil, err
		}
	}
}

func chunkSize(line []byte) (int64, bool) {
	var n int64
	i := 0
	for ; i < len(line); i++ {
		var d byte
		switch c := line[i]; {
		case c >= '0' && c <= '9':
			d = c - '0'
		case c >= 'a' && c <= 'f':
			d = c - 'a' + 10
		case c >= 'A' && c <= 'F':
			d = c - 'A' + 10
		default:
			goto end
		}
		if i == 15 {
			return 0, false
		}
		n = n<<4 | int64(d)
	}
end:
	if i == 0 {
		return 0, false
	}
	for ; i < len(line); i++ {
		switch c := line[i]; {
		case c == ';':
			for _, c := range line[i:] {
				if c < ' ' && c != '\t' || c == 0x7f {
					return 0, false
				}
			}
			return n, true
		case c != ' ' && c != '\t':
			return 0, false
		}
	}
	return n, true
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return ErrUnexpectedEOF
	}
	return err
}
