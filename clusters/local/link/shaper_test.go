package link

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/clusters"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		how  clusters.Impairment
		want string // "" is fine
	}{
		"all":            {clusters.Impairment{Delay: time.Second, Jitter: time.Second, Loss: 1, Rate: 1 << 20}, ""},
		"loss only":      {clusters.Impairment{Loss: 0.01}, ""},
		"nothing":        {clusters.Impairment{}, "nothing to do"},
		"negative delay": {clusters.Impairment{Delay: -1}, "delay -1ns: give 0 to 10s"},
		"long delay":     {clusters.Impairment{Delay: time.Minute}, "delay 1m0s: give 0 to 10s"},
		"long jitter":    {clusters.Impairment{Delay: time.Second, Jitter: time.Minute}, "jitter 1m0s: give 0 to 10s"},
		"more jitter":    {clusters.Impairment{Delay: 1, Jitter: 2}, "jitter 2ns: is more than the delay"},
		"negative loss":  {clusters.Impairment{Loss: -0.1}, "loss -0.1: give a share from 0 to 1"},
		"percent":        {clusters.Impairment{Loss: 5}, "loss 5: give a share"},
		"no number":      {clusters.Impairment{Loss: math.NaN()}, "loss NaN"},
		"slow":           {clusters.Impairment{Rate: 100}, "rate 100 bytes/s: give at least 8192"},
	} {
		err := Check(c.how)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestShaper(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	half := func() float64 { return 0.5 }
	type in struct{ at, size, want int } // milliseconds; -1: lost
	for name, c := range map[string]struct {
		how    clusters.Impairment
		random func() float64
		frames []in
	}{
		"delay":              {clusters.Impairment{Delay: 30 * time.Millisecond}, half, []in{{0, 100, 30}, {5, 100, 35}, {500, 1500, 530}}},
		"rate":               {clusters.Impairment{Rate: 10000}, half, []in{{0, 100, 10}, {0, 100, 20}, {15, 100, 30}, {100, 1000, 200}}},
		"rate, then delay":   {clusters.Impairment{Rate: 10000, Delay: 30 * time.Millisecond}, half, []in{{0, 100, 40}, {0, 100, 50}}},
		"buffer is full":     {clusters.Impairment{Rate: 10000}, half, []in{{0, 2000, 200}, {0, 100, 210}, {0, 100, -1}, {11, 100, 220}}},
		"jitter in the mean": {clusters.Impairment{Delay: 30 * time.Millisecond, Jitter: 10 * time.Millisecond}, half, []in{{0, 1, 30}}},
		"least jitter":       {clusters.Impairment{Delay: 30 * time.Millisecond, Jitter: 10 * time.Millisecond}, func() float64 { return 0 }, []in{{0, 1, 20}}},
		"lost":               {clusters.Impairment{Loss: 0.6}, half, []in{{0, 1, -1}}},
		"not lost":           {clusters.Impairment{Loss: 0.4}, half, []in{{0, 1, 0}}},
		"never with no loss": {clusters.Impairment{Delay: time.Millisecond}, func() float64 { return 0 }, []in{{0, 1, 1}}},
		"always with loss 1": {clusters.Impairment{Loss: 1}, func() float64 { return math.Nextafter(1, 0) }, []in{{0, 1, -1}}},
	} {
		s := &shaper{how: c.how, random: c.random}
		for i, f := range c.frames {
			got, ok := s.admit(at(f.at), f.size)
			if ok != (f.want >= 0) || ok && !got.Equal(at(f.want)) {
				t.Errorf("%s: frame %d leaves %v, %v; want %d ms", name, i, got.Sub(start), ok, f.want)
			}
		}
	}
}

// TestShaperOrder finds no frame that overtakes another, and none outside of delay ± jitter but by waiting for one.
func TestShaperOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	how := clusters.Impairment{Delay: 20 * time.Millisecond, Jitter: 20 * time.Millisecond}
	s := &shaper{how: how, random: r.Float64}
	now, last := time.Unix(0, 0), time.Time{}
	for i := range 10000 {
		now = now.Add(time.Duration(r.IntN(3)) * time.Millisecond)
		due, ok := s.admit(now, 1000)
		if !ok || due.Before(last) || due.Before(now) || due.Sub(now) > how.Delay+how.Jitter {
			t.Fatalf("frame %d: in %s, out %s, the one before %s", i, now, due, last)
		}
		last = due
	}
}

// TestShaperLoss is right by its seed; the bound is six standard deviations.
func TestShaperLoss(t *testing.T) {
	const n, loss = 100000, 0.03
	s := &shaper{how: clusters.Impairment{Loss: loss}, random: rand.New(rand.NewPCG(3, 4)).Float64}
	lost := 0
	for range n {
		if _, ok := s.admit(time.Time{}, 1); !ok {
			lost++
		}
	}
	if off := math.Abs(float64(lost) - n*loss); off > 6*math.Sqrt(n*loss*(1-loss)) {
		t.Errorf("%d of %d frames lost, want %v of them", lost, n, loss)
	}
}
