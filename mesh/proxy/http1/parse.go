package http1

import (
	"bytes"
	"errors"
)

// tokenTable maps a byte of a header name to its lower case, or 0 when it may not stand there (RFC 9110 section 5.6.2).
var tokenTable = func() (t [256]byte) {
	for c := byte('a'); c <= 'z'; c++ {
		t[c], t[c-32] = c, c
	}
	for c := byte('0'); c <= '9'; c++ {
		t[c] = c
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = c
	}
	return t
}()

// ReadRequest reads one request head into q, which must be Reset. io.EOF means a clean end between requests.
func (r *Reader) ReadRequest(q *Request, lim Limits) error {
	head, err := r.head(lim.HeadBytes)
	if err != nil {
		return err
	}
	q.Bytes = len(head)
	// The head is copied once, so that it outlives the reads of the body; every slice of q points into the copy.
	head = q.Copy(head)
	line, rest := cutLine(head)
	if err := q.startLine(line, lim); err != nil {
		return err
	}
	if err := parseFields(&q.Header, rest, lim.Headers); err != nil {
		return err
	}
	if err := q.finish(); err != nil {
		return err
	}
	r.body = body{framing: q.Framing, left: q.Length, trailers: &q.Trailers, lim: lim}
	return nil
}

// ReadResponse reads one response head into p, which must be Reset. head says that the request was a HEAD.
// Interim (1xx) responses are returned like any other; they have no body.
func (r *Reader) ReadResponse(p *Response, lim Limits, toHead bool) error {
	head, err := r.head(lim.HeadBytes)
	if err != nil {
		return err
	}
	p.Bytes = len(head)
	head = p.Copy(head)
	line, rest := cutLine(head)
	if err := p.statusLine(line); err != nil {
		return err
	}
	if err := parseFields(&p.Header, rest, lim.Headers); err != nil {
		return err
	}
	if err := p.finish(toHead); err != nil {
		return err
	}
	r.body = body{framing: p.Framing, left: p.Length, trailers: &p.Trailers, lim: lim}
	return nil
}

func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil
	}
	line, rest = b[:i], b[i+1:]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, rest
}

func (q *Request) startLine(line []byte, lim Limits) error {
	i := bytes.IndexByte(line, ' ')
	if i <= 0 {
		return ErrBadStartLine
	}
	j := bytes.LastIndexByte(line, ' ')
	if j <= i {
		return ErrBadStartLine
	}
	q.Method, q.Target = line[:i], line[i+1:j]
	for _, c := range q.Method {
		if tokenTable[c] == 0 {
			return ErrBadStartLine
		}
	}
	for _, c := range q.Target {
		if c <= ' ' || c == 0x7f {
			return ErrBadStartLine
		}
	}
	switch string(line[j+1:]) {
	case "HTTP/1.1":
		q.Minor = 1
	case "HTTP/1.0":
		if !lim.HTTP10 {
			return ErrHTTP10
		}
		q.Close = true
	case "HTTP/2.0":
		return ErrHTTP2Preface
	default:
		return ErrVersion
	}
	q.IsHead = string(q.Method) == "HEAD"
	return q.target()
}

// target takes an absolute form apart (RFC 9112 section 3.2.2): its authority replaces Host.
func (q *Request) target() error {
	if len(q.Target) == 0 {
		return ErrBadStartLine
	}
	if q.Target[0] == '/' || string(q.Target) == "*" || string(q.Method) == "CONNECT" {
		return nil
	}
	i := bytes.Index(q.Target, []byte("://"))
	if i <= 0 {
		return ErrBadStartLine
	}
	scheme := q.Target[:i]
	if !asciiEqualFold(scheme, "http") && !asciiEqualFold(scheme, "https") {
		return ErrBadStartLine
	}
	rest := q.Target[i+3:]
	end := bytes.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	if end == 0 || bytes.IndexByte(rest[:end], '@') >= 0 {
		return ErrBadStartLine
	}
	q.Scheme, q.Host, q.Target = scheme, rest[:end], rest[end:]
	switch {
	case len(q.Target) == 0:
		q.Target = []byte("/")
	case q.Target[0] != '/':
		q.Target = append([]byte("/"), q.Target...)
	}
	return nil
}

