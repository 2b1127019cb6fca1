package outlier

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Host is what is known about one endpoint of a cluster. It outlives the configs that name it. The zero value is one that no
// Detector watches: it is never ejected.
type Host struct {
	Addr     string // host:port, for events; set before any use
	detector atomic.Pointer[Detector]
	ejected  atomic.Bool

	mu sync.Mutex
	st Status
	// Requests since the last sweep: all, and those that went well. Local ones count only apart (conf.Outlier.Split).
	all, well           uint32
	localAll, localWell uint32
	backoff             int
	jitter              time.Duration
}

// Status is a Host at one instant.
type Status struct {
	Ejected bool
	// Errors in a row.
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal uint32
	Ejections                                            uint32 // in all
	EjectedAt, ReturnedAt                                time.Time
	// Percent of the last interval's requests that went well; -1 where there were too few.
	SuccessRate, LocalSuccessRate float64
}

// Ejected reports whether the host is out of use.
func (h *Host) Ejected() bool { return h.ejected.Load() }

// Watched reports whether a detector counts the host's results.
func (h *Host) Watched() bool { return h.detector.Load() != nil }

// Status returns a copy.
func (h *Host) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.st
}

// Put counts the result of one try; status is the HTTP status of Answered. Where it completes a row of errors, the host is
// ejected before Put returns, if it may be.
func (h *Host) Put(r Result, status int) {
	d := h.detector.Load()
	if d == nil {
		return
	}
	c := d.config.Load()
	if c.Split {
		switch r {
		case Answered:
			h.answered(d, c, status)
		case Connected, ConnectedFinal:
			h.local(d, c, true)
		default:
			h.local(d, c, false)
		}
		return
	}
	switch r {
	case Answered:
		h.answered(d, c, status)
	case ConnectedFinal:
		h.answered(d, c, 200)
	case ConnectFailed:
		h.answered(d, c, 503)
	case TimedOut:
		h.answered(d, c, 504)
	case Connected: // what follows counts
	}
}

func (h *Host) answered(d *Detector, c *conf.Outlier, status int) {
	var gateway, server bool
	h.mu.Lock()
	h.all++
	switch {
	case status < 500:
		h.well++
		h.st.Consecutive5xx, h.st.ConsecutiveGateway = 0, 0
	default:
		if status >= 502 && status <= 504 {
			h.st.ConsecutiveGateway++
			gateway = h.st.ConsecutiveGateway == c.ConsecutiveGateway
		} else {
			h.st.ConsecutiveGateway = 0
		}
		h.st.Consecutive5xx++
		server = h.st.Consecutive5xx == c.Consecutive5xx
	}
	h.mu.Unlock()
	if gateway {
		d.row(h, conf.EjectGateway)
	}
	if server {
		d.row(h, conf.Eject5xx)
	}
}

func (h *Host) local(d *Detector, c *conf.Outlier, ok bool) {
	row := false
	h.mu.Lock()
	h.localAll++
	if ok {
		h.localWell++
		h.st.ConsecutiveLocal = 0
	} else {
		h.st.ConsecutiveLocal++
		row = h.st.ConsecutiveLocal == c.ConsecutiveLocal
	}
	h.mu.Unlock()
	if row {
		d.row(h, conf.EjectLocal)
	}
}

// reset ends the row of one type.
func (h *Host) reset(t conf.EjectionType) {
	h.mu.Lock()
	switch t {
	case conf.Eject5xx:
		h.st.Consecutive5xx = 0
	case conf.EjectGateway:
		h.st.ConsecutiveGateway = 0
	case conf.EjectLocal:
		h.st.ConsecutiveLocal = 0
	default: // other types have no row
	}
	h.mu.Unlock()
}

// interval closes the books of an interval and returns its success rates and volumes, from here and from upstream.
func (h *Host) interval() (external, local rate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	external, local = rate{h, h.well, h.all}, rate{h, h.localWell, h.localAll}
	h.all, h.well, h.localAll, h.localWell = 0, 0, 0, 0
	h.st.SuccessRate, h.st.LocalSuccessRate = -1, -1
	return external, local
}

// rate is the outcome of one host over one interval.
type rate struct {
	h         *Host
	well, all uint32
}

func (r rate) percent() float64 { return 100 * float64(r.well) / float64(r.all) }
