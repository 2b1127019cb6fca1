package hcm

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/peek"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// chain drains when it is told to.
type chain struct {
	conf     conf.FilterChain
	draining atomic.Bool
	on       func(last bool)
}

func (c *chain) Current() *conf.FilterChain                 { return &c.conf }
func (c *chain) Draining() bool                             { return c.draining.Load() }
func (c *chain) OnDrain(f func(bool)) (forget func())       { c.on = f; return func() {} }
func (c *chain) HTTP(*conf.HTTP, *telemetry.Record)         {}
func (c *chain) Messages(*telemetry.Record, uint64, uint64) {}
func (c *chain) Serve(_ context.Context, s *filter.Stream) {
	s.Reply(200, []byte("served"), "text/plain", "")
}
func (c *chain) drain(last bool) { c.draining.Store(true); c.on(last) }

func newChain(h conf.HTTP) *chain {
	h.MaxHeaderBytes, h.MaxHeaders = 1<<10, 10
	return &chain{conf: conf.FilterChain{HTTP: &h}}
}

// unlucky is a connection on which bytes arrive in the moment in which a wait for them has timed out.
type unlucky struct {
	*net.TCPConn
	expired func() // once
	once    sync.Once
	waiting chan struct{} // a value for each Read
}

func (c *unlucky) Read(b []byte) (int, error) {
	select {
	case c.waiting <- struct{}{}:
	default:
	}
	n, err := c.TCPConn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.once.Do(c.expired)
	}
	return n, err
}

// TestRequestAtTheLastMoment: a request that comes just as its connection is given up is answered, and told that the connection
// ends where that is so.
func TestRequestAtTheLastMoment(t *testing.T) {
	for _, c := range []struct {
		name  string
		http  conf.HTTP
		first bool // a request was served before
		end   func(*chain)
		close bool
	}{
		{"end of a drain", conf.HTTP{}, true, func(c *chain) { c.drain(true) }, true},
		{"end of a drain, with an idle timeout", conf.HTTP{IdleTimeout: time.Hour}, true, func(c *chain) { c.drain(true) }, true},
		{"end of a drain, codec unknown", conf.HTTP{Codec: conf.CodecAuto}, false, func(c *chain) { c.drain(true) }, true},
		{"idle timeout", conf.HTTP{IdleTimeout: 50 * time.Millisecond}, true, func(*chain) {}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, there := pair(t)
			ask := func() { _, _ = io.WriteString(there, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") }
			ch := newChain(c.http)
			nc := &unlucky{TCPConn: here, waiting: make(chan struct{}, 1)}
			nc.expired = func() {
				ask()
				arrive(t, nc)
			}
			m := &Manager{Router: ch, Recorder: ch}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				m.Serve(t.Context(), &filter.Conn{Conn: nc, Chain: ch})
				_ = here.Close()
			}()
			in := bufio.NewReader(there)
			if c.first {
				ask()
				if closes := answered(t, in); closes {
					t.Error("the first answer ends the connection")
				}
			}
			<-nc.waiting
			c.end(ch)
			if closes := answered(t, in); closes != c.close {
				t.Errorf("the answer says close: %v, want %v", closes, c.close)
			}
			_ = there.CloseWrite()
			<-ended
		})
	}
}

// TestDrainTellsBeforeItEnds: a drain that begins within an answer does not end the connection behind it, of which the client
// heard nothing: the next answer says so.
func TestDrainTellsBeforeItEnds(t *testing.T) {
	here, there := pair(t)
	ch := newChain(conf.HTTP{})
	m := &Manager{Router: within{ch}, Recorder: ch}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Serve(t.Context(), &filter.Conn{Conn: here, Chain: ch})
		_ = here.Close()
	}()
	in := bufio.NewReader(there)
	for _, want := range []bool{false, true} {
		_, _ = io.WriteString(there, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if closes := answered(t, in); closes != want {
			t.Errorf("the answer says close: %v, want %v", closes, want)
		}
	}
	<-ended
}

// within begins the drain behind the head of each answer.
type within struct{ c *chain }

func (w within) Serve(_ context.Context, s *filter.Stream) {
	s.Reply(200, []byte("served"), "text/plain", "")
	w.c.drain(false)
}

func answered(t *testing.T, in *bufio.Reader) (closes bool) {
	t.Helper()
	p, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	b, err := io.ReadAll(p.Body)
	if err != nil || string(b) != "served" {
		t.Fatalf("answer %s %q, %v", p.Status, b, err)
	}
	return p.Close
}

// arrive waits until c has something to read.
func arrive(t *testing.T, c *unlucky) {
	s := peek.New(c)
	for end := time.Now().Add(10 * time.Second); s.State() != peek.Bytes; {
		if time.Now().After(end) {
			t.Error("the request never came")
			return
		}
	}
}

func pair(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), d.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return d.(*net.TCPConn), c.(*net.TCPConn)
}
