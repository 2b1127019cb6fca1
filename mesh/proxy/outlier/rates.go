package outlier

import (
	"math"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// compare ejects hosts whose success rate lies far below that of the others, or whose failures are too many. local chooses the
// results seen on this side. The lock is held.
func (d *Detector) compare(c *conf.Outlier, rates []rate, local bool) {
	if uint32(len(rates)) < c.SuccessRateHosts && uint32(len(rates)) < c.FailureHosts {
		return
	}
	var forRate, forFailures []rate
	sum := 0.0
	for _, r := range rates {
		if r.h.ejected.Load() || r.all == 0 {
			continue
		}
		if r.all >= min(c.SuccessRateVolume, c.FailureVolume) {
			r.h.setRate(r.percent(), local)
		}
		if r.all >= c.SuccessRateVolume {
			forRate = append(forRate, r)
			sum += r.percent()
		}
		if r.all >= c.FailureVolume {
			forFailures = append(forFailures, r)
		}
	}
	byRate, byFailures := conf.EjectSuccessRate, conf.EjectFailurePercentage
	if local {
		byRate, byFailures = conf.EjectSuccessRateLocal, conf.EjectFailurePercentageLocal
	}
	if len(forRate) > 0 && uint32(len(forRate)) >= c.SuccessRateHosts {
		mean, threshold := bounds(forRate, sum, float64(c.SuccessRateStdev)/1000)
		for _, r := range forRate {
			if r.percent() < threshold {
				d.stats.DetectedBy[byRate].Add(1)
				d.eject(r.h, byRate, Event{SuccessRate: &SuccessRateEvent{whole(r.percent()), whole(mean), whole(threshold)}})
			}
		}
	}
	if len(forFailures) > 0 && uint32(len(forFailures)) >= c.FailureHosts {
		for _, r := range forFailures {
			if !r.h.ejected.Load() && 100-r.percent() >= float64(c.FailureThreshold) {
				d.stats.DetectedBy[byFailures].Add(1)
				d.eject(r.h, byFailures, Event{Failures: &FailureEvent{whole(r.percent())}})
			}
		}
	}
}

// bounds is the mean of the rates, and the mean less factor times their (population) standard deviation.
func bounds(rates []rate, sum, factor float64) (mean, threshold float64) {
	mean = sum / float64(len(rates))
	variance := 0.0
	for _, r := range rates {
		variance += (r.percent() - mean) * (r.percent() - mean)
	}
	return mean, mean - factor*math.Sqrt(variance/float64(len(rates)))
}

// whole is how the proto's uint32 fields hold a percentage.
func whole(v float64) uint32 { return uint32(max(v, 0)) }

func (h *Host) setRate(v float64, local bool) {
	h.mu.Lock()
	if local {
		h.st.LocalSuccessRate = v
	} else {
		h.st.SuccessRate = v
	}
	h.mu.Unlock()
}
