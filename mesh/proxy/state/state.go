// Package state puts together, from xDS updates that arrive one by one, configurations that are complete: a listener is
// published with its routes, a cluster with its endpoints, a route only once the clusters it leads to can be used, and a
// cluster stays for as long as something that is published leads to it.
package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/decode"
	"github.com/meshproof/meshproof/mesh/xds"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

// Absent is how long a resource that was asked for may stay away before what waits for it goes on without it.
const Absent = 15 * time.Second

// Options of a State.
type Options struct {
	// Subscribe makes names the resources that are asked for.
	Subscribe func(typeURL string, names []string)
	// Prepare does what can fail of publishing a configuration that is a candidate, and returns why listeners cannot be had, by
	// name; nil refuses none. Publish follows, or Prepare with another candidate.
	Prepare func(*conf.Config) (refused map[string]error)
	// Publish makes a configuration current. It is called by one goroutine at a time, in order.
	Publish func(*conf.Config)
	Log     *slog.Logger
}

// State implements client.Handler.
type State struct {
	o Options

	mu        sync.Mutex
	clusters  map[string]*clusterEntry
	endpoints map[string]*entry[*conf.Endpoints]
	listeners map[string]*entry[*conf.Listener]
	routes    map[string]*entry[*conf.RouteTable]
	waiting   map[string]time.Time // type + name of what was asked for and has not come
	first     map[string]bool      // types of which a first answer came
	kept      map[string]time.Time // clusters that were removed while something leads to them
	vanished  map[string]time.Time // clusters that were removed before they were complete
	published *conf.Config
	served    map[string]*entry[*conf.Listener] // the listeners of published, as they came
	warm      bool
	changed   chan struct{}
	updated   time.Time
	rejected  map[string]Rejection
}

// entry is an accepted resource.
type entry[T any] struct {
	value   T // zero when the control plane says that there is no such resource
	version string
	raw     proto.Message
	at      time.Time
}

type clusterEntry struct {
	entry[*conf.Cluster]
	merged *conf.Cluster // with the endpoints that it was published with
	eps    *conf.Endpoints
}

// Rejection is the last refusal of a resource.
type Rejection struct {
	Type, Name, Version, Reason string
	At                          time.Time
}

// New returns a State that has nothing.
func New(o Options) *State {
	return &State{
		o: o, clusters: map[string]*clusterEntry{}, endpoints: map[string]*entry[*conf.Endpoints]{}, listeners: map[string]*entry[*conf.Listener]{},
		routes: map[string]*entry[*conf.RouteTable]{}, waiting: map[string]time.Time{}, first: map[string]bool{},
		published: &conf.Config{}, changed: make(chan struct{}, 1), rejected: map[string]Rejection{},
		vanished: map[string]time.Time{}, served: map[string]*entry[*conf.Listener]{},
	}
}

// Apply takes one response. Good resources are taken even when others are refused; the error names each that was.
func (s *State) Apply(u client.Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	now := time.Now()
	got := map[string]bool{}
	for _, r := range u.Upserts {
		got[r.Name] = true
		if err := s.upsert(u.Type, r, now); err != nil {
			errs = append(errs, err)
			s.rejected[u.Type+"/"+r.Name] = Rejection{u.Type, r.Name, r.Version, err.Error(), now}
			continue
		}
		delete(s.rejected, u.Type+"/"+r.Name)
		delete(s.waiting, u.Type+"/"+r.Name)
	}
	removed := u.Removed
	if u.Full {
		for _, n := range s.names(u.Type) {
			if !got[n] {
				removed = append(removed, n)
			}
		}
	}
	for _, n := range removed {
		s.remove(u.Type, n)
	}
	s.first[u.Type] = true
	s.subscribe(now)
	for name, err := range s.publish(now) {
		if u.Type == xds.ListenerType && got[name] {
			errs = append(errs, err)
			continue
		}
		s.o.Log.Error("listener refused", "listener", name, "err", err) // its own update was answered long ago
	}
	return errors.Join(errs...)
}

func (s *State) upsert(typeURL string, r client.Resource, now time.Time) error {
	switch typeURL {
	case xds.ClusterType:
		var m clusterv3.Cluster
		if err := r.Body.UnmarshalTo(&m); err != nil {
			return fmt.Errorf("cluster %q: %w", r.Name, err)
		}
		c, err := decode.Cluster(&m)
		if err != nil {
			return err
		}
		delete(s.vanished, r.Name)
		s.clusters[r.Name] = &clusterEntry{entry: entry[*conf.Cluster]{c, r.Version, &m, now}}
	case xds.EndpointType:
		var m endpointv3.ClusterLoadAssignment
		if err := r.Body.UnmarshalTo(&m); err != nil {
			return fmt.Errorf("endpoints %q: %w", r.Name, err)
		}
		e, err := decode.Endpoints(&m)
		if err != nil {
			return err
		}
		s.endpoints[r.Name] = &entry[*conf.Endpoints]{e, r.Version, &m, now}
	case xds.ListenerType:
		var m listenerv3.Listener
		if err := r.Body.UnmarshalTo(&m); err != nil {
			return fmt.Errorf("listener %q: %w", r.Name, err)
		}
		l, err := decode.Listener(&m)
		if err != nil {
			return err
		}
		s.listeners[r.Name] = &entry[*conf.Listener]{l, r.Version, &m, now}
	case xds.RouteType:
		var m routev3.RouteConfiguration
		if err := r.Body.UnmarshalTo(&m); err != nil {
			return fmt.Errorf("routes %q: %w", r.Name, err)
		}
		t, err := decode.Routes(&m)
		if err != nil {
			return err
		}
		s.routes[r.Name] = &entry[*conf.RouteTable]{t, r.Version, &m, now}
	default:
		return fmt.Errorf("resources of type %s are not supported", typeURL)
	}
	return nil
}

