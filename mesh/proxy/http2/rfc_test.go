package http2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// peer speaks frames to a connection under test.
type peer struct {
	t   testing.TB
	nc  net.Conn
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
}

// connect dials and greets.
func connect(t testing.TB, addr string) *peer {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	return greet(t, nc)
}

// greet begins a connection: preface, SETTINGS both ways, their acknowledgement.
func greet(t testing.TB, nc net.Conn) *peer {
	t.Helper()
	p := &peer{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	p.fr.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.buf)
	_, _ = io.WriteString(nc, Preface)
	_ = p.fr.WriteSettings()
	p.next(func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && s.IsAck() })
	_ = p.fr.WriteSettingsAck()
	return p
}

// next reads until a frame is what is looked for.
func (p *peer) next(is func(http2.Frame) bool) http2.Frame {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("the frame that was looked for did not come: %v", err)
		}
		if is(f) {
			return f
		}
	}
}

// block encodes fields, given as name and value by turns.
func (p *peer) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *peer) headers(id uint32, end bool, fields ...string) {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(fields...), EndStream: end, EndHeaders: true})
}

var get = []string{":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/"}
var post = []string{":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/"}

// hang is a request that is not answered while its body goes on, so that no answer overtakes what a rule is broken by.
var hang = with(post, "x-hang", "1")

func with(base []string, more ...string) []string {
	return append(append([]string(nil), base...), more...)
}

// outcome reads until the connection or a stream ends badly, or a stream is answered.
func (p *peer) outcome() string {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		case *http2.RSTStreamFrame:
			return "RST_STREAM " + f.ErrCode.String()
		case *http2.HeadersFrame:
			return "answer"
		}
	}
}

