package verdict

import (
	"strings"
	"testing"
	"time"
)

func TestObeyed(t *testing.T) {
	first := Obeyed{ID: "first", Applied: sec(0), Acked: sec(.05), Seen: sec(.04), Within: 2 * time.Second, N: 900}
	last := first
	last.Last, last.Seen = true, sec(.06)
	for name, c := range map[string]struct {
		in     Obeyed
		change func(*Obeyed)
		want   Outcome
		text   string
	}{
		"first in time":       {first, func(*Obeyed) {}, Pass, "40.0 ms after it was applied, 10.0 ms before the last acknowledgement"},
		"last in time":        {last, func(*Obeyed) {}, Pass, "60.0 ms after it was applied, 10.0 ms after the last acknowledgement"},
		"at the bound":        {first, func(v *Obeyed) { v.Seen = sec(2) }, Pass, "2.00 s after"},
		"too late":            {last, func(v *Obeyed) { v.Seen = sec(2.1) }, Fail, "2.10 s after the change was applied"},
		"sent before":         {first, func(v *Obeyed) { v.Seen = sec(-.002) }, Pass, "2.00 ms before it was applied, and answered after"},
		"never obeyed":        {first, func(v *Obeyed) { v.Seen = time.Time{} }, Fail, "none of 900 requests shows the change"},
		"nothing disobeyed":   {last, func(v *Obeyed) { v.Seen = time.Time{} }, Pass, "none after the change was applied"},
		"nobody acknowledged": {first, func(v *Obeyed) { v.Acked = time.Time{} }, Pass, "40.0 ms after it was applied; "},
		"nothing looked at":   {first, func(v *Obeyed) { v.N = 0 }, Inconclusive, "no requests"},
	} {
		c.change(&c.in)
		got := c.in.Claim()
		if text := got.Observed + "; " + got.Reason; got.Outcome != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %s: %s", name, got.Outcome, text)
		}
	}
}
