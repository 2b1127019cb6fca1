package outlier

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// bench is a detector over n hosts that counts its callbacks.
type bench struct {
	*Detector
	hosts   []*Host
	events  *Events
	changes int
}

func newBench(n int, change func(*conf.Outlier)) *bench {
	b := &bench{events: &Events{}}
	b.Detector = New("c", b.events, slog.New(slog.DiscardHandler))
	for i := range n {
		b.hosts = append(b.hosts, &Host{Addr: fmt.Sprintf("10.0.0.%d:80", i)})
	}
	c := conf.DefaultOutlier
	c.MaxPercent = 100
	if change != nil {
		change(&c)
	}
	b.Update(&c, b.hosts, func() { b.changes++ })
	return b
}

func (b *bench) ejected() string {
	s := ""
	for i, h := range b.hosts {
		if h.Ejected() {
			s += fmt.Sprint(i)
		}
	}
	return s
}

func put(h *Host, status ...int) {
	for _, s := range status {
		h.Put(Answered, s)
	}
}

// TestRows: what makes and what breaks a row of errors.
func TestRows(t *testing.T) {
	gateway := func(c *conf.Outlier) {
		c.Consecutive5xx, c.ConsecutiveGateway, c.Enforcing[conf.EjectGateway] = 0, 3, 100
	}
	for _, c := range []struct {
		name    string
		change  func(*conf.Outlier)
		status  []int
		ejected bool
		why     string
	}{
		{"one short", nil, []int{500, 500, 500, 500}, false, ""},
		{"exactly five", nil, []int{500, 503, 502, 599, 504}, true, "CONSECUTIVE_5XX"},
		{"broken by a success", nil, []int{500, 500, 500, 500, 200, 500}, false, ""},
		{"broken by a 404", nil, []int{500, 500, 500, 500, 404, 500}, false, ""},
		{"gateway errors are not enforced by default", nil, []int{503, 503, 503, 503}, false, ""},
		{"gateway", gateway, []int{502, 503, 504}, true, "CONSECUTIVE_GATEWAY_FAILURE"},
		{"gateway row broken by a 500", gateway, []int{502, 503, 500, 504, 502}, false, ""},
		{"gateway row broken by a success", gateway, []int{502, 503, 200, 504, 502}, false, ""},
		{"500s are not gateway errors", gateway, []int{500, 500, 500, 500}, false, ""},
		{"0 turns a row off", func(c *conf.Outlier) { c.Consecutive5xx = 0 }, []int{500, 500, 500, 500, 500, 500, 500}, false, ""},
		{"not enforced", func(c *conf.Outlier) { c.Enforcing[conf.Eject5xx] = 0 }, []int{500, 500, 500, 500, 500}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(2, c.change)
			put(b.hosts[0], c.status...)
			if got := b.ejected() == "0"; got != c.ejected || b.hosts[1].Ejected() {
				t.Fatalf("ejected %q, want %v", b.ejected(), c.ejected)
			}
			if c.ejected {
				if e := b.events.All(); e[len(e)-1].Type != c.why || !e[len(e)-1].Enforced || b.changes != 1 {
					t.Errorf("events %+v, %d changes", e, b.changes)
				}
			}
		})
	}
}

// TestDetectedNotEnforced: a row that is not enforced is counted and written down, and the next one counts from its end.
func TestDetectedNotEnforced(t *testing.T) {
	b := newBench(2, func(c *conf.Outlier) { c.Enforcing[conf.Eject5xx] = 0; c.Consecutive5xx = 2 })
	put(b.hosts[0], 500, 500, 500, 500)
	st := b.Stats()
	if d, e := st.DetectedBy[conf.Eject5xx].Load(), st.EnforcedBy[conf.Eject5xx].Load(); d != 2 || e != 0 || st.Enforced.Load() != 0 {
		t.Errorf("detected %d, enforced %d", d, e)
	}
	if e := b.events.All(); len(e) != 2 || e[0].Enforced || e[0].Ejections != 0 {
		t.Errorf("%+v", e)
	}
}

