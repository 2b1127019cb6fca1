// Package link is the cable between two clusters where it can be touched: frames are delayed, lost and throttled on their way
// from one device to another, and written down as they pass.
//
// The delay is made here and not by the kernel's netem, which many kernels are built without.
package link

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/meshproof/meshproof/clusters"
)

const (
	// maxWait is how long a frame may wait for a throttled link, as in a router whose buffer is that deep. Longer, and it is lost.
	maxWait = 200 * time.Millisecond
	// maxDelay bounds Delay and Jitter: beyond it a link is better cut.
	maxDelay = 10 * time.Second
	// minRate lets the longest frame through within maxWait.
	minRate = 8 << 10
)

// Check says what of an impairment cannot be done, and what can.
func Check(how clusters.Impairment) error {
	switch {
	case how.Delay < 0 || how.Delay > maxDelay:
		return fmt.Errorf("delay %s: give 0 to %s", how.Delay, maxDelay)
	case how.Jitter < 0 || how.Jitter > maxDelay:
		return fmt.Errorf("jitter %s: give 0 to %s", how.Jitter, maxDelay)
	case how.Jitter > how.Delay:
		return fmt.Errorf("jitter %s: is more than the delay %s, and no packet arrives before it is sent", how.Jitter, how.Delay)
	case math.IsNaN(how.Loss) || how.Loss < 0 || how.Loss > 1:
		return fmt.Errorf("loss %v: give a share from 0 to 1", how.Loss)
	case how.Rate > 0 && how.Rate < minRate:
		return fmt.Errorf("rate %d bytes/s: give at least %d, or cut the link", how.Rate, minRate)
	case how == clusters.Impairment{}:
		return errors.New("nothing to do: give a delay, a loss or a rate, or heal the link")
	}
	return nil
}

// shaper decides for each frame of one direction when it leaves the link. Frames keep their order, as on a cable.
type shaper struct {
	how    clusters.Impairment
	random func() float64 // in [0, 1)
	free   time.Time      // when a throttled link has sent what it took
	last   time.Time      // when the frame before this one leaves
}

// admit returns when a frame of that many bytes leaves; false means that it is lost.
func (s *shaper) admit(now time.Time, size int) (time.Time, bool) {
	if s.how.Loss > 0 && s.random() < s.how.Loss {
		return time.Time{}, false
	}
	due := now
	if s.how.Rate > 0 {
		start := latest(now, s.free)
		if start.Sub(now) > maxWait {
			return time.Time{}, false
		}
		s.free = start.Add(time.Duration(float64(size) / float64(s.how.Rate) * float64(time.Second)))
		due = s.free
	}
	delay := s.how.Delay
	if s.how.Jitter > 0 {
		delay += time.Duration((2*s.random() - 1) * float64(s.how.Jitter))
	}
	due = latest(due.Add(delay), s.last)
	s.last = due
	return due, true
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
