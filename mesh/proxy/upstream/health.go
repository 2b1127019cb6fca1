package upstream

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/mesh/proxy/outlier"
)

// servable reports whether the control plane lets the endpoint be used.
func (m Member) servable() bool { return !m.Endpoint.Unhealthy && !m.Endpoint.Draining }

// Healthy reports whether the endpoint is used outside of panic: the control plane says so and it is not ejected.
func (m Member) Healthy() bool { return m.servable() && !m.Outlier.Ejected() }

// Report tells outlier detection what became of one try. status is the HTTP status of an answer.
func (h *Host) Report(r outlier.Result, status int) { h.Outlier.Put(r, status) }

// OutlierEvents is the log of ejections and returns, of every cluster.
func (s *Set) OutlierEvents() *outlier.Events { return &s.events }

// watch puts the members under the cluster's outlier detection and makes its first picker. The Set's lock is held.
func (s *Set) watch(c *Cluster) {
	if c.Conf.Endpoints == nil {
		return // endpoints are where connections were bound for: there is nothing to choose
	}
	defer c.rebuild()
	if c.Conf.Outlier == nil {
		return
	}
	d := s.detectors[c.Conf.Name]
	if d == nil {
		log := s.Log
		if log == nil {
			log = slog.New(slog.DiscardHandler)
		}
		d = outlier.New(c.Conf.Name, &s.events, log)
		s.detectors[c.Conf.Name] = d
	}
	hosts := make([]*outlier.Host, 0, len(c.Members))
	for _, m := range c.Members {
		hosts = append(hosts, &m.Outlier)
	}
	c.Outlier = d
	d.Update(c.Conf.Outlier, hosts, c.rebuild)
	select {
	case s.wake <- struct{}{}:
	default: // it is awake already
	}
}

// dropDetectors ends the outlier detection of clusters that are gone or want none any more; their hosts may stay.
func (s *Set) dropDetectors(v *View) {
	for name, d := range s.detectors {
		if c := v.clusters[name]; c != nil && c.Outlier == d {
			continue
		}
		d.Close()
		delete(s.detectors, name)
		if c := v.clusters[name]; c != nil && c.Conf.Endpoints != nil {
			c.rebuild() // its hosts are all in use again
		}
	}
}

// rebuild makes a picker for the present health of the members.
func (c *Cluster) rebuild() {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries := slices.Clone(c.entries)
	for i := range entries {
		entries[i].Healthy = entries[i].Healthy && !c.Members[i].Outlier.Ejected()
	}
	c.picker.Store(balance.New(entries, c.options))
}

// Run closes idle connections and sweeps for outliers when their time has come, until ctx ends; then it closes all idle
// connections.
func (s *Set) Run(ctx context.Context) error {
	idle := time.NewTicker(10 * time.Second)
	defer idle.Stop()
	sweep := time.NewTimer(s.sweep())
	defer sweep.Stop()
	for {
		select {
		case now := <-idle.C:
			s.mu.Lock()
			for k, h := range s.hosts {
				h.HTTP.Sweep(now)
				h.HTTP2.Sweep(now)
				if h.found && h.idle() {
					delete(s.hosts, k)
					h.close()
				}
			}
			s.mu.Unlock()
		case <-sweep.C:
			sweep.Reset(s.sweep())
		case <-s.wake:
			sweep.Reset(s.sweep())
		case <-ctx.Done():
			s.mu.Lock()
			for _, h := range s.hosts {
				h.HTTP.Close()
				h.HTTP2.End()
			}
			s.mu.Unlock()
			return nil
		}
	}
}

// idle reports whether nothing was done with the host since the last call, and nothing is kept for it.
func (h *Host) idle() bool {
	before := h.uses
	h.uses = h.Requests.Load() + h.cx.Opened.Load() + h.cx.Failed.Load()
	return h.uses == before && h.Active.Load() == 0 && h.HTTP.Idle() == 0 && h.HTTP2.Connections() == 0
}

// sweep runs the sweeps that are due and returns how long it is until the next.
func (s *Set) sweep() time.Duration {
	s.mu.Lock()
	var all []*outlier.Detector
	for _, d := range s.detectors {
		all = append(all, d)
	}
	s.mu.Unlock()
	wait := time.Hour
	for _, d := range all {
		if !time.Now().Before(d.Due()) {
			d.Sweep()
		}
		wait = min(wait, time.Until(d.Due()))
	}
	return max(wait, 0)
}
