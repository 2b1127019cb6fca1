package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/breaker"
)

// bounded are limits with breakers.
func bounded(connections, pending uint32) (Limits, *breaker.Breakers) {
	b := &breaker.Breakers{}
	b.Connections.Set(connections)
	b.Pending.Set(pending)
	return Limits{Connections: &b.Connections, Pending: &b.Pending}, b
}

// TestBounds: with one connection and one place to wait, the third request is refused at once and the second has the
// connection when the first gives it back.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{}
		var st Stats
		l, b := bounded(1, 1)
		p := NewHTTP(d.dial, l, &st)
		began := time.Now()
		first := <-start(t.Context(), p, began)
		if first.err != nil {
			t.Fatal(first.err)
		}
		second := start(t.Context(), p, began)
		synctest.Wait()
		if _, err := p.Get(t.Context(), false); !errors.Is(err, breaker.ErrOverflow) || b.Pending.Overflows() != 1 {
			t.Errorf("third: %v, %d overflows", err, b.Pending.Overflows())
		}
		if d.opened.Load() != 1 || b.Connections.Overflows() == 0 {
			t.Errorf("%d dials, %d overflows of connections", d.opened.Load(), b.Connections.Overflows())
		}
		first.conn.Put()
		if g := <-second; g.conn != first.conn || b.Pending.Used() != 0 {
			t.Errorf("second: %+v, %d wait", g, b.Pending.Used())
		}
		first.conn.Discard()
		first.conn.Discard()
		if b.Connections.Used() != 0 {
			t.Errorf("%d connections are counted after the last was closed", b.Connections.Used())
		}
		p.Close()
	})
}

// TestLostConnectionMakesRoom: when the only connection goes, the one who waits gets another.
func TestLostConnectionMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{}
		var st Stats
		l, b := bounded(1, 5)
		p := NewHTTP(d.dial, l, &st)
		began := time.Now()
		first := <-start(t.Context(), p, began)
		second := start(t.Context(), p, began)
		synctest.Wait()
		first.conn.Discard()
		g := <-second
		if g.err != nil || g.at != 2*time.Second || d.opened.Load() != 2 || b.Connections.Used() != 1 {
			t.Errorf("%+v, %d dials, %d used", g, d.opened.Load(), b.Connections.Used())
		}
		g.conn.Discard()
		p.Close()
	})
}

// TestOneConnectionIsAlwaysAllowed: a pool whose cluster has spent its connections elsewhere still serves.
func TestOneConnectionIsAlwaysAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{}
		var st Stats
		l, b := bounded(1, 5)
		other, p := NewHTTP(d.dial, l, &st), NewHTTP(d.dial, l, &st)
		began := time.Now()
		a := <-start(t.Context(), other, began)
		g := <-start(t.Context(), p, began)
		if a.err != nil || g.err != nil || b.Connections.Used() != 2 {
			t.Errorf("%v, %v, %d used", a.err, g.err, b.Connections.Used())
		}
		a.conn.Discard()
		g.conn.Discard()
		other.Close()
		p.Close()
	})
}

// TestNothingIsKept: whatever happens to connections and to those who wait, everything taken is given back.
func TestNothingIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slow{}
		failing := func(ctx context.Context) (net.Conn, error) {
			if rand.N(4) == 0 {
				time.Sleep(time.Duration(rand.N(2000)) * time.Millisecond)
				return nil, errors.New("refused")
			}
			return d.dial(ctx)
		}
		var st Stats
		l, b := bounded(3, 4)
		l.MaxRequests = 5
		p := NewHTTP(failing, l, &st)
		var wg sync.WaitGroup
		served, refused := 0, 0
		var mu sync.Mutex
		for range 20 {
			wg.Go(func() {
				for range 30 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.N(3000))*time.Millisecond)
					c, err := p.Get(ctx, rand.N(20) == 0)
					mu.Lock()
					if err == nil {
						served++
					} else {
						refused++
					}
					mu.Unlock()
					time.Sleep(time.Duration(rand.N(300)) * time.Millisecond)
					switch {
					case err != nil:
					case rand.N(5) == 0:
						c.Discard()
					default:
						c.Put()
					}
					cancel()
				}
			})
		}
		wg.Wait()
		p.Close()
		synctest.Wait()
		time.Sleep(10 * time.Second) // dials that nobody waits for come to their end
		synctest.Wait()
		if served == 0 || refused == 0 {
			t.Errorf("%d served, %d refused: the test did not see both", served, refused)
		}
		if b.Connections.Used() != 0 || b.Pending.Used() != 0 || st.Active.Load() != 0 {
			t.Errorf("left: %d connections, %d waiting, %d active", b.Connections.Used(), b.Pending.Used(), st.Active.Load())
		}
	})
}