// TestRules holds a server to RFC 9113: what breaks a rule costs the stream or the connection, by the right code, and
// nothing of it reaches a handler; what is allowed is answered.
func TestRules(t *testing.T) {
	const (
		malformed = "RST_STREAM PROTOCOL_ERROR"
		protocol  = "GOAWAY PROTOCOL_ERROR"
	)
	for name, c := range map[string]struct {
		do   func(*peer)
		want string
	}{
		"4.2 frame beyond the maximum size": {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16<<10+1)) }, "GOAWAY FRAME_SIZE_ERROR"},
		"4.3 broken compression":            {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameHeaders, 5, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff}) }, "GOAWAY COMPRESSION_ERROR"},
		"4.1 unknown frames are ignored":    {func(p *peer) { _ = p.fr.WriteRawFrame(0xfa, 0, 0, []byte("?")); p.headers(1, true, get...) }, "answer"},
		"5.1 DATA on an idle stream":        {func(p *peer) { _ = p.fr.WriteData(1, true, []byte("x")) }, protocol},
		"5.1 RST_STREAM on an idle stream":  {func(p *peer) { _ = p.fr.WriteRSTStream(1, 0) }, protocol},
		"5.1 WINDOW_UPDATE on idle stream":  {func(p *peer) { _ = p.fr.WriteWindowUpdate(1, 100) }, protocol},
		"5.1.1 even number":                 {func(p *peer) { p.headers(2, true, get...) }, protocol},
		"5.1.1 number below an earlier one": {func(p *peer) { p.headers(5, false, hang...); p.headers(3, true, get...) }, "GOAWAY STREAM_CLOSED"},
		"5.3.1 stream depends on itself":    {func(p *peer) { _ = p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 1}) }, malformed},
		"6.1 DATA on stream 0":              {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameData, 0, 0, []byte("x")) }, protocol},
		"6.1 padding longer than the frame": {func(p *peer) {
			p.headers(1, false, hang...)
			_ = p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1})
		}, protocol},
		"6.2 HEADERS on stream 0":     {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameHeaders, 5, 0, nil) }, protocol},
		"6.5 SETTINGS with a stream":  {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, protocol},
		"6.5 SETTINGS of odd length":  {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameSettings, 0, 0, []byte{1, 2, 3}) }, "GOAWAY FRAME_SIZE_ERROR"},
		"6.5.2 ENABLE_PUSH of 2":      {func(p *peer) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, protocol},
		"6.5.2 window beyond 2^31-1":  {func(p *peer) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, "GOAWAY FLOW_CONTROL_ERROR"},
		"6.5.2 frame size below 2^14": {func(p *peer) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 13}) }, protocol},
		"6.7 PING of seven bytes":     {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, "GOAWAY FRAME_SIZE_ERROR"},
		"6.6 PUSH_PROMISE from a client": {func(p *peer) {
			p.headers(1, false, hang...)
			_ = p.fr.WriteRawFrame(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2})
		}, protocol},
		"6.9 WINDOW_UPDATE of 0, connection": {func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, protocol},
		"6.9.1 connection window overflows":  {func(p *peer) { _ = p.fr.WriteWindowUpdate(0, 1<<31-1); _ = p.fr.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY FLOW_CONTROL_ERROR"},
		"6.9.1 stream window overflows": {func(p *peer) {
			p.headers(1, false, hang...)
			_ = p.fr.WriteWindowUpdate(1, 1<<31-1)
		}, "RST_STREAM FLOW_CONTROL_ERROR"},
		"6.10 CONTINUATION without HEADERS": {func(p *peer) { _ = p.fr.WriteContinuation(1, true, nil) }, protocol},
		"6.10 other frame between": {func(p *peer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...)})
			_ = p.fr.WritePing(false, [8]byte{})
		}, protocol},
		"6.10 block in two frames": {func(p *peer) {
			b := p.block(get...)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true})
			_ = p.fr.WriteContinuation(1, true, b[3:])
		}, "answer"},
		"8.1 trailers without an end":  {func(p *peer) { p.headers(1, false, hang...); p.headers(1, false, "x-t", "v") }, malformed},
		"8.1 pseudo field in trailers": {func(p *peer) { p.headers(1, false, hang...); p.headers(1, true, ":path", "/") }, malformed},
		"8.1.1 less than content-length": {func(p *peer) {
			p.headers(1, false, with(hang, "content-length", "5")...)
			_ = p.fr.WriteData(1, true, []byte("abc"))
		}, malformed},
		"8.1.1 more than content-length": {func(p *peer) {
			p.headers(1, false, with(hang, "content-length", "2")...)
			_ = p.fr.WriteData(1, true, []byte("abc"))
		}, malformed},
		"8.1.1 length and no body":     {func(p *peer) { p.headers(1, true, with(post, "content-length", "2")...) }, malformed},
		"8.2.1 upper case name":        {func(p *peer) { p.headers(1, true, with(get, "X-Upper", "1")...) }, malformed},
		"8.2.1 line feed in a value":   {func(p *peer) { p.headers(1, true, with(get, "x", "a\nb: c")...) }, malformed},
		"8.2.1 colon in a name":        {func(p *peer) { p.headers(1, true, with(get, "a:b", "c")...) }, malformed},
		"8.2.2 connection":             {func(p *peer) { p.headers(1, true, with(get, "connection", "close")...) }, malformed},
		"8.2.2 transfer-encoding":      {func(p *peer) { p.headers(1, false, with(post, "transfer-encoding", "chunked")...) }, malformed},
		"8.2.2 te other than trailers": {func(p *peer) { p.headers(1, true, with(get, "te", "gzip")...) }, malformed},
		"8.2.2 te: trailers":           {func(p *peer) { p.headers(1, true, with(get, "te", "trailers")...) }, "answer"},
		"8.3 pseudo field after others": {func(p *peer) {
			p.headers(1, true, ":method", "GET", "x", "y", ":scheme", "http", ":path", "/", ":authority", "x")
		}, malformed},
		"8.3 unknown pseudo field":        {func(p *peer) { p.headers(1, true, with(get, ":proto", "x")...) }, malformed},
		"8.3 response field in a request": {func(p *peer) { p.headers(1, true, with(get, ":status", "200")...) }, malformed},
		"8.3.1 no :method":                {func(p *peer) { p.headers(1, true, get[2:]...) }, malformed},
		"8.3.1 no :path":                  {func(p *peer) { p.headers(1, true, get[:6]...) }, malformed},
		"8.3.1 empty :path":               {func(p *peer) { p.headers(1, true, with(get[:6], ":path", "")...) }, malformed},
		"8.3.1 :method twice":             {func(p *peer) { p.headers(1, true, with(get, ":method", "GET")...) }, malformed},
		"8.3.1 host differs":              {func(p *peer) { p.headers(1, true, with(get, "host", "other")...) }, malformed},
		"8.3.1 user in :authority": {func(p *peer) {
			p.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "u@x", ":path", "/")
		}, malformed},
		"8.5 CONNECT with a path": {func(p *peer) { p.headers(1, true, ":method", "CONNECT", ":authority", "x", ":path", "/") }, malformed},
		"10.5.1 head too large":   {func(p *peer) { p.headers(1, true, with(get, many(150)...)...) }, "answer"},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := serve(t, Options{MaxHeaderBytes: 20 << 10}, func(s *Stream) {
				if s.req.Get("x-hang") != nil {
					for {
						if _, err := s.NextBody(); err != nil {
							return
						}
					}
				}
				echo(s)
			})
			p := connect(t, addr)
			c.do(p)
			if got := p.outcome(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// many gives n small fields.
func many(n int) (fields []string) {
	for i := range n {
		fields = append(fields, fmt.Sprintf("x-%d", i), "y")
	}
	return fields
}

// TestFloods: frames that bring nothing cost the connection. Time stands still, as the limit is one of frames in a second, and
// what the server says is read beside: an end that finds bytes unread would lose it.
func TestFloods(t *testing.T) {
	for name, c := range map[string]struct {
		begin func(*peer)
		frame func(*peer) error
	}{
		"PING":       {nil, func(p *peer) error { return p.fr.WritePing(false, [8]byte{}) }},
		"SETTINGS":   {nil, func(p *peer) error { return p.fr.WriteSettings() }},
		"PRIORITY":   {nil, func(p *peer) error { return p.fr.WritePriority(1, http2.PriorityParam{}) }},
		"empty DATA": {func(p *peer) { p.headers(1, false, hang...) }, func(p *peer) error { return p.fr.WriteData(1, false, nil) }},
		"CONTINUATION": {func(p *peer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...)})
		}, func(p *peer) error { return p.fr.WriteContinuation(1, false, nil) }},
		"late HEADERS": {func(p *peer) {
			p.headers(1, true, with(get, ":proto", "x")...) // is reset
			p.block("x-t", "v")
		}, func(p *peer) error {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.buf.Bytes(), EndHeaders: true, EndStream: true})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				var wg sync.WaitGroup
				wg.Go(func() {
					_ = NewServer(a, nil, Options{}).Serve(t.Context(), func(s *Stream) { _, _ = s.NextBody() })
					_ = a.Close()
				})
				p := greet(t, b)
				got := http2.ErrCodeNo
				wg.Go(func() {
					for {
						f, err := p.fr.ReadFrame()
						if err != nil {
							return
						}
						if g, ok := f.(*http2.GoAwayFrame); ok {
							got = g.ErrCode
						}
					}
				})
				if c.begin != nil {
					c.begin(p)
				}
				sent := 0
				for sent < 3*maxQuiet && c.frame(p) == nil {
					sent++
				}
				if sent == 3*maxQuiet {
					_ = b.Close() // it would take more
				}
				wg.Wait()
				if got != http2.ErrCodeEnhanceYourCalm || sent < maxQuiet-10 {
					t.Errorf("%v after %d frames", got, sent)
				}
			})
		})
	}
}

