package listener

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

// verdict of an inspector on the bytes so far.
type verdict uint8

const (
	more verdict = iota // not enough bytes yet
	yes
	no
)

// Limits of what sniffing reads.
const (
	maxHello       = 16 << 10 // Envoy's tls_inspector: max_client_hello_size
	maxRequestLine = 8 << 10
)

// hello is what a ClientHello says before the handshake.
type hello struct {
	serverName string
	alpn       []string
}

// clientHello looks for a ClientHello at the start of b, whole over as many records as it takes (RFC 8446 sections 4, 5.1).
func clientHello(b []byte) (h hello, v verdict) {
	var msg []byte
	for len(b) > 0 {
		if b[0] != 22 || len(b) > 1 && b[1] != 3 {
			return h, no
		}
		if len(b) < 5 {
			return h, more
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if n == 0 || n > 16<<10+256 {
			return h, no
		}
		part := b[5:min(len(b), 5+n)]
		msg = append(msg, part...)
		if len(msg) > 0 && msg[0] != 1 {
			return h, no
		}
		if len(msg) >= 4 {
			want := 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
			if want > maxHello {
				return h, no
			}
			if len(msg) >= want {
				return parseHello(msg[4:want])
			}
		}
		if len(part) < n {
			return h, more
		}
		b = b[5+n:]
	}
	return h, more
}

// cursor takes length-prefixed vectors off a message; bad is set when one does not fit.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) vec8() []byte {
	if l := c.take(1); l != nil {
		return c.take(int(l[0]))
	}
	return nil
}

func (c *cursor) vec16() []byte {
	if l := c.take(2); l != nil {
		return c.take(int(binary.BigEndian.Uint16(l)))
	}
	return nil
}

func parseHello(b []byte) (h hello, v verdict) {
	c := cursor{b: b}
	c.take(2 + 32) // version, random
	c.vec8()       // session
	c.vec16()      // cipher suites
	c.vec8()       // compression
	if c.bad {
		return h, no
	}
	if len(c.b) == 0 {
		return h, yes
	}
	ext := cursor{b: c.vec16()}
	if c.bad {
		return h, no
	}
	for len(ext.b) > 0 {
		kind := ext.take(2)
		body := cursor{b: ext.vec16()}
		if ext.bad {
			return h, no
		}
		switch binary.BigEndian.Uint16(kind) {
		case 0: // server_name
			names := cursor{b: body.vec16()}
			for len(names.b) > 0 {
				t := names.take(1)
				name := names.vec16()
				if names.bad {
					return h, no
				}
				if t[0] == 0 && h.serverName == "" {
					h.serverName = strings.ToLower(string(name))
				}
			}
		case 16: // application_layer_protocol_negotiation
			list := cursor{b: body.vec16()}
			for len(list.b) > 0 {
				p := list.vec8()
				if list.bad {
					return h, no
				}
				h.alpn = append(h.alpn, string(p))
			}
		}
		if body.bad {
			return h, no
		}
	}
	return h, yes
}

var preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// methods that start an HTTP/1 request; the codec itself takes any token, but sniffing must not take any text for HTTP.
var methods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "COPY", "LOCK", "MKCOL", "MOVE",
	"PROPFIND", "PROPPATCH", "SEARCH", "UNLOCK", "BIND", "REBIND", "UNBIND", "ACL", "REPORT", "MKACTIVITY", "CHECKOUT", "MERGE", "M-SEARCH",
	"NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PURGE", "MKCALENDAR", "LINK", "UNLINK", "SOURCE"}

// httpLine looks for the first line of HTTP and names its protocol as chains match it: "http/1.1", "http/1.0" or "h2c".
func httpLine(b []byte) (alpn string, v verdict) {
	if n := min(len(b), len(preface)); bytes.Equal(b[:n], preface[:n]) {
		if n == len(preface) {
			return "h2c", yes
		}
		return "", more
	}
	for len(b) > 0 && (b[0] == '\r' || b[0] == '\n') {
		b = b[1:]
	}
	if len(b) == 0 {
		return "", more
	}
	known := false
	for _, m := range methods {
		n := min(len(m), len(b))
		if string(b[:n]) == m[:n] && (len(b) <= len(m) || b[len(m)] == ' ') {
			known = true
			break
		}
	}
	if !known {
		return "", no
	}
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if len(b) > maxRequestLine {
			return "", no
		}
		return "", more
	}
	line := bytes.TrimSuffix(b[:i], []byte("\r"))
	switch {
	case bytes.HasSuffix(line, []byte(" HTTP/1.1")):
		return "http/1.1", yes
	case bytes.HasSuffix(line, []byte(" HTTP/1.0")):
		return "http/1.0", yes
	}
	return "", no
}

// inspect reads from r until the wanted inspectors have decided, and returns every byte that it read.
// An end of the stream decides: what is not known by then is raw.
func inspect(r io.Reader, tls, http bool, p *Properties) (read []byte, err error) {
	p.Transport = "raw_buffer"
	buf := make([]byte, 0, 2<<10)
	for {
		if tls {
			h, v := clientHello(buf)
			if v == yes {
				p.Transport, p.ServerName, p.ALPN = "tls", h.serverName, h.alpn
				return buf, nil
			}
			if tls = v == more; tls && len(buf) > 2*maxHello {
				tls = false
			}
		}
		if http && !tls {
			name, v := httpLine(buf)
			if v == yes {
				p.ALPN = []string{name}
				return buf, nil
			}
			http = v == more
		}
		if !tls && !http {
			return buf, nil
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil {
			if errors.Is(err, io.EOF) && n == 0 {
				return buf, nil
			}
			if n == 0 {
				return buf, err
			}
		}
	}
}
