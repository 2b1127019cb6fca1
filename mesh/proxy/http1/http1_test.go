package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func readAll(r *Reader) (string, error) {
	var b strings.Builder
	for {
		p, err := r.NextBody()
		if errors.Is(err, io.EOF) {
			return b.String(), nil
		}
		if err != nil {
			return b.String(), err
		}
		b.Write(p)
	}
}

func TestReadRequest(t *testing.T) {
	for _, c := range []struct {
		name, in, host, target, body string
		close                        bool
		fields                       int
	}{
		{"plain", "GET /a?b HTTP/1.1\r\nHost: X\r\nA: 1\r\n\r\n", "X", "/a?b", "", false, 2},
		{"bare LF and leading empty line", "\r\n\nGET / HTTP/1.1\nHost: x\n\n", "x", "/", "", false, 1},
		{"absolute form wins over Host", "GET http://real/p?q HTTP/1.1\r\nHost: other\r\n\r\n", "real", "/p?q", "", false, 1},
		{"absolute form without path", "GET http://real HTTP/1.1\r\nHost: other\r\n\r\n", "real", "/", "", false, 1},
		{"length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "x", "/", "hello", false, 2},
		{"length twice the same", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", "x", "/", "hi", false, 3},
		{"chunked", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n", "x", "/", "abc0123456789", false, 2},
		{"close", "GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", "x", "/", "", true, 2},
	} {
		for _, slow := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				var src io.Reader = strings.NewReader(c.in)
				if slow {
					src = iotest.OneByteReader(src)
				}
				r := NewReader(src)
				var q Request
				if err := r.ReadRequest(&q, DefaultLimits); err != nil {
					t.Fatal(err)
				}
				body, err := readAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if string(q.Host) != c.host || string(q.Target) != c.target || body != c.body || q.Close != c.close || len(q.Fields) != c.fields {
					t.Errorf("host %q target %q body %q close %v fields %d", q.Host, q.Target, body, q.Close, len(q.Fields))
				}
				if c.name == "chunked" && string(q.Trailers.Get("t")) != "v" {
					t.Errorf("trailers %v", q.Trailers.Fields)
				}
				q.Reset()
				if err := r.ReadRequest(&q, DefaultLimits); !errors.Is(err, io.EOF) {
					t.Errorf("after the end: %v", err)
				}
			})
		}
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"length and chunked":      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", ErrLengthConflict},
		"two lengths":             {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ErrBadLength},
		"length list":             {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n", ErrBadLength},
		"signed length":           {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", ErrBadLength},
		"gzip, chunked":           {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ErrBadTransfer},
		"chunked twice":           {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", ErrBadTransfer},
		"vertical tab":            {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", ErrBadHeader},
		"folded":                  {"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n 2\r\n\r\n", ErrFolded},
		"space before colon":      {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", ErrBadHeader},
		"no colon":                {"GET / HTTP/1.1\r\nHost: x\r\nfoo\r\n\r\n", ErrBadHeader},
		"bare CR in value":        {"GET / HTTP/1.1\r\nHost: x\r\nA: 1\rB: 2\r\n\r\n", ErrBadHeader},
		"NUL in value":            {"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", ErrBadHeader},
		"no host":                 {"GET / HTTP/1.1\r\n\r\n", ErrBadHost},
		"two hosts":               {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", ErrBadHost},
		"host with path":          {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", ErrBadHost},
		"space in target":         {"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", ErrBadStartLine},
		"no version":              {"GET /\r\nHost: x\r\n\r\n", ErrBadStartLine},
		"1.0":                     {"GET / HTTP/1.0\r\nHost: x\r\n\r\n", ErrHTTP10},
		"1.2":                     {"GET / HTTP/1.2\r\nHost: x\r\n\r\n", ErrVersion},
		"preface":                 {"PRI * HTTP/2.0\r\n\r\n", ErrHTTP2Preface},
		"user in target":          {"GET http://u@h/ HTTP/1.1\r\nHost: x\r\n\r\n", ErrBadStartLine},
		"ended within the head":   {"GET / HTTP/1.1\r\nHost", ErrUnexpectedEOF},
		"many headers":            {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", 100) + "\r\n", ErrTooManyHeaders},
		"large head":              {"GET / HTTP/1.1\r\nHost: x\r\na: " + strings.Repeat("b", 61<<10) + "\r\n\r\n", ErrHeadTooLarge},
		"large head without end":  {"GET / HTTP/1.1\r\nHost: x\r\na: " + strings.Repeat("b", 200<<10), ErrHeadTooLarge},
		"empty method":            {" / HTTP/1.1\r\nHost: x\r\n\r\n", ErrBadStartLine},
		"control in method":       {"G\x01T / HTTP/1.1\r\nHost: x\r\n\r\n", ErrBadStartLine},
		"absolute of other kind":  {"GET ftp://h/ HTTP/1.1\r\nHost: x\r\n\r\n", ErrBadStartLine},
		"length far out of range": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", ErrBadLength},
	} {
		t.Run(name, func(t *testing.T) {
			var q Request
			if err := NewReader(strings.NewReader(c.in)).ReadRequest(&q, DefaultLimits); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestChunksRefused(t *testing.T) {
	for name, body := range map[string]string{
		"bare LF after the size": "3\nabc\r\n0\r\n\r\n", "no size": "\r\nabc\r\n0\r\n\r\n", "sign": "+3\r\nabc\r\n0\r\n\r\n", "0x": "0x3\r\nabc\r\n0\r\n\r\n",
		"too long": "fffffffffffffffff\r\n", "missing CRLF after bytes": "3\r\nabcd\r\n0\r\n\r\n", "bare CR in extension": "3;a\rb\r\nabc\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
			var q Request
			if err := r.ReadRequest(&q, DefaultLimits); err != nil {
				t.Fatal(err)
			}
			if got, err := readAll(r); !errors.Is(err, ErrBadChunk) {
				t.Errorf("body %q, error %v", got, err)
			}
		})
	}
}

// TestChunkIsAll: once the bytes of a chunk are taken nothing of it is buffered, so that whoever passes it on does so before it waits
// for the next.
func TestChunkIsAll(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	go func() {
		_, _ = io.WriteString(out, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	}()
	r := NewReader(in)
	var q Request
	if err := r.ReadRequest(&q, DefaultLimits); err != nil {
		t.Fatal(err)
	}
	if p, err := r.NextBody(); err != nil || string(p) != "abc" || r.Buffered() != 0 || r.BodyDone() {
		t.Errorf("%q, %v, %d bytes buffered", p, err, r.Buffered())
	}
}

// TestBodyResumes: a read that times out anywhere in a chunked body is taken up again without loss.
func TestBodyResumes(t *testing.T) {
	const in = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\nU: w\r\n\r\n"
	errLater := errors.New("later")
	for stop := strings.Index(in, "\r\n\r\n") + 4; stop < len(in); stop++ {
		src := &pausing{parts: []string{in[:stop], in[stop:]}, err: errLater}
		r := NewReader(src)
		var q Request
		if err := r.ReadRequest(&q, DefaultLimits); err != nil {
			t.Fatal(err)
		}
		var got string
		for {
			p, err := r.NextBody()
			got += string(p)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil && !errors.Is(err, errLater) {
				t.Fatalf("stop %d: %v", stop, err)
			}
		}
		if got != "abcde" || len(q.Trailers.Fields) != 2 {
			t.Errorf("stop %d: body %q trailers %d", stop, got, len(q.Trailers.Fields))
		}
	}
}

// pausing gives its parts with an error between them.
type pausing struct {
	parts []string
	err   error
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.parts[0] == "" {
		if len(p.parts) == 1 {
			return 0, io.EOF
		}
		p.parts = p.parts[1:]
		return 0, p.err
	}
	n := copy(b, p.parts[0])
	p.parts[0] = p.parts[0][n:]
	return n, nil
}

func TestReadResponse(t *testing.T) {
	for _, c := range []struct {
		name, in, body string
		head           bool
		framing        Framing
		close          bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi", false, Length, false},
		{"until close", "HTTP/1.1 200\r\n\r\nhi", "hi", false, UntilClose, true},
		{"head", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "", true, NoBody, false},
		{"204", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", "", false, NoBody, false},
		{"304", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "", false, NoBody, false},
		{"1.0 keep-alive", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", "", false, NoBody, false},
		{"1.0", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "", false, NoBody, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReader(strings.NewReader(c.in))
			var p Response
			if err := r.ReadResponse(&p, DefaultLimits, c.head); err != nil {
				t.Fatal(err)
			}
			if p.Framing != c.framing || p.Close != c.close {
				t.Errorf("framing %d close %v", p.Framing, p.Close)
			}
			if body, err := readAll(r); err != nil || body != c.body {
				t.Errorf("body %q, %v", body, err)
			}
		})
	}
}

func TestWriterDropsHopByHop(t *testing.T) {
	r := NewReader(strings.NewReader("POST /p HTTP/1.1\r\nHost: h\r\nConnection: close, x\r\nKeep-Alive: 1\r\nTE: trailers\r\nProxy-Connection: x\r\nContent-Length: 2\r\nA: b\r\n\r\nhi"))
	var q Request
	if err := r.ReadRequest(&q, DefaultLimits); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := NewWriter(&out)
	w.Request(&q)
	p, _ := r.NextBody()
	_ = w.Body(p)
	_ = w.End(nil)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "POST /p HTTP/1.1\r\nhost: h\r\nte: trailers\r\na: b\r\ncontent-length: 2\r\n\r\nhi"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestResponseRefused(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"bare CR in the reason":     {"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n", ErrBadStatus},
		"NUL in the reason":         {"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n", ErrBadStatus},
		"DEL in the reason":         {"HTTP/1.1 200 O\x7fK\r\nContent-Length: 0\r\n\r\n", ErrBadStatus},
		"status of two digits":      {"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", ErrBadStatus},
		"tab and text beyond ASCII": {"HTTP/1.1 200 O\tK \xc3\xa9\r\nContent-Length: 0\r\n\r\n", nil}, // RFC 9112 section 4
		"connection names many":     {"HTTP/1.1 200 OK\r\nConnection: a,b,c,d,e,f,g,h,i,j\r\nContent-Length: 0\r\n\r\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var p Response
			err := NewReader(strings.NewReader(c.in)).ReadResponse(&p, DefaultLimits, false)
			var got, want *ParseError
			switch {
			case c.want == nil && err == nil:
			case !errors.As(err, &got) || got.Status != 502 || !errors.As(c.want, &want) || got.Detail != want.Detail:
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestNamedByConnection: fields that Connection names end here (RFC 9110 section 7.6.1), but for those that say where a
// request comes from: a client that names them is up to something, and Envoy refuses it.
func TestNamedByConnection(t *testing.T) {
	for _, c := range []struct {
		connection, fields string
		want               error
	}{
		{"close, X-A", "x-b te", nil},
		{"x-a, X-B", "te", nil},
		{",, keep-alive ,\tx-b", "x-a te", nil},
		{"TE, upgrade, connection", "x-a x-b te", nil},
		{"http2-settings", "x-a x-b te", nil},
		{"nothing-of-that-name", "x-a x-b te", nil},
		{"Host", "x-a x-b te", nil}, // is written anew
		{":path", "", ErrBadConnection},
		{"x-a, X-Forwarded-For", "", ErrBadConnection},
		{"x-forwarded-proto", "", ErrBadConnection},
		{"X-Forwarded-Host", "", ErrBadConnection},
		{"a,b,c,d,e,f,g,h,i,j", "", ErrBadConnection},
	} {
		t.Run(c.connection, func(t *testing.T) {
			const fields = "X-A: 1\r\nX-B: 1\r\nX-A: 2\r\nTE: trailers\r\nHTTP2-Settings: A\r\n"
			if c.connection != "http2-settings" {
				c.fields = strings.TrimSpace(c.fields + " http2-settings")
			}
			names := func(h *Header) string {
				var out []string
				for _, f := range h.Fields {
					if n := string(f.Name); (n == "te" || !hop(f.Name)) && !slices.Contains(out, n) {
						out = append(out, n)
					}
				}
				return strings.Join(out, " ")
			}
			var q Request
			err := NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\nConnection: "+c.connection+"\r\n"+fields+"\r\n")).ReadRequest(&q, DefaultLimits)
			if !errors.Is(err, c.want) || err == nil && names(&q.Header) != c.fields {
				t.Errorf("request: %v, fields %q, want %v, %q", err, names(&q.Header), c.want, c.fields)
			}
			if c.want != nil {
				return
			}
			var p Response
			err = NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: "+c.connection+"\r\n"+fields+"\r\n")).ReadResponse(&p, DefaultLimits, false)
			if err != nil || names(&p.Header) != c.fields {
				t.Errorf("response: %v, fields %q, want %q", err, names(&p.Header), c.fields)
			}
		})
	}
}

// TestResponseFraming: every response that leaves the connection open says where it ends, and one without a body has no byte
// of it (RFC 9112 section 6.3).
func TestResponseFraming(t *testing.T) {
	const chunked = "transfer-encoding: chunked\r\n"
	for _, c := range []struct {
		name    string
		status  int
		framing Framing
		length  int64
		head    bool
		minor   int
		fields  string
		body    string
	}{
		{"length", 200, Length, 4, false, 1, "content-length: 4\r\n", "body"},
		{"chunked", 200, Chunked, 0, false, 1, chunked, "4\r\nbody\r\n0\r\n\r\n"},
		{"until close", 200, UntilClose, 0, false, 1, chunked, "4\r\nbody\r\n0\r\n\r\n"},
		{"chunked to 1.0", 200, Chunked, 0, false, 0, "connection: keep-alive\r\n", "body"},
		{"no body", 200, NoBody, 0, false, 1, "content-length: 0\r\n", "-"},
		{"no body, length not told", 200, NoBody, -1, false, 1, "content-length: 0\r\n", "-"},
		{"204", 204, NoBody, -1, false, 1, "", ""},
		{"204 with a body", 204, Chunked, 0, false, 1, "", ""},
		{"304, length not told", 304, NoBody, -1, false, 1, "", ""},
		{"304 with a length", 304, NoBody, 4, false, 1, "content-length: 4\r\n", ""},
		{"304 with a body", 304, Length, 4, false, 1, "content-length: 4\r\n", ""},
		{"HEAD", 200, NoBody, 4, true, 1, "content-length: 4\r\n", ""},
		{"HEAD, length not told", 200, NoBody, -1, true, 1, "", ""},
		{"HEAD with a length", 200, Length, 4, true, 1, "content-length: 4\r\n", ""},
		{"HEAD, chunked", 200, Chunked, 0, true, 1, chunked, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			w := NewWriter(&out)
			w.Response(&Response{Status: c.status, Reason: []byte("R"), Framing: c.framing, Length: c.length}, c.minor, c.head, false)
			if c.body != "-" { // who says that there is no body writes none
				_ = w.Body([]byte("body"))
			}
			_ = w.End(nil)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("HTTP/1.1 %d R\r\n%s\r\n%s", c.status, c.fields, strings.TrimPrefix(c.body, "-"))
			if out.String() != want {
				t.Errorf("got %q, want %q", out.String(), want)
			}
		})
	}
}

// FuzzRequest: whatever is accepted and written again is read again as the same message, with nothing left over.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: a, TE\r\nA: b\r\nTE: trailers\r\nConnection: b\r\n\r\n"))
	f.Add([]byte("POST http://h/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		var q Request
		if r.ReadRequest(&q, DefaultLimits) != nil {
			return
		}
		var out bytes.Buffer
		w := NewWriter(&out)
		q.Upgrade = nil
		w.Request(&q)
		body, err := readAll(r)
		if err != nil {
			return
		}
		_ = w.Body([]byte(body))
		_ = w.End(&q.Trailers)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		again := NewReader(bytes.NewReader(out.Bytes()))
		var q2 Request
		if err := again.ReadRequest(&q2, Limits{HeadBytes: 1 << 20, Headers: 1000}); err != nil {
			t.Fatalf("own output refused: %v\n%q", err, out.Bytes())
		}
		body2, err := readAll(again)
		if err != nil || body2 != body || !bytes.Equal(q.Target, q2.Target) || !bytes.Equal(q.Method, q2.Method) {
			t.Fatalf("changed by a round trip: %v\n%q\n%q", err, in, out.Bytes())
		}
		if again.Buffered() != 0 {
			t.Fatalf("%d bytes left: a second message was smuggled\n%q", again.Buffered(), out.Bytes())
		}
	})
}

// FuzzResponse: nothing that an upstream sends makes the codec panic or loop.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), false)
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), true)
	f.Fuzz(func(t *testing.T, in []byte, head bool) {
		r := NewReader(bytes.NewReader(in))
		var p Response
		if r.ReadResponse(&p, DefaultLimits, head) != nil {
			return
		}
		_, _ = readAll(r)
	})
}