// TestUnreadAnswers: a peer that reads no answers is not read from when enough of them wait, and served when it reads again.
func TestUnreadAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		frame func(p *peer, id uint32) error
		one   int // bytes of an answer
	}{
		"answered": {func(p *peer, id uint32) error {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(get...), EndHeaders: true, EndStream: true})
		}, 1 << 10},
		"refused by the framer": {func(p *peer, id uint32) error {
			return p.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
		}, 13},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				var wg sync.WaitGroup
				srv := NewServer(a, nil, Options{})
				wg.Go(func() {
					large := http1.Response{Status: 200, Framing: http1.NoBody}
					large.Add([]byte("set-cookie"), bytes.Repeat([]byte("X"), 1<<10))
					_ = srv.Serve(t.Context(), func(s *Stream) { s.Response(&large, 0, false, false) })
					_ = a.Close()
				})
				p := greet(t, b)
				const more = 5000 // than what the server has read already
				frames := maxUnwritten/c.one + more
				sent := 0
				wg.Go(func() {
					for id := uint32(1); sent < frames && c.frame(p, id) == nil; id += 2 {
						sent++
					}
				})
				synctest.Wait()
				srv.mu.Lock()
				held := len(srv.out)
				srv.mu.Unlock()
				if sent == frames || held > 3*maxUnwritten {
					t.Errorf("%d of %d frames were taken, %d bytes wait to be written", sent, frames, held)
				}
				for answers := 0; answers < frames; {
					switch f, err := p.fr.ReadFrame(); f.(type) {
					case *http2.HeadersFrame, *http2.RSTStreamFrame:
						answers++
					default:
						if err != nil {
							t.Fatalf("%v after %d answers", err, answers)
						}
					}
				}
				_ = b.Close()
				wg.Wait()
			})
		})
	}
}

