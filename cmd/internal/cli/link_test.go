package cli

import (
	"testing"
	"time"

	"github.com/meshproof/meshproof/clusters"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]uint64{
		"": 0, "8bit": 1, "10mbit": 1_250_000, "1.5MB": 1_500_000, "100kbit": 12_500, "1gbit": 125_000_000, "20kB": 20_000, "9B": 9,
	} {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"10", "mbit", "-1MB", "0kB", "NaNMB", "InfMB", "1e30GB", "fast"} {
		if got, err := parseRate(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

func TestParseShare(t *testing.T) {
	for in, want := range map[string]float64{"": 0, "1%": 0.01, "0.25": 0.25, "100%": 1, "0": 0} {
		if got, err := parseShare(in); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"101%", "-1", "%", "NaN", "some"} {
		if got, err := parseShare(in); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}

func TestDescribeImpairment(t *testing.T) {
	got := describeImpairment(clusters.Impairment{Delay: 40 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.015, Rate: 1 << 20})
	if want := "delay 40ms, ± 5ms, loss 1.5%, rate 1048576 bytes/s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