func (s *State) names(typeURL string) []string {
	switch typeURL {
	case xds.ClusterType:
		return slices.Collect(maps.Keys(s.clusters))
	case xds.ListenerType:
		return slices.Collect(maps.Keys(s.listeners))
	}
	return nil
}

func (s *State) remove(typeURL, name string) {
	delete(s.rejected, typeURL+"/"+name)
	switch typeURL {
	case xds.ClusterType:
		if s.clusters[name] != nil && s.published.Clusters[name] == nil {
			s.vanished[name] = time.Now()
		}
		delete(s.clusters, name)
	case xds.ListenerType:
		delete(s.listeners, name)
	case xds.EndpointType:
		// "There is no such resource" is an answer: the cluster is complete and empty.
		s.endpoints[name] = &entry[*conf.Endpoints]{value: &conf.Endpoints{Name: name}, at: time.Now()}
		delete(s.waiting, typeURL+"/"+name)
	case xds.RouteType:
		s.routes[name] = &entry[*conf.RouteTable]{value: &conf.RouteTable{Name: name}, at: time.Now()}
		delete(s.waiting, typeURL+"/"+name)
	}
}

// subscribe asks for the endpoints and routes that clusters and listeners name, and forgets those that none does.
func (s *State) subscribe(now time.Time) {
	eps, rts := map[string]bool{}, map[string]bool{}
	for _, c := range s.clusters {
		if c.value.Discovery == conf.EDS {
			eps[c.value.ServiceName] = true
		}
	}
	for _, l := range s.listeners {
		for n := range routeNames(l.value) {
			rts[n] = true
		}
	}
	keep(s.endpoints, eps)
	// Routes of listeners that are published and about to go are in the published config; the copy here is not needed.
	keep(s.routes, rts)
	for n := range eps {
		s.wait(xds.EndpointType, n, s.endpoints[n] != nil, now)
	}
	for n := range rts {
		s.wait(xds.RouteType, n, s.routes[n] != nil, now)
	}
	for k := range s.waiting {
		if n, ok := cut(k, xds.EndpointType); ok && !eps[n] {
			delete(s.waiting, k)
		} else if n, ok := cut(k, xds.RouteType); ok && !rts[n] {
			delete(s.waiting, k)
		}
	}
	s.o.Subscribe(xds.EndpointType, slices.Sorted(maps.Keys(eps)))
	s.o.Subscribe(xds.RouteType, slices.Sorted(maps.Keys(rts)))
}

func cut(key, typeURL string) (string, bool) {
	if len(key) > len(typeURL) && key[:len(typeURL)] == typeURL {
		return key[len(typeURL)+1:], true
	}
	return "", false
}

func keep[T any](m map[string]*entry[T], names map[string]bool) {
	for n := range m {
		if !names[n] {
			delete(m, n)
		}
	}
}

func (s *State) wait(typeURL, name string, have bool, now time.Time) {
	key := typeURL + "/" + name
	if have {
		delete(s.waiting, key)
	} else if _, ok := s.waiting[key]; !ok {
		s.waiting[key] = now
	}
}

// routeNames yields the RDS names of a listener.
func routeNames(l *conf.Listener) map[string]bool {
	out := map[string]bool{}
	each(l, func(c *conf.FilterChain) {
		if c.HTTP != nil && c.HTTP.Routes == nil {
			out[c.HTTP.RouteName] = true
		}
	})
	return out
}

func each(l *conf.Listener, f func(*conf.FilterChain)) {
	for _, c := range l.Chains {
		f(c)
	}
	if l.Default != nil {
		f(l.Default)
	}
}

// Run gives up waiting for resources that do not come, until ctx ends.
func (s *State) Run(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.expire(now)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *State) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := false
	for k, since := range s.waiting {
		if now.Sub(since) < Absent {
			continue
		}
		gone = true
		s.o.Log.Warn("resource did not come", "resource", k, "waited", now.Sub(since))
		if n, ok := cut(k, xds.EndpointType); ok {
			s.remove(xds.EndpointType, n)
		} else if n, ok := cut(k, xds.RouteType); ok {
			s.remove(xds.RouteType, n)
		}
	}
	for _, since := range s.kept {
		gone = gone || now.Sub(since) >= Absent
	}
	for name, since := range s.vanished {
		if now.Sub(since) >= Absent {
			delete(s.vanished, name)
			gone = true
		}
	}
	if !gone {
		return
	}
	for name, err := range s.publish(now) {
		s.o.Log.Error("listener refused", "listener", name, "err", err)
	}
}

// Warm reports whether a first complete configuration was published.
func (s *State) Warm() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.warm
}

// Changed is signalled after a publication.
func (s *State) Changed() <-chan struct{} { return s.changed }
