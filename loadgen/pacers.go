package loadgen

import (
	"math"
	"time"
)

// Due is when request n of the schedule is due, counted from its start. It is false when the schedule ends before n. A
// stateless Pacer asked at elapsed 0 answers just that.
func Due(p Pacer, n uint64) (time.Duration, bool) {
	due, done := p.Next(0, n)
	return due, !done
}

// Constant sends rate requests a second for the time d, the first at once. Request n is due at n/rate.
func Constant(rate float64, d time.Duration) Pacer {
	return Steps([]Step{{Rate: rate, For: d}})
}

// Ramp changes the rate evenly from one to another over the time d. With rates a and b, a*t + (b-a)*t²/(2d) requests are due
// by the time t; request n is due when that reaches n.
func Ramp(from, to float64, d time.Duration) Pacer {
	return ramp{from: from, slope: (to - from) / d.Seconds(), length: d}
}

type ramp struct {
	from, slope float64 // requests/s, requests/s²
	length      time.Duration
}

func (r ramp) Next(elapsed time.Duration, sent uint64) (time.Duration, bool) {
	n := float64(sent)
	if n == 0 {
		if r.from == 0 && r.slope <= 0 {
			return 0, true
		}
		return until(0, elapsed), false
	}
	// a*t + slope*t²/2 = n, in the form that stays exact when slope is near 0.
	root := r.from*r.from + 2*r.slope*n
	if root < 0 {
		return 0, true
	}
	divisor := r.from + math.Sqrt(root)
	if divisor <= 0 {
		return 0, true
	}
	due := seconds(2 * n / divisor)
	if due >= r.length {
		return 0, true
	}
	return until(due, elapsed), false
}

// Step is a constant rate for a time. Rate 0 is a pause.
type Step struct {
	Rate float64       `json:"rate"` // requests/s
	For  time.Duration `json:"for"`
}

// Steps runs one constant rate after another. A request that is only partly due when a step ends is due in the next one, so
// the count over all steps is exact.
func Steps(list []Step) Pacer {
	return steps(append([]Step(nil), list...))
}

type steps []Step

func (s steps) Next(elapsed time.Duration, sent uint64) (time.Duration, bool) {
	// In whole requests and whole steps from the start: begun requests are due before this step, which starts at start.
	var (
		begun float64
		start time.Duration
	)
	n := float64(sent)
	for _, step := range s {
		length := step.For.Seconds()
		// A request due exactly at the end of a step belongs to the next. The slack is far below one request and far above
		// the rounding of the sums; a step that is shorter still keeps its first request.
		count := step.Rate * length
		if end := begun + count; n < end-min(1e-6, count/2) {
			due := start + seconds(math.Max(0, (n-begun)/step.Rate))
			return until(due, elapsed), false
		} else {
			begun = end
		}
		start += step.For
	}
	return 0, true
}

func until(due, elapsed time.Duration) time.Duration { return max(0, due-elapsed) }

// seconds rounds to the nanosecond.
func seconds(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }
