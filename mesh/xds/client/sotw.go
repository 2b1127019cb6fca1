package client

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/xds"
)

type sotw struct {
	c    *Client
	s    discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node *corev3.Node
}

func (s *sotw) flush() error {
	s.c.mu.Lock()
	var reqs []*discoveryv3.DiscoveryRequest
	for _, url := range order(s.c.types) {
		t := s.c.types[url]
		if !t.dirty {
			continue
		}
		t.dirty = false
		if !t.wildcard && len(t.names) == 0 && !t.begun {
			continue // an empty first subscription would mean everything
		}
		t.begun = true
		reqs = append(reqs, s.request(url, t))
	}
	s.c.mu.Unlock()
	for _, q := range reqs {
		if err := s.send(q); err != nil {
			return err
		}
	}
	return nil
}

func (s *sotw) request(url string, t *typeState) *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: slices.Clone(t.names), VersionInfo: t.version, ResponseNonce: t.nonce}
}

func (s *sotw) send(q *discoveryv3.DiscoveryRequest) error {
	q.Node, s.node = s.node, nil
	if err := s.s.Send(q); err != nil {
		return fmt.Errorf("send %s: %w", q.TypeUrl, err)
	}
	return nil
}

func (s *sotw) recv() (func() error, error) {
	r, err := s.s.Recv()
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return func() error { return s.handle(r) }, nil
}

func (s *sotw) handle(r *discoveryv3.DiscoveryResponse) error {
	up := Update{Type: r.TypeUrl, Full: r.TypeUrl == xds.ClusterType || r.TypeUrl == xds.ListenerType}
	var err error
	for i, a := range r.Resources {
		name, nameErr := resourceName(a)
		if nameErr != nil {
			err = fmt.Errorf("resource %d: %w", i, nameErr)
			break
		}
		up.Upserts = append(up.Upserts, Resource{name, r.VersionInfo, a})
	}
	if err == nil {
		err = s.c.o.Handler.Apply(up)
	}
	s.c.mu.Lock()
	t := s.c.types[r.TypeUrl]
	if t == nil {
		s.c.mu.Unlock()
		return nil
	}
	t.nonce = r.Nonce
	if err == nil {
		t.version = r.VersionInfo
	}
	t.dirty = false // the acknowledgement carries the newest names
	q := s.request(r.TypeUrl, t)
	s.c.mu.Unlock()
	if err != nil {
		s.c.nacks.Add(1)
		s.c.o.Log.Error("configuration rejected", "type", r.TypeUrl, "err", err)
		q.ErrorDetail = nack(err)
	} else {
		s.c.acks.Add(1)
	}
	return s.send(q)
}

// resourceName opens a resource as far as its name: state of the world does not say it beside the body.
func resourceName(a *anypb.Any) (string, error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return "", err
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return m.Name, nil
	case *endpointv3.ClusterLoadAssignment:
		return m.ClusterName, nil
	case *listenerv3.Listener:
		return m.Name, nil
	case *routev3.RouteConfiguration:
		return m.Name, nil
	}
	return "", fmt.Errorf("type %s has no known name", a.TypeUrl)
}