func (p *Response) statusLine(line []byte) error {
	// HTTP/1.x SP 3DIGIT [SP reason]
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' {
		return ErrBadStatus
	}
	switch line[7] {
	case '1':
		p.Minor = 1
	case '0':
		p.Close = true
	default:
		return ErrBadStatus
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return ErrBadStatus
		}
		p.Status = p.Status*10 + int(c-'0')
	}
	if p.Status < 100 || (len(line) > 12 && line[12] != ' ') {
		return ErrBadStatus
	}
	if len(line) > 13 {
		p.Reason = line[13:]
	}
	for _, c := range p.Reason { // a bare CR would end the line for some clients
		if c < ' ' && c != '\t' || c == 0x7f {
			return ErrBadStatus
		}
	}
	return nil
}

// parseFields appends the fields of rest, lowering their names in place.
func parseFields(h *Header, rest []byte, limit int) error {
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			return ErrBadHeader
		}
		line := rest[:i]
		rest = rest[i+1:]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		if len(line) == 0 {
			return nil
		}
		if line[0] == ' ' || line[0] == '\t' {
			return ErrFolded
		}
		n := 0
		for n < len(line) {
			c := tokenTable[line[n]]
			if c == 0 {
				break
			}
			line[n] = c
			n++
		}
		if n == 0 || n == len(line) || line[n] != ':' {
			return ErrBadHeader
		}
		value := line[n+1:]
		for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
			value = value[1:]
		}
		for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
			value = value[:len(value)-1]
		}
		for _, c := range value {
			if c < ' ' && c != '\t' || c == 0x7f {
				return ErrBadHeader
			}
		}
		if len(h.Fields) >= limit {
			return ErrTooManyHeaders
		}
		h.Fields = append(h.Fields, Field{line[:n:n], value})
	}
}

// framing is what the fields say about the body and the connection.
type framing struct {
	length           int64
	hasLength        bool
	chunked          bool
	close, keepAlive bool
	upgradeNamed     bool
	named            bool // Connection has other words than those
	upgrade          []byte
	expect           bool
	hosts            int
	host             []byte
}

func (f *framing) read(h *Header) error {
	coded := false
	for i := range h.Fields {
		name, value := h.Fields[i].Name, h.Fields[i].Value
		switch len(name) {
		case 4:
			if string(name) == "host" {
				f.hosts++
				f.host = value
			}
		case 6:
			if string(name) == "expect" && asciiEqualFold(value, "100-continue") {
				f.expect = true
			}
		case 7:
			if string(name) == "upgrade" {
				f.upgrade = value
			}
		case 10:
			if string(name) == "connection" {
				f.connection(value)
			}
		case 14:
			if string(name) == "content-length" {
				n, ok := parseLength(value)
				if !ok || (f.hasLength && n != f.length) {
					return ErrBadLength
				}
				f.length, f.hasLength = n, true
			}
		case 17:
			if string(name) == "transfer-encoding" {
				if coded || !asciiEqualFold(value, "chunked") {
					return ErrBadTransfer
				}
				coded, f.chunked = true, true
			}
		}
	}
	if f.chunked && f.hasLength {
		return ErrLengthConflict
	}
	return nil
}

func (f *framing) connection(value []byte) {
	for len(value) > 0 {
		var tok []byte
		switch tok, value = cutToken(value); {
		case len(tok) == 0:
		case asciiEqualFold(tok, "close"):
			f.close = true
		case asciiEqualFold(tok, "keep-alive"):
			f.keepAlive = true
		case asciiEqualFold(tok, "upgrade"):
			f.upgradeNamed = true
		default:
			f.named = true
		}
	}
}

