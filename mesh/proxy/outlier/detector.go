package outlier

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Detector watches the hosts of one cluster. All methods are safe for concurrent use.
type Detector struct {
	cluster string
	events  *Events
	log     *slog.Logger
	config  atomic.Pointer[conf.Outlier]

	mu      sync.Mutex
	hosts   []*Host
	active  int
	changed func()
	last    time.Time // of sweeps; of the start before the first
	stats   Stats
}

// Stats count ejections. Source: the outlier detection statistics of Envoy's cluster.
type Stats struct {
	Active, Overflow, Enforced atomic.Int64
	DetectedBy, EnforcedBy     [conf.EjectionTypes]atomic.Int64
}

// New returns a Detector that watches nothing yet. Events and the log hear of every ejection and return.
func New(cluster string, events *Events, log *slog.Logger) *Detector {
	return &Detector{cluster: cluster, events: events, log: log, last: time.Now()}
}

// Stats returns the live counters.
func (d *Detector) Stats() *Stats { return &d.stats }

// Update makes c and hosts current. Hosts that stay keep what is known of them; those that are gone are free of it. The order
// of hosts decides which of several that fail together are ejected before the cap is reached. changed is called, until the next Update, whenever a host is ejected or returns, before the cause of it goes on;
// it must not call the Detector.
func (d *Detector) Update(c *conf.Outlier, hosts []*Host, changed func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config.Store(c)
	d.changed = changed
	keep := make(map[*Host]bool, len(hosts))
	old := d.hosts
	d.hosts = nil
	for _, h := range hosts {
		if keep[h] {
			continue // an endpoint that is listed twice is one host
		}
		keep[h] = true
		d.hosts = append(d.hosts, h)
		if h.detector.Swap(d) != d {
			h.mu.Lock()
			h.st.SuccessRate, h.st.LocalSuccessRate = -1, -1
			h.mu.Unlock()
		}
	}
	for _, h := range old {
		if !keep[h] {
			d.forget(h)
		}
	}
}

// Close lets go of every host; none stays ejected.
func (d *Detector) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.hosts {
		d.forget(h)
	}
	d.hosts = nil
}

// forget frees a host of the cluster's judgement. The lock is held.
func (d *Detector) forget(h *Host) {
	h.detector.CompareAndSwap(d, nil)
	h.mu.Lock()
	h.st, h.backoff, h.jitter = Status{}, 0, 0
	h.mu.Unlock()
	if h.ejected.Swap(false) {
		d.active--
		d.stats.Active.Store(int64(d.active))
	}
}

// row is told that a host has made as many errors in a row as are allowed.
func (d *Detector) row(h *Host, t conf.EjectionType) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.detector.Load() != d || h.ejected.Load() {
		return // removed or ejected while the result was on its way
	}
	d.stats.DetectedBy[t].Add(1)
	d.eject(h, t, Event{})
	// Also where it was not ejected: the next row counts from here.
	h.reset(t)
}

// eject takes h out, if the cap and the enforcing percentage let it. The lock is held.
func (d *Detector) eject(h *Host, t conf.EjectionType, e Event) {
	c := d.config.Load()
	// The cap is not kept by priority, and includes the host in question, so that 10 % of 9 hosts are none.
	allowed := 100*float64(d.active+1)/float64(len(d.hosts)) <= float64(c.MaxPercent)
	if !allowed && !(c.AlwaysOne && d.active == 0) {
		d.stats.Overflow.Add(1)
		return
	}
	e.Type, e.Action = t.String(), "EJECT"
	if e.Enforced = rand.Uint32N(100) < c.Enforcing[t]; !e.Enforced {
		d.tell(h, e, h.Status().ReturnedAt)
		return
	}
	d.active++
	d.stats.Active.Store(int64(d.active))
	d.stats.Enforced.Add(1)
	d.stats.EnforcedBy[t].Add(1)
	now := time.Now()
	h.mu.Lock()
	before := h.st.ReturnedAt
	h.st.Ejected, h.st.EjectedAt = true, now
	h.st.Ejections++
	h.jitter = 0
	if c.MaxJitter > 0 {
		h.jitter = rand.N(c.MaxJitter + 1)
	}
	if time.Duration(h.backoff)*c.BaseEjection < c.MaxEjection+c.BaseEjection {
		h.backoff++
	}
	h.mu.Unlock()
	h.ejected.Store(true)
	d.changed()
	d.tell(h, e, before)
}

// tell writes the event of a host. The lock is held.
func (d *Detector) tell(h *Host, e Event, last time.Time) {
	now := time.Now()
	h.mu.Lock()
	e.Cluster, e.URL, e.Ejections, e.Timestamp = d.cluster, h.Addr, h.st.Ejections, now
	if e.Action == "EJECT" && e.Enforced {
		e.Timestamp = h.st.EjectedAt // its time counts from then, however late this is written
	}
	h.mu.Unlock()
	if !last.IsZero() {
		e.Since = new(int64(now.Sub(last) / time.Second))
	}
	d.events.add(e)
	say := d.log.Info
	if e.Action == "EJECT" && e.Enforced {
		say = d.log.Warn
	}
	say("outlier detection", "cluster", e.Cluster, "host", e.URL, "action", e.Action, "type", e.Type, "enforced", e.Enforced, "ejections", e.Ejections)
}

// Due is when the next sweep is.
func (d *Detector) Due() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last.Add(d.config.Load().Interval)
}

// Sweep does what is done at every interval: lets hosts return whose time is over, ejects by success rates, and shortens the
// back-off of hosts that did well.
func (d *Detector) Sweep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.last = now
	c := d.config.Load()
	external, local := make([]rate, 0, len(d.hosts)), make([]rate, 0, len(d.hosts))
	for _, h := range d.hosts {
		d.release(h, c, now)
		e, l := h.interval()
		external, local = append(external, e), append(local, l)
	}
	d.compare(c, external, false)
	d.compare(c, local, true)
	for _, h := range d.hosts {
		h.mu.Lock()
		if !h.st.Ejected && !h.st.ReturnedAt.IsZero() && now.Sub(h.st.ReturnedAt) >= c.Interval && h.backoff > 0 {
			h.backoff--
		}
		h.mu.Unlock()
	}
}

// release lets a host return when its time is over. The lock is held.
func (d *Detector) release(h *Host, c *conf.Outlier, now time.Time) {
	h.mu.Lock()
	over := h.st.Ejected && min(time.Duration(h.backoff)*c.BaseEjection, c.MaxEjection)+h.jitter <= now.Sub(h.st.EjectedAt)
	if !over {
		h.mu.Unlock()
		return
	}
	// All rows end, or one that had not come to its end would eject the host at its first new error.
	h.st.Ejected, h.st.ReturnedAt = false, now
	h.st.Consecutive5xx, h.st.ConsecutiveGateway, h.st.ConsecutiveLocal = 0, 0, 0
	ejectedAt := h.st.EjectedAt
	h.mu.Unlock()
	h.ejected.Store(false)
	d.active--
	d.stats.Active.Store(int64(d.active))
	d.changed()
	d.tell(h, Event{Action: "UNEJECT", Type: conf.Eject5xx.String()}, ejectedAt)
}