// TestLocalOrigin: how results that are no answers count, together with answers and apart.
func TestLocalOrigin(t *testing.T) {
	split := func(c *conf.Outlier) { c.Split, c.ConsecutiveLocal = true, 3 }
	for _, c := range []struct {
		name    string
		change  func(*conf.Outlier)
		results []Result // Answered stands for a 500
		want    Status
		ejected bool
	}{
		{"a lost connection is a 503", nil, []Result{ConnectFailed}, Status{Consecutive5xx: 1, ConsecutiveGateway: 1}, false},
		{"a timeout is a 504", nil, []Result{TimedOut, ConnectFailed}, Status{Consecutive5xx: 2, ConsecutiveGateway: 2}, false},
		{"a connection for a request says nothing", nil, []Result{ConnectFailed, Connected}, Status{Consecutive5xx: 1, ConsecutiveGateway: 1}, false},
		{"a connection for bytes is a success", nil, []Result{ConnectFailed, ConnectedFinal}, Status{}, false},
		{"five of them", nil, []Result{TimedOut, TimedOut, ConnectFailed, ConnectFailed, TimedOut}, Status{}, true},
		{"apart: only the local row grows", split, []Result{ConnectFailed, TimedOut}, Status{ConsecutiveLocal: 2}, false},
		{"apart: a connection ends it", split, []Result{ConnectFailed, TimedOut, Connected, ConnectFailed}, Status{ConsecutiveLocal: 1}, false},
		{"apart: an answer does not", split, []Result{ConnectFailed, Answered}, Status{ConsecutiveLocal: 1, Consecutive5xx: 1}, false},
		{"apart: three of them", split, []Result{ConnectFailed, TimedOut, ConnectFailed}, Status{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(2, c.change)
			for _, r := range c.results {
				b.hosts[0].Put(r, 500)
			}
			st := b.hosts[0].Status()
			if st.Ejected != c.ejected || !c.ejected && (st.Consecutive5xx != c.want.Consecutive5xx || st.ConsecutiveGateway != c.want.ConsecutiveGateway || st.ConsecutiveLocal != c.want.ConsecutiveLocal) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestCap: the share of hosts that may be out counts the host in question, of Envoy 1.28 and later.
func TestCap(t *testing.T) {
	for _, c := range []struct {
		hosts   int
		percent uint32
		always  bool
		want    string // hosts out after each of the hosts failed in turn
		over    int64
	}{
		{9, 10, false, "", 9},
		{10, 10, false, "0", 9},
		{3, 10, true, "0", 2},
		{3, 33, false, "", 3}, // 33.3 % is more than 33 %
		{3, 34, false, "0", 2},
		{4, 50, false, "01", 2},
		{3, 100, false, "012", 0},
		{1, 100, false, "0", 0},
		{2, 0, false, "", 2},
		{2, 0, true, "0", 1},
	} {
		b := newBench(c.hosts, func(o *conf.Outlier) { o.MaxPercent, o.AlwaysOne, o.Consecutive5xx = c.percent, c.always, 1 })
		for _, h := range b.hosts {
			put(h, 500)
		}
		if got := b.ejected(); got != c.want || b.Stats().Overflow.Load() != c.over || b.Stats().Active.Load() != int64(len(c.want)) {
			t.Errorf("%+v: out %q, overflow %d, active %d", c, got, b.Stats().Overflow.Load(), b.Stats().Active.Load())
		}
	}
}

// TestRefused: where the cap is reached every row of a host that is in counts as refused, each from the end of the one before, also rows
// that are not enforced; rows of a host that is out do not, nor do those that took one out. Source: outlier_detection_impl.cc,
// onConsecutiveErrorWorker and ejectHost.
func TestRefused(t *testing.T) {
	many := func(n, status int) []int { return slices.Repeat([]int{status}, n) }
	for _, c := range []struct {
		name     string
		percent  uint32
		puts     []int // of the last host, after three errors of the first and of the second
		refused  int64
		detected int64 // rows of 5xx
	}{
		{"no error", 50, many(9, 200), 0, 2},
		{"one short of a row", 50, many(2, 500), 0, 2},
		{"a row", 50, many(3, 500), 1, 3},
		{"each row counts from the end of the last", 50, many(11, 500), 3, 5},
		{"a good answer ends a row", 50, []int{500, 500, 200, 500, 500, 200, 500, 500, 500}, 1, 3},
		{"gateway errors have rows of five beside", 50, many(15, 503), 5 + 3, 2 + 5},
		{"a 500 ends a row of gateway errors", 50, []int{503, 503, 503, 503, 500, 503, 503, 503, 503}, 3, 5},
		{"the third may go", 75, many(9, 503), 0, 3},
		{"nobody may go", 10, many(6, 500), 2 + 2, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(4, func(o *conf.Outlier) { o.Consecutive5xx, o.MaxPercent = 3, c.percent })
			put(b.hosts[0], many(3, 503)...)
			put(b.hosts[1], many(3, 503)...)
			put(b.hosts[3], c.puts...)
			st := b.Stats()
			if got := st.Overflow.Load(); got != c.refused || st.DetectedBy[conf.Eject5xx].Load() != c.detected {
				t.Errorf("%d refused, %d rows; want %d and %d", got, st.DetectedBy[conf.Eject5xx].Load(), c.refused, c.detected)
			}
			if c.percent == 10 {
				return
			}
			put(b.hosts[0], many(30, 503)...) // in panic, say
			if got := st.Overflow.Load(); got != c.refused {
				t.Errorf("%d refused with those of a host that is out, want %d", got, c.refused)
			}
		})
	}
}

// run sweeps at every interval until the test's bubble ends it.
func (b *bench) run(t *testing.T, until time.Duration) {
	t.Helper()
	end := time.Now().Add(until)
	for due := b.Due(); !due.After(end); due = b.Due() {
		time.Sleep(time.Until(due))
		b.Sweep()
	}
	time.Sleep(time.Until(end))
}

// TestReturn: a host returns in a sweep, after the base time multiplied by the number of its ejections, up to the maximum;
// time without errors takes the multiplier back.
func TestReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(2, func(c *conf.Outlier) {
			c.Consecutive5xx, c.Interval, c.BaseEjection, c.MaxEjection = 1, 10*time.Second, 25*time.Second, 60*time.Second
		})
		h := b.hosts[0]
		out := func() time.Duration {
			began := time.Now()
			put(h, 500)
			if !h.Ejected() {
				t.Fatal("not ejected")
			}
			for h.Ejected() {
				b.run(t, 10*time.Second)
			}
			return time.Since(began)
		}
		// At the sweeps' own moments: 25, 50, 60 (75 capped) and 60 seconds, rounded up to the next sweep.
		for i, want := range []time.Duration{30, 50, 60, 60} {
			if got := out(); got != want*time.Second {
				t.Errorf("ejection %d lasted %v, want %v", i+1, got, want*time.Second)
			}
		}
		st := h.Status()
		if st.Ejections != 4 || st.Consecutive5xx != 0 || !st.ReturnedAt.Equal(time.Now()) {
			t.Errorf("%+v", st)
		}
		// The multiplier stands at 4 (one beyond the maximum); three sweeps take it to 1, so the next ejection has 2.
		b.run(t, 30*time.Second)
		if got := out(); got != 50*time.Second {
			t.Errorf("after 30 s without errors: %v, want 50s", got)
		}
		b.run(t, time.Hour)
		if got := out(); got != 30*time.Second {
			t.Errorf("after an hour without errors: %v, want 30s", got)
		}
		last := b.events.All()
		if e := last[len(last)-1]; e.Action != "UNEJECT" || *e.Since != 30 || e.Ejections != 6 {
			t.Errorf("%+v", e)
		}
	})
}