// TestUnreadAnswersAtTheEnd: a connection whose reader waits for room ends.
func TestUnreadAnswersAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = NewServer(a, nil, Options{}).Serve(ctx, func(*Stream) {})
			_ = a.Close()
		})
		p := greet(t, b)
		wg.Go(func() {
			for id := uint32(1); id < maxUnwritten && p.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4)) == nil; id += 2 {
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

// TestRapidReset: requests that are cancelled at once, over and over, cost the connection (CVE-2023-44487).
func TestRapidReset(t *testing.T) {
	addr, _ := serve(t, Options{}, func(s *Stream) { _, _ = s.NextBody() })
	p := connect(t, addr)
	done := make(chan string, 1)
	go func() { done <- p.outcome() }()
	for i := range 3 * minResets {
		id := uint32(2*i + 1)
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(post...), EndHeaders: true})
		if p.fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	if got := <-done; got != "GOAWAY ENHANCE_YOUR_CALM" && got != "RST_STREAM REFUSED_STREAM" {
		t.Errorf("got %s", got)
	}
}

// TestLateFramesAfterGoAway: what was under way to streams beyond the last one of the final GOAWAY costs nothing that is
// under way (RFC 9113 section 6.8), and the compression state follows it.
func TestLateFramesAfterGoAway(t *testing.T) {
	addr, conns := serve(t, Options{ConnWindow: 128 << 10}, echo)
	p := connect(t, addr)
	p.headers(1, false, post...)
	_ = p.fr.WritePing(false, [8]byte{1})
	p.next(func(f http2.Frame) bool { q, ok := f.(*http2.PingFrame); return ok && q.IsAck() }) // the request is there
	conns()[0].Shutdown()
	drain := p.next(func(f http2.Frame) bool { _, ok := f.(*http2.PingFrame); return ok }).(*http2.PingFrame)
	_ = p.fr.WritePing(true, drain.Data)
	p.next(func(f http2.Frame) bool { g, ok := f.(*http2.GoAwayFrame); return ok && g.LastStreamID == 1 })
	for id := uint32(3); id <= 5; id += 2 {
		p.headers(id, false, with(post, "x-late", fmt.Sprint(id))...)
		_ = p.fr.WriteWindowUpdate(id, 100)
		for range 3 {
			_ = p.fr.WriteData(id, false, make([]byte, 16<<10))
		}
		p.headers(id, true, "x-t", "v")
		_ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	_ = p.fr.WriteData(1, false, []byte("body"))
	p.headers(1, true, "x-late", "3")
	var body string
	window := 0
	p.next(func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.DataFrame:
			body += string(f.Data())
		case *http2.WindowUpdateFrame:
			window += int(f.Increment)
		case *http2.GoAwayFrame:
			t.Fatalf("GOAWAY %v: %s", f.ErrCode, f.DebugData())
		case *http2.HeadersFrame:
			return f.StreamEnded()
		}
		return false
	})
	if body != "body" || window < 64<<10 {
		t.Errorf("the request under way: body %q, %d bytes of the window came back", body, window)
	}
}

