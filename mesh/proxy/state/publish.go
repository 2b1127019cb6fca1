package state

import (
	"maps"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/xds"
)

// publish builds the next configuration and makes it current if it differs. Listeners that are refused, and returned, are as they
// were. The caller holds mu.
func (s *State) publish(now time.Time) (refused map[string]error) {
	if !s.first[xds.ClusterType] || !s.first[xds.ListenerType] {
		return nil // nothing is complete yet
	}
	next, warm := s.build()
	for s.due(next, warm) && s.o.Prepare != nil {
		why := s.o.Prepare(next)
		if len(why) == 0 {
			break
		}
		if refused == nil {
			refused = map[string]error{}
		}
		maps.Copy(refused, why)
		for name, err := range why {
			s.refuse(name, err, now)
		}
		s.subscribe(now)
		next, warm = s.build()
	}
	if !s.due(next, warm) {
		return refused
	}
	s.warm = true
	s.published, s.updated = next, now
	s.serve(next)
	s.o.Publish(next)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return refused
}

// due reports whether next is to be published. The first configuration is published whole: until then the proxy is not ready.
func (s *State) due(next *conf.Config, warm bool) bool {
	if !warm && !s.warm {
		return false
	}
	p := s.published
	return s.updated.IsZero() || !maps.Equal(next.Listeners, p.Listeners) || !maps.Equal(next.Routes, p.Routes) || !maps.Equal(next.Clusters, p.Clusters)
}

// refuse puts a listener back to what is served, which may be nothing.
func (s *State) refuse(name string, why error, now time.Time) {
	l := s.listeners[name]
	s.rejected[xds.ListenerType+"/"+name] = Rejection{xds.ListenerType, name, l.version, why.Error(), now}
	if was := s.served[name]; was != nil && was != l {
		s.listeners[name] = was
	} else {
		delete(s.listeners, name)
	}
}

// serve notes where the listeners of next came from.
func (s *State) serve(next *conf.Config) {
	for name := range s.served {
		if next.Listeners[name] == nil {
			delete(s.served, name)
		}
	}
	for name, l := range next.Listeners {
		if e := s.listeners[name]; e.value == l {
			s.served[name] = e
		}
	}
}

// build makes the newest configuration that is complete in each part: where a part still waits for another, the part
// as it was published before stays in its place. warm says that nothing waits.
func (s *State) build() (next *conf.Config, warm bool) {
	prev := s.published
	next = &conf.Config{Listeners: map[string]*conf.Listener{}, Routes: map[string]*conf.RouteTable{}, Clusters: map[string]*conf.Cluster{}}
	warm = true
	for name, c := range s.clusters {
		if m := s.merge(c); m != nil {
			next.Clusters[name] = m
			continue
		}
		warm = false
		if old := prev.Clusters[name]; old != nil {
			next.Clusters[name] = old
		}
	}
	// A cluster that is known but not complete holds back the routes that lead to it; one that is unknown does not: the
	// control plane may mean it, and the answer is an error at run time. One that went before it was complete still holds them
	// back: the routes that do without it are on their way.
	ready := func(t *conf.RouteTable) bool {
		for _, c := range t.Clusters {
			if _, vanished := s.vanished[c]; (s.clusters[c] != nil || vanished) && next.Clusters[c] == nil {
				return false
			}
		}
		return true
	}
	routes := map[string]*conf.RouteTable{}
	for name, r := range s.routes {
		switch {
		case ready(r.value):
			routes[name] = r.value
		case prev.Routes[name] != nil:
			warm = false
			routes[name] = prev.Routes[name]
		default:
			warm = false
		}
	}
	for name, l := range s.listeners {
		use := l.value
		for n := range routeNames(use) {
			if routes[n] == nil {
				warm = false
				use = prev.Listeners[name] // nil for a new listener: it is not opened yet
				break
			}
		}
		if use == nil {
			continue
		}
		next.Listeners[name] = use
		for n := range routeNames(use) {
			if t := routes[n]; t != nil {
				next.Routes[n] = t
			} else {
				next.Routes[n] = prev.Routes[n]
			}
		}
	}
	s.keepUsed(prev, next)
	return next, warm
}

// merge returns the cluster with its endpoints, or nil while they are missing. The result is the same pointer for as long
// as neither changes.
func (s *State) merge(c *clusterEntry) *conf.Cluster {
	if c.value.Discovery != conf.EDS {
		return c.value
	}
	e := s.endpoints[c.value.ServiceName]
	if e == nil {
		return nil
	}
	if c.merged == nil || c.eps != e.value {
		m := *c.value
		m.Endpoints = e.value
		c.merged, c.eps = &m, e.value
	}
	return c.merged
}

// keepUsed keeps clusters that were removed and that something published still leads to: removal may come before the
// routes move. It does so for as long as Absent: after that the routes are not going to move.
func (s *State) keepUsed(prev, next *conf.Config) {
	now := time.Now()
	kept := map[string]time.Time{}
	use := func(name string) {
		if next.Clusters[name] != nil || prev.Clusters[name] == nil {
			return
		}
		since, ok := s.kept[name]
		if !ok {
			since = now
		}
		kept[name] = since
		if now.Sub(since) < Absent {
			next.Clusters[name] = prev.Clusters[name]
		}
	}
	defer func() { s.kept = kept }()
	for _, t := range next.Routes {
		for _, c := range t.Clusters {
			use(c)
		}
	}
	for _, l := range next.Listeners {
		each(l, func(c *conf.FilterChain) {
			if c.TCP != nil {
				for i := range c.TCP.Clusters {
					use(c.TCP.Clusters[i].Name)
				}
			} else if c.HTTP.Routes != nil {
				for _, n := range c.HTTP.Routes.Clusters {
					use(n)
				}
			}
		})
	}
}