// TestJitter: the host stays out for up to the jitter longer, never shorter.
func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 50 {
			b := newBench(1, func(c *conf.Outlier) {
				c.Consecutive5xx, c.Interval, c.BaseEjection, c.MaxJitter = 1, time.Second, 10*time.Second, 5*time.Second
			})
			began := time.Now()
			put(b.hosts[0], 500)
			for b.hosts[0].Ejected() {
				b.run(t, time.Second)
			}
			d := time.Since(began)
			if d < 10*time.Second || d > 16*time.Second {
				t.Fatalf("out for %v", d)
			}
			seen[d] = true
		}
		if len(seen) < 3 {
			t.Errorf("jitter gave only %v", seen)
		}
	})
}

// TestRowsEndAtReturn: errors of before, and those that come while the host is out, do not count after its return.
func TestRowsEndAtReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(2, func(c *conf.Outlier) { c.Consecutive5xx = 3; c.Interval, c.BaseEjection = time.Second, time.Second })
		h := b.hosts[0]
		put(h, 503, 503, 503, 503, 503) // the last two in panic, say
		if st := h.Status(); st.Consecutive5xx != 2 || st.ConsecutiveGateway != 5 || st.Ejections != 1 {
			t.Fatalf("%+v", st)
		}
		b.run(t, time.Second)
		put(h, 503, 503)
		if h.Ejected() {
			t.Error("ejected by errors of its earlier life")
		}
		put(h, 503)
		if !h.Ejected() {
			t.Error("not ejected by three new errors")
		}
	})
}

// rates puts 100 results on each host, so many of them good.
func rates(b *bench, well ...int) {
	for i, n := range well {
		for k := range 100 {
			if k < n {
				put(b.hosts[i], 200)
			} else {
				put(b.hosts[i], 500)
			}
		}
	}
}

// TestSuccessRate: vectors of outlier_detection_impl.cc and its test: {50,100,100,100,100} has mean 90, deviation 20 and
// threshold 52.
func TestSuccessRate(t *testing.T) {
	off := func(c *conf.Outlier) { c.Consecutive5xx = 0 }
	for _, c := range []struct {
		name   string
		well   []int
		change func(*conf.Outlier)
		want   string
	}{
		{"outlier", []int{50, 100, 100, 100, 100}, off, "0"},
		{"exactly at the threshold", []int{50, 100, 100, 100, 100}, func(c *conf.Outlier) { off(c); c.SuccessRateStdev = 2000 }, ""}, // 90 - 2*20 = 50
		{"all alike", []int{80, 80, 80, 80, 80}, off, ""},
		{"too few hosts", []int{50, 100, 100, 100}, off, ""},
		{"too few requests", []int{50, 100, 100, 100, 100}, func(c *conf.Outlier) { off(c); c.SuccessRateVolume = 101 }, ""},
		{"not enforced", []int{50, 100, 100, 100, 100}, func(c *conf.Outlier) { off(c); c.Enforcing[conf.EjectSuccessRate] = 0 }, ""},
		{"failures, at the threshold", []int{15, 16, 100, 100, 100}, func(c *conf.Outlier) {
			off(c)
			c.Enforcing[conf.EjectSuccessRate], c.Enforcing[conf.EjectFailurePercentage] = 0, 100
		}, "0"},
		{"failures, too few requests", []int{0, 100, 100, 100, 100}, func(c *conf.Outlier) {
			off(c)
			c.Enforcing[conf.EjectSuccessRate], c.Enforcing[conf.EjectFailurePercentage], c.FailureVolume = 0, 100, 101
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(len(c.well), c.change)
			rates(b, c.well...)
			b.Sweep()
			if got := b.ejected(); got != c.want {
				t.Errorf("ejected %q, want %q: %+v", got, c.want, b.events.All())
			}
			// The next interval has no requests, so nobody else goes.
			b.Sweep()
			if got := b.ejected(); got != c.want {
				t.Errorf("after an empty interval %q", got)
			}
		})
	}
	b := newBench(5, off)
	rates(b, 50, 100, 100, 100, 100)
	b.Sweep()
	if e := b.events.All(); len(e) != 1 || e[0].Type != "SUCCESS_RATE" || *e[0].SuccessRate != (SuccessRateEvent{50, 90, 52}) {
		t.Errorf("%+v", e)
	}
	if st := b.hosts[0].Status(); st.SuccessRate != 50 || st.LocalSuccessRate != -1 {
		t.Errorf("%+v", st)
	}
}

// TestLocalSuccessRate: connections that fail on this side are compared on their own.
func TestLocalSuccessRate(t *testing.T) {
	b := newBench(5, func(c *conf.Outlier) { c.Split, c.ConsecutiveLocal = true, 0 })
	for i, h := range b.hosts {
		for k := range 100 {
			if i == 3 && k%2 == 0 {
				h.Put(ConnectFailed, 0)
			} else {
				h.Put(Connected, 0)
			}
		}
	}
	b.Sweep()
	if e := b.events.All(); b.ejected() != "3" || e[0].Type != "SUCCESS_RATE_LOCAL_ORIGIN" {
		t.Errorf("%q %+v", b.ejected(), e)
	}
}

