package traffic

import (
	"testing"

	"github.com/meshproof/meshproof/scenarios/lab"
)

// Each window collects, at the planned rates, what every claim of its step needs.
func TestWindowsAreLongEnough(t *testing.T) {
	for _, profile := range lab.Profiles() {
		pl := canaryPlan(lab.Profile(profile))
		for _, s := range canarySteps()[1:] {
			w := pl.window(s, samples).Seconds()
			t.Logf("%s %s: %.1fs", profile, s, w)
			for _, sp := range pl.splits {
				pooled := 0.0
				for _, src := range sp.weighted() {
					pooled += src.rate
					t.Logf("  %s needs %d, gets %.0f", src.name, samples(s.share(), src.delta), src.rate*w)
					if n := samples(s.share(), src.delta); src.rate*w < float64(n) {
						t.Errorf("%s at %s: %s has %.0f samples of %d", profile, s, src.name, src.rate*w, n)
					}
				}
				if n := samples(s.share(), pl.delta); pooled*w < float64(n) {
					t.Errorf("%s at %s: %s has %.0f samples of %d", profile, s, sp.app, pooled*w, n)
				}
			}
		}
		t.Logf("%s in all: %s", profile, pl.length(samples))
	}
}

// The deviations that the profiles promise to catch.
func TestPlannedSampleSizes(t *testing.T) {
	for _, c := range []struct {
		share, catch float64
		n            int
	}{{0.9, 0.05, 2742}, {0.1, 0.05, 2742}, {0.5, 0.05, 6378}, {0.9, 0.02, 15521}, {0.5, 0.02, 39866}} {
		if got := samples(c.share, c.catch); got < c.n*98/100 || got > c.n*102/100 {
			t.Errorf("share %v, %v points: %d samples, published %d", c.share, 100*c.catch, got, c.n)
		}
	}
	if q := canaryPlan(lab.Quick).delta; q > 0.05 {
		t.Errorf("quick catches %v, promised 0.05", q)
	}
	if n := canaryPlan(lab.Nightly).delta; n > 0.02 {
		t.Errorf("nightly catches %v, promised 0.02", n)
	}
}