// cutToken takes the first element off a list.
func cutToken(list []byte) (tok, rest []byte) {
	tok, rest, _ = bytes.Cut(list, []byte(","))
	return bytes.Trim(tok, " \t"), rest
}

// maxNamed words of Connection are too many in a request, as for Envoy.
const maxNamed = 10

// dropNamed removes the fields that Connection names (RFC 9110 section 7.6.1); those that the writer drops anyway are left to it.
// Like Envoy it refuses a request that names many, or that names what tells where it comes from.
func (h *Header) dropNamed(request bool) error {
	n := 0
	for i := range h.Fields {
		if string(h.Fields[i].Name) != "connection" {
			continue
		}
		var tok []byte
		for rest := h.Fields[i].Value; len(rest) > 0; {
			if tok, rest = cutToken(rest); len(tok) == 0 {
				continue
			}
			if n++; request && (n >= maxNamed || vital(tok)) {
				return ErrBadConnection
			}
			for j := range h.Fields {
				if f := &h.Fields[j]; sameName(tok, f.Name) && !hop(f.Name) {
					f.Name = nil
				}
			}
		}
	}
	h.Del(nil)
	return nil
}

// vital are the fields that a client may not have removed.
func vital(tok []byte) bool {
	if tok[0] == ':' {
		return true
	}
	for _, name := range [...]string{"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"} {
		if asciiEqualFold(tok, name) {
			return true
		}
	}
	return false
}

// sameName reports whether tok is name, which is lower case.
func sameName(tok, name []byte) bool {
	if len(tok) != len(name) {
		return false
	}
	for i, c := range tok {
		if tokenTable[c] != name[i] {
			return false
		}
	}
	return true
}

func (q *Request) finish() error {
	var f framing
	if err := f.read(&q.Header); err != nil {
		return err
	}
	if f.named {
		if err := q.dropNamed(true); err != nil {
			return err
		}
	}
	if f.hosts > 1 || (f.hosts == 0 && q.Minor == 1 && q.Host == nil) {
		return ErrBadHost
	}
	if q.Host == nil {
		q.Host = f.host
	}
	for _, c := range q.Host {
		if c <= ' ' || c == '/' || c == '@' || c == '?' || c == '#' || c == ',' {
			return ErrBadHost
		}
	}
	switch {
	case f.chunked:
		if q.Minor == 0 {
			return ErrBadTransfer
		}
		q.Framing = Chunked
	case f.hasLength && f.length > 0:
		q.Framing, q.Length = Length, f.length
	}
	if f.close {
		q.Close = true
	} else if q.Minor == 0 && f.keepAlive {
		q.Close = false
	}
	if f.upgradeNamed && len(f.upgrade) > 0 {
		q.Upgrade = f.upgrade
	}
	q.Expect = f.expect && q.Minor == 1
	return nil
}

func (p *Response) finish(toHead bool) error {
	var f framing
	if err := f.read(&p.Header); err != nil {
		// The status of a broken answer is ours: 502 belongs to the upstream whatever the client sent.
		var pe *ParseError
		if errors.As(err, &pe) {
			return &ParseError{502, pe.Detail}
		}
		return err
	}
	if f.named {
		_ = p.dropNamed(false) // refuses requests only
	}
	if f.close {
		p.Close = true
	} else if p.Minor == 0 && f.keepAlive {
		p.Close = false
	}
	if f.upgradeNamed && len(f.upgrade) > 0 {
		p.Upgrade = f.upgrade
	}
	switch {
	case p.Bodiless(toHead): // RFC 9112 section 6.3, rule 1
		p.Length = -1
		if f.hasLength {
			p.Length = f.length
		}
	case f.chunked:
		p.Framing = Chunked
	case f.hasLength:
		if p.Length = f.length; f.length > 0 {
			p.Framing = Length
		}
	default:
		p.Framing, p.Close = UntilClose, true
	}
	return nil
}

func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func asciiEqualFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 32
		}
		if c != s[i] {
			return false
		}
	}
	return true
}