// TestUpdate: hosts that stay keep their state, those that go leave the count of the ejected, and a closed detector lets
// everybody go.
func TestUpdate(t *testing.T) {
	b := newBench(4, func(c *conf.Outlier) { c.Consecutive5xx, c.MaxPercent = 2, 50 })
	put(b.hosts[0], 500, 500)
	put(b.hosts[1], 500)
	gone := b.hosts[0]
	c := *b.config.Load()
	c.MaxPercent = 34
	b.Update(&c, b.hosts[1:], func() { b.changes++ })
	if gone.Ejected() || gone.Watched() || b.Stats().Active.Load() != 0 || gone.Status().Ejections != 0 {
		t.Errorf("%+v, active %d", gone.Status(), b.Stats().Active.Load())
	}
	put(b.hosts[1], 500) // the second in its row
	if !b.hosts[1].Ejected() {
		t.Error("the row was lost in the update")
	}
	put(gone, 500, 500)
	if gone.Ejected() {
		t.Error("a host that is gone was ejected")
	}
	b.Close()
	if b.ejected() != "" || b.hosts[1].Watched() || b.Stats().Active.Load() != 0 {
		t.Errorf("after Close: %q", b.ejected())
	}
}

// TestConcurrent: many results at once eject each host once, and the count of the ejected is right.
func TestConcurrent(t *testing.T) {
	b := newBench(4, func(c *conf.Outlier) { c.Consecutive5xx, c.MaxPercent = 7, 50 })
	var wg sync.WaitGroup
	for _, h := range b.hosts {
		for range 3 {
			wg.Go(func() {
				for range 100 {
					put(h, 500)
				}
			})
		}
	}
	wg.Go(func() {
		for range 100 {
			b.Sweep()
			_ = b.events.All()
		}
	})
	wg.Wait()
	if n := len(b.ejected()); n != 2 || b.Stats().Enforced.Load() != 2 || b.Stats().Active.Load() != 2 || b.changes != 2 {
		t.Errorf("%d out, %d enforced, %d active, %d changes", n, b.Stats().Enforced.Load(), b.Stats().Active.Load(), b.changes)
	}
}

func TestEventLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands at 2000-01-01
		b := newBench(2, func(c *conf.Outlier) {
			c.Consecutive5xx, c.Interval, c.BaseEjection = 1, 10*time.Second, 10*time.Second
		})
		put(b.hosts[1], 500)
		b.run(t, 10*time.Second)
		var out bytes.Buffer
		if err := b.events.Write(&out); err != nil {
			t.Fatal(err)
		}
		want := `{"type":"CONSECUTIVE_5XX","timestamp":"2000-01-01T00:00:00Z","cluster_name":"c","upstream_url":"10.0.0.1:80","action":"EJECT","num_ejections":1,"enforced":true,"eject_consecutive_event":{}}
{"type":"CONSECUTIVE_5XX","timestamp":"2000-01-01T00:00:10Z","secs_since_last_action":"10","cluster_name":"c","upstream_url":"10.0.0.1:80","action":"UNEJECT","num_ejections":1,"enforced":false}
`
		if out.String() != want {
			t.Errorf("%s", out.String())
		}
		for line := range strings.Lines(out.String()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("%q", line)
			}
		}
	})
}

func TestEventLogIsBounded(t *testing.T) {
	var l Events
	for i := range kept + 3 {
		l.add(Event{Ejections: uint32(i)})
	}
	if all := l.All(); len(all) != kept || all[0].Ejections != 3 || all[kept-1].Ejections != kept+2 {
		t.Errorf("%d events, %d to %d", len(all), all[0].Ejections, all[len(all)-1].Ejections)
	}
}

func TestPutDoesNotAllocate(t *testing.T) {
	b := newBench(2, nil)
	if n := testing.AllocsPerRun(100, func() { put(b.hosts[0], 200, 500) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
