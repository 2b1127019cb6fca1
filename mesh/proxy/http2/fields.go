package http2

import (
	"bytes"
	"hash/maphash"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/net/http2/hpack"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// nameTable holds the bytes that a field name may have: tokens without upper case (RFC 9113 section 8.2.1).
var nameTable = func() (t [256]bool) {
	for c := byte('a'); c <= 'z'; c++ {
		t[c] = true
	}
	for c := byte('0'); c <= '9'; c++ {
		t[c] = true
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = true
	}
	return t
}()

func validName(s string) bool {
	for i := range len(s) {
		if !nameTable[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// hop reports fields that say something about one HTTP/1 connection, or that the codec writes itself.
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

// pseudo are the pseudo-header fields of one block; nil was not there.
type pseudo struct{ method, scheme, authority, path, status []byte }

// block is a header block on its way in. Only the reading goroutine touches it.
type block struct {
	h       http1.Header
	p       pseudo
	id      uint32
	end     bool // END_STREAM
	server  bool // a request's or its trailers; else a response's
	wire    int
	size    int // as SETTINGS_MAX_HEADER_LIST_SIZE counts
	regular bool
	large   bool
	bad     string // what makes the message malformed (RFC 9113 section 8.1.1)
	cookies int
	length  int64 // content-length; -1 none
	limits  *Options
}

func (b *block) begin(id uint32, end bool) {
	b.h.Reset()
	*b = block{h: b.h, id: id, end: end, server: b.server, limits: b.limits, length: -1}
}

// field takes one field off the decoder. The table of the decoder must see every field, so a bad one is only noted.
func (b *block) field(f hpack.HeaderField) {
	b.size += len(f.Name) + len(f.Value) + 32
	switch {
	case b.bad != "" || b.large:
		return
	case b.size > b.limits.MaxHeaderBytes || len(b.h.Fields) >= b.limits.MaxHeaders:
		b.large = true
		return
	case !validValue(f.Value):
		b.bad = "field value"
		return
	case len(f.Name) > 0 && f.Name[0] == ':':
		b.pseudoField(f)
		return
	case !validName(f.Name):
		b.bad = "field name"
		return
	}
	b.regular = true
	value := b.bytes(strings.Trim(f.Value, " \t")) // taken as HTTP/1 takes it: refusing costs more than it brings
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.bad = "connection-specific field"
		return
	case "te":
		if f.Value != "trailers" {
			b.bad = "te"
			return
		}
	case "cookie":
		b.cookies++
	case "content-length":
		n, err := strconv.ParseUint(f.Value, 10, 63)
		if err != nil || f.Value[0] == '+' || b.length >= 0 && b.length != int64(n) {
			b.bad = "content-length"
			return
		}
		b.length = int64(n)
	}
	b.h.Add(b.bytes(f.Name), value)
}

func (b *block) pseudoField(f hpack.HeaderField) {
	var to *[]byte
	switch {
	case b.regular:
		b.bad = "pseudo-header field after regular fields"
		return
	case f.Name == ":method" && b.server:
		to = &b.p.method
	case f.Name == ":scheme" && b.server:
		to = &b.p.scheme
	case f.Name == ":authority" && b.server:
		to = &b.p.authority
	case f.Name == ":path" && b.server:
		to = &b.p.path
	case f.Name == ":status" && !b.server:
		to = &b.p.status
	default:
		b.bad = "unknown pseudo-header field"
		return
	}
	if *to != nil {
		b.bad = "pseudo-header field twice"
		return
	}
	*to = b.bytes(f.Value)
}

// bytes copies s into the header's memory; the result is never nil.
func (b *block) bytes(s string) []byte { return b.h.Take(append(b.h.Scratch(), s...)) }

// joinCookies makes one field of cookie crumbs (RFC 9113 section 8.2.3).
func (b *block) joinCookies() {
	if b.cookies < 2 {
		return
	}
	out := b.h.Scratch()
	n := 0
	for i := range b.h.Fields {
		if string(b.h.Fields[i].Name) == "cookie" {
			if n++; n > 1 {
				out = append(out, "; "...)
			}
			out = append(out, b.h.Fields[i].Value...)
		}
	}
	b.h.Set([]byte("cookie"), b.h.Take(out))
}

// request moves the block into q (RFC 9113 section 8.3.1); bad says what is wrong with it.
func (b *block) request(q *http1.Request) (bad string) {
	p := &b.p
	connect := string(p.method) == "CONNECT"
	switch {
	case b.bad != "":
		return b.bad
	case len(p.method) == 0:
		return ":method"
	case connect && (p.path != nil || p.scheme != nil || p.authority == nil):
		return "CONNECT"
	case !connect && (len(p.path) == 0 || len(p.scheme) == 0):
		return ":path or :scheme"
	case !connect && p.path[0] != '/' && (string(p.path) != "*" || string(p.method) != "OPTIONS"):
		return ":path"
	}
	for _, c := range p.method {
		if !nameTable[c|0x20] && !nameTable[c] {
			return ":method"
		}
	}
	for _, c := range p.path {
		if c <= ' ' || c == 0x7f {
			return ":path"
		}
	}
	host := b.h.Get("host")
	if p.authority == nil {
		p.authority = host
	} else if host != nil && !bytes.EqualFold(host, p.authority) {
		return "host differs from :authority"
	}
	for _, c := range p.authority {
		if c <= ' ' || c == '/' || c == '@' || c == '?' || c == '#' || c == ',' {
			return ":authority"
		}
	}
	b.joinCookies()
	q.Reset()
	q.Header, b.h = b.h, q.Header
	q.Method, q.Target, q.Host = p.method, p.path, p.authority
	q.Scheme = p.scheme
	q.Major, q.Minor = 2, 0
	q.IsHead = string(p.method) == "HEAD"
	q.Bytes = b.size
	if e := q.Get("expect"); e != nil {
		q.Expect = bytes.EqualFold(e, []byte("100-continue"))
	}
	q.Framing, q.Length = framing(b.end, b.length)
	return ""
}

// response moves the block into r; toHead says that the request was a HEAD.
func (b *block) response(r *http1.Response, toHead bool) (bad string) {
	s := b.p.status
	if b.bad != "" {
		return b.bad
	}
	if len(s) != 3 || s[0] < '1' || s[0] > '9' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return ":status"
	}
	r.Reset()
	r.Header, b.h = b.h, r.Header
	r.Status = int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0')
	if r.Status == 101 {
		return "status 101"
	}
	r.Major = 2
	r.Bytes = b.size
	switch {
	case r.Bodiless(toHead):
		r.Framing, r.Length = http1.NoBody, b.length
	case b.end && b.length > 0:
		return "fewer bytes than content-length"
	default:
		r.Framing, r.Length = framing(b.end, b.length)
	}
	return ""
}

func framing(end bool, length int64) (http1.Framing, int64) {
	switch {
	case end:
		return http1.NoBody, length
	case length > 0:
		return http1.Length, length
	}
	return http1.Chunked, 0
}

// encoder writes header blocks. Fields that come again go into the dynamic table, so that later ones cost a byte or two
// on both sides; fields that were seen once (request ids, times) stay out of it.
type encoder struct {
	buf  []byte
	enc  *hpack.Encoder
	seed maphash.Seed
	seen [256]seen
}

type seen struct {
	hash        uint64
	name, value string // once it came twice
}

func newEncoder() *encoder {
	e := &encoder{seed: maphash.MakeSeed()}
	e.enc = hpack.NewEncoder(e)
	return e
}

// Write implements io.Writer for the hpack encoder.
func (e *encoder) Write(p []byte) (int, error) {
	e.buf = append(e.buf, p...)
	return len(p), nil
}

func (e *encoder) field(name, value []byte) {
	h := maphash.Bytes(e.seed, value)*31 + maphash.Bytes(e.seed, name)
	s := &e.seen[h%uint64(len(e.seen))]
	f := hpack.HeaderField{Name: unsafe.String(unsafe.SliceData(name), len(name)), Value: unsafe.String(unsafe.SliceData(value), len(value))}
	switch {
	case secret(name):
		f.Sensitive = true // RFC 7541 section 7.1.3
	case s.hash != h:
		*s = seen{hash: h}
		f.Sensitive = true // the encoder keeps no such field, so that the bytes may be borrowed
	case s.name == "":
		s.name, s.value = string(name), string(value)
		f.Name, f.Value = s.name, s.value
	case s.name == f.Name && s.value == f.Value:
		f.Name, f.Value = s.name, s.value
	default: // two fields of one hash
		f.Sensitive = true
	}
	_ = e.enc.WriteField(f) // writes to memory
}

// secret are the fields whose values must not be guessed by means of the compression.
func secret(name []byte) bool {
	switch string(name) {
	case "authorization", "cookie", "set-cookie", "proxy-authorization":
		return true
	}
	return false
}

func (e *encoder) fields(h *http1.Header) {
	for i := range h.Fields {
		f := &h.Fields[i]
		if hop(f.Name) && (len(f.Name) != 2 || !bytes.EqualFold(f.Value, vTrailers)) {
			continue
		}
		e.field(f.Name, f.Value)
	}
}

func (e *encoder) length(n int64) {
	var tmp [20]byte
	e.field(nLength, strconv.AppendInt(tmp[:0], n, 10))
}

var (
	nMethod    = []byte(":method")
	nScheme    = []byte(":scheme")
	nAuthority = []byte(":authority")
	nPath      = []byte(":path")
	nStatus    = []byte(":status")
	nLength    = []byte("content-length")
	vTrailers  = []byte("trailers")
	vHTTP      = []byte("http")
)

// request encodes the head of q.
func (e *encoder) request(q *http1.Request) []byte {
	e.buf = e.buf[:0]
	e.field(nMethod, q.Method)
	scheme := q.Scheme
	if scheme == nil {
		scheme = vHTTP
	}
	e.field(nScheme, scheme)
	e.field(nAuthority, q.Host)
	e.field(nPath, q.Target)
	e.fields(&q.Header)
	if q.Framing == http1.Length {
		e.length(q.Length)
	}
	return e.buf
}

// response encodes the head of r. HEAD and 304 keep the length of the body that they do not have.
func (e *encoder) response(r *http1.Response) []byte {
	e.buf = e.buf[:0]
	e.status(r.Status)
	e.fields(&r.Header)
	if r.Framing == http1.Length || r.Framing == http1.NoBody && r.Length >= 0 && r.Status >= 200 && r.Status != 204 && (r.Length > 0 || r.Has("content-length")) {
		e.length(r.Length)
	}
	return e.buf
}

func (e *encoder) status(code int) {
	var tmp [4]byte
	e.field(nStatus, strconv.AppendInt(tmp[:0], int64(code), 10))
}

// trailers encodes what follows a body.
func (e *encoder) trailers(h *http1.Header) []byte {
	e.buf = e.buf[:0]
	for i := range h.Fields {
		if f := &h.Fields[i]; !hop(f.Name) {
			e.field(f.Name, f.Value)
		}
	}
	return e.buf
}