// TestLateFramesAfterResets: frames of streams that were reset, however many those are, do not end the connection.
func TestLateFramesAfterResets(t *testing.T) {
	const n = 3 * remembered
	addr, _ := serve(t, Options{}, func(s *Stream) {
		if s.req.Get("x-hang") == nil {
			echo(s)
		} // else not answered: the stream is reset
	})
	p := connect(t, addr)
	for i := range uint32(n) {
		p.headers(2*i+1, false, hang...)
		p.next(func(f http2.Frame) bool { r, ok := f.(*http2.RSTStreamFrame); return ok && r.StreamID == 2*i+1 })
	}
	for i := range uint32(n) {
		_ = p.fr.WriteData(2*i+1, false, []byte("x"))
		p.headers(2*i+1, true, "x-t", "v")
	}
	p.headers(2*n+1, true, get...)
	if got := p.outcome(); got != "answer" {
		t.Errorf("got %s, want an answer to the next request", got)
	}
}

// TestLateAnswers: answers to streams that the client has cancelled, however many those are, do not end its connection.
func TestLateAnswers(t *testing.T) {
	const n = 3 * remembered
	a, b := net.Pipe()
	p := &peer{t: t, nc: b, fr: http2.NewFramer(b, b)}
	p.enc = hpack.NewEncoder(&p.buf)
	cancelled, last, read := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() { // reads what the client says for as long as it does
		defer close(read)
		_, _ = io.CopyN(io.Discard, b, int64(len(Preface)))
		for resets := 0; ; {
			f, err := p.fr.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.RSTStreamFrame:
				if resets++; resets == n {
					close(cancelled)
				}
			case *http2.HeadersFrame:
				if f.StreamID == 2*n+1 {
					close(last)
				}
			}
		}
	}()
	cl := NewClient(a, Options{})
	_ = p.fr.WriteSettings()
	for range n {
		s := cl.Open(0)
		s.Request(&http1.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("x"), Framing: http1.NoBody})
		s.Close()
	}
	<-cancelled
	go func() {
		for i := range uint32(n) {
			p.headers(2*i+1, false, ":status", "200", "x-n", fmt.Sprint(i))
			_ = p.fr.WriteData(2*i+1, true, []byte("late"))
		}
		<-last
		p.headers(2*n+1, true, ":status", "204", "x-head", "fresh")
	}()
	if got := call(cl, "GET", "/", nil); got.err != nil || got.head != "fresh" {
		t.Errorf("the next request: %+v", got)
	}
	_ = cl.Close()
	cl.Wait()
	_ = b.Close()
	<-read
}

// TestTooManyStreams: what is beyond the limit is refused, and may be sent again.
func TestTooManyStreams(t *testing.T) {
	addr, _ := serve(t, Options{MaxStreams: 2}, func(s *Stream) { _, _ = s.NextBody() })
	p := connect(t, addr)
	for _, id := range []uint32{1, 3, 5} {
		p.headers(id, false, post...)
	}
	f := p.next(func(f http2.Frame) bool { _, ok := f.(*http2.RSTStreamFrame); return ok }).(*http2.RSTStreamFrame)
	if f.StreamID != 5 || f.ErrCode != http2.ErrCodeRefusedStream {
		t.Errorf("stream %d: %v", f.StreamID, f.ErrCode)
	}
}

// answered has a client make one request, which do answers as the peer.
func answered(t *testing.T, method string, do func(*peer)) answer {
	t.Helper()
	a, b := net.Pipe()
	p := &peer{t: t, nc: b, fr: http2.NewFramer(b, b)}
	p.enc = hpack.NewEncoder(&p.buf)
	seen, read := make(chan struct{}), make(chan struct{})
	go func() { // reads what the client says for as long as it does
		defer close(read)
		_, _ = io.CopyN(io.Discard, b, int64(len(Preface)))
		_ = p.fr.WriteSettings()
		for {
			f, err := p.fr.ReadFrame()
			if err != nil {
				return
			}
			if _, ok := f.(*http2.HeadersFrame); ok {
				close(seen)
			}
		}
	}()
	cl := NewClient(a, Options{})
	go func() {
		<-seen
		do(p)
	}()
	got := call(cl, method, "/", nil)
	_ = cl.Close()
	cl.Wait()
	_ = b.Close()
	<-read
	return got
}

