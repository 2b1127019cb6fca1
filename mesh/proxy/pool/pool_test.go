package pool

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// slow dials in-memory connections that take a second each, and counts them.
type slow struct {
	opened atomic.Int64
	err    error
}

func (d *slow) dial(ctx context.Context) (net.Conn, error) {
	d.opened.Add(1)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if d.err != nil {
		return nil, d.err
	}
	a, b := net.Pipe()
	go func() { // the other end reads until it is closed
		_, _ = io.Copy(io.Discard, b)
		_ = b.Close()
	}()
	return a, nil
}

type got struct {
	conn *Conn
	err  error
	at   time.Duration
}

// start asks for a connection at once and delivers it to the channel.
func start(ctx context.Context, p *HTTP, began time.Time) chan got {
	out := make(chan got, 1)
	go func() {
		c, err := p.Get(ctx, false)
		out <- got{c, err, time.Since(began)}
	}()
	return out
}

func TestFreedConnectionServesWaiterBeforeItsOwnDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{}
		var st Stats
		p := NewHTTP(d.dial, Limits{}, &st)
		began := time.Now()
		first := <-start(t.Context(), p, began)
		if first.err != nil || first.at != time.Second {
			t.Fatalf("first: %v after %v, want a dial of 1 s", first.err, first.at)
		}
		second := start(t.Context(), p, began)
		synctest.Wait() // it waits, and its dial is under way
		time.Sleep(200 * time.Millisecond)
		first.conn.Put()
		g := <-second
		if g.conn != first.conn || g.at != 1200*time.Millisecond {
			t.Errorf("second got %p after %v, want the freed %p after 1.2s", g.conn, g.at, first.conn)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if p.Idle() != 1 || d.opened.Load() != 2 {
			t.Errorf("%d idle of %d opened; want the dial that nobody needed, idle", p.Idle(), d.opened.Load())
		}
		g.conn.Discard()
		p.Close()
		if n := st.Active.Load(); n != 0 {
			t.Errorf("%d connections open after close", n)
		}
		synctest.Wait()
	})
}

func TestDialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{}
		p := NewHTTP(d.dial, Limits{}, &Stats{})
		began := time.Now()
		var waits []chan got
		for range 3 * maxDialing {
			waits = append(waits, start(t.Context(), p, began))
		}
		synctest.Wait()
		if d.opened.Load() != maxDialing {
			t.Errorf("%d dials at once, want %d", d.opened.Load(), maxDialing)
		}
		var conns []*Conn
		for _, w := range waits {
			g := <-w
			if g.err != nil {
				t.Fatal(g.err)
			}
			conns = append(conns, g.conn)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("all served after %v, want three rounds of dials", took)
		}
		for _, c := range conns {
			c.Discard()
		}
		p.Close()
		synctest.Wait()
	})
}

func TestFailedDialFailsItsWaiterOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{err: errors.New("refused")}
		var st Stats
		p := NewHTTP(d.dial, Limits{}, &st)
		a, b := start(t.Context(), p, time.Now()), start(t.Context(), p, time.Now())
		for _, w := range []chan got{a, b} {
			if g := <-w; !errors.Is(g.err, d.err) {
				t.Errorf("got %v, want the dial's error", g.err)
			}
		}
		if d.opened.Load() != 2 || st.Failed.Load() != 2 {
			t.Errorf("%d dials, %d failed; want one a waiter", d.opened.Load(), st.Failed.Load())
		}
		p.Close()
		synctest.Wait()
	})
}

func TestConnectTimeoutAndCallerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewHTTP((&slow{}).dial, Limits{ConnectTimeout: 100 * time.Millisecond}, &Stats{})
		if _, err := p.Get(t.Context(), false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a connect timeout", err)
		}
		p.SetLimits(Limits{})
		ctx, cancel := context.WithCancelCause(t.Context())
		w := start(ctx, p, time.Now())
		synctest.Wait()
		gone := errors.New("caller gone")
		cancel(gone)
		if g := <-w; !errors.Is(g.err, gone) {
			t.Errorf("got %v, want the cause", g.err)
		}
		p.Close() // ends the dial that nobody waits for
		synctest.Wait()
	})
}

func TestClosedPoolStillServesRequestsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st Stats
		p := NewHTTP((&slow{}).dial, Limits{}, &st)
		w := start(t.Context(), p, time.Now())
		synctest.Wait()
		p.Close()
		g := <-w
		if g.err != nil {
			t.Fatalf("a request that waited at close: %v", g.err)
		}
		g.conn.Put()
		late := <-start(t.Context(), p, time.Now())
		if late.err != nil {
			t.Fatalf("a request that came just after close: %v", late.err)
		}
		late.conn.Put()
		synctest.Wait()
		if n := st.Active.Load(); n != 0 || p.Idle() != 0 {
			t.Errorf("%d open, %d idle in a closed pool", n, p.Idle())
		}
	})
}

// serve2 dials in-memory connections to HTTP/2 servers that answer 200.
func serve2(t *testing.T) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a, b := net.Pipe()
		go func() {
			_ = http2.NewServer(b, nil, http2.Options{}).Serve(t.Context(), func(s *http2.Stream) {
				s.Response(&http1.Response{Status: 200}, 0, false, false)
			})
			_ = b.Close()
		}()
		return a, nil
	}
}

// get2 makes one request on a stream.
func get2(s *H2) error {
	s.Request(&http1.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("x")})
	_ = s.Flush()
	var p http1.Response
	return s.ReadResponse(&p, http1.Limits{}, false)
}

func TestClosedHTTP2PoolStillServesRequestsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st Stats
		l, b := bounded(10, 10)
		p := NewHTTP2(serve2(t), l, &st)
		out, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		if err := get2(out); err != nil {
			t.Errorf("a stream that was given out before the close: %v", err)
		}
		late, err := p.Get(t.Context())
		if err != nil {
			t.Fatalf("a request that came just after close: %v", err)
		}
		if err := get2(late); err != nil {
			t.Errorf("a request that came just after close: %v", err)
		}
		out.Put()
		late.Put()
		synctest.Wait()
		if st.Active.Load() != 0 || b.Connections.Used() != 0 || p.Connections() != 0 {
			t.Errorf("%d open, %d counted, %d kept in a closed pool", st.Active.Load(), b.Connections.Used(), p.Connections())
		}
		p.End()
		if _, err := p.Get(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}