// TestClientPeers: what a server may not do costs the client its stream or its connection, never a hang or a wrong answer.
func TestClientPeers(t *testing.T) {
	answer := func(p *peer, fields ...string) { p.headers(1, true, fields...) }
	for name, c := range map[string]struct {
		do   func(*peer)
		want string
	}{
		"no status":           {func(p *peer) { answer(p, "x", "y") }, "violation"},
		"status of words":     {func(p *peer) { answer(p, ":status", "okay") }, "violation"},
		"101":                 {func(p *peer) { answer(p, ":status", "101") }, "violation"},
		"request field":       {func(p *peer) { answer(p, ":status", "200", ":path", "/") }, "violation"},
		"DATA before HEADERS": {func(p *peer) { _ = p.fr.WriteData(1, true, []byte("x")) }, "violation"},
		"refused":             {func(p *peer) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, "REFUSED_STREAM"},
		"GOAWAY below":        {func(p *peer) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, "before the request was processed"},
		"closed":              {func(p *peer) { _ = p.nc.Close() }, "connection closed"},
		"interim, then final": {func(p *peer) { p.headers(1, false, ":status", "103", "link", "x"); answer(p, ":status", "204") }, ""},
		"garbage":             {func(p *peer) { _, _ = io.WriteString(p.nc, "HTTP/1.1 400 Bad Request\r\n\r\n") }, "connection closed"},
	} {
		t.Run(name, func(t *testing.T) {
			got := answered(t, "GET", c.do)
			if c.want == "" && got.err != nil || c.want != "" && (got.err == nil || !strings.Contains(got.err.Error(), c.want)) {
				t.Errorf("%+v, want %q", got, c.want)
			}
		})
	}
}

// FuzzServer feeds bytes to a server after the preface: it must end, and never hand out a request that breaks the rules.
func FuzzServer(f *testing.F) {
	seed := func(do func(*peer)) {
		var b bytes.Buffer
		p := &peer{t: f, fr: http2.NewFramer(&b, nil)}
		p.fr.AllowIllegalWrites = true
		p.enc = hpack.NewEncoder(&p.buf)
		_ = p.fr.WriteSettings()
		do(p)
		f.Add(b.Bytes())
	}
	seed(func(p *peer) { p.headers(1, true, get...) })
	seed(func(p *peer) { p.headers(1, false, post...); _ = p.fr.WriteData(1, true, []byte("body")) })
	seed(func(p *peer) {
		p.headers(1, false, post...)
		p.headers(1, true, "x-t", "v")
		_ = p.fr.WritePing(false, [8]byte{})
	})
	seed(func(p *peer) {
		p.headers(1, false, post...)
		_ = p.fr.WriteRSTStream(1, 8)
		_ = p.fr.WriteWindowUpdate(0, 9)
	})
	seed(func(p *peer) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		p.headers(1, true, get...)
		p.headers(3, true, get...)
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		c := NewServer(a, []byte(Preface), Options{MaxStreams: 10})
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, b)
		}()
		go func() {
			_, _ = b.Write(data)
			_ = b.Close()
		}()
		err := c.Serve(t.Context(), func(s *Stream) {
			for _, f := range s.req.Fields {
				if bytes.ContainsAny(f.Value, "\r\n\x00") || bytes.ContainsAny(f.Name, ": \r\n") || len(f.Name) == 0 {
					t.Errorf("field %q: %q", f.Name, f.Value)
				}
			}
			if len(s.req.Method) == 0 || !s.req.TooLarge && len(s.req.Target) == 0 && string(s.req.Method) != "CONNECT" {
				t.Errorf("request %q %q", s.req.Method, s.req.Target)
			}
			echo(s)
		})
		if !errors.Is(err, ErrClosed) {
			t.Errorf("ended with %v", err)
		}
		_ = a.Close()
		<-drained
		if len(c.streams) != 0 || c.handlers != 0 {
			t.Error(fmt.Sprint(len(c.streams), " streams left, ", c.handlers, " handlers"))
		}
	})
}
