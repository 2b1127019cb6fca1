package server

import (
	"context"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// request is a discovery request of either variant.
type request struct {
	node    *corev3.Node
	typeURL string
	nonce   string // empty for a first subscription
	nack    string // error detail, empty unless this is a NACK
	isNack  bool
	// State of the world: the whole list of names. Delta: what to add and to drop.
	names       []string
	subscribe   []string
	unsubscribe []string
	initial     map[string]string // versions that a reconnecting client has
}

// response is what to send of one type.
type response struct {
	typeURL   string
	version   string
	nonce     string
	resources []*xds.Resource
	removed   []string
}

// protocol is one of the two variants of ADS.
type protocol interface {
	Context() context.Context
	incremental() bool
	recv() (*request, error)
	send(*response) error
}

type sotwStream struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	id string
}

func (s *sotwStream) incremental() bool { return false }

func (s *sotwStream) recv() (*request, error) {
	r, err := s.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		node: r.Node, typeURL: r.TypeUrl, nonce: r.ResponseNonce, names: r.ResourceNames,
		isNack: r.ErrorDetail != nil, nack: r.ErrorDetail.GetMessage(),
	}, nil
}

func (s *sotwStream) send(r *response) error {
	out := &discoveryv3.DiscoveryResponse{
		TypeUrl: r.typeURL, VersionInfo: r.version, Nonce: r.nonce,
		Resources:    make([]*anypb.Any, 0, len(r.resources)),
		ControlPlane: &corev3.ControlPlane{Identifier: s.id},
	}
	for _, x := range r.resources {
		out.Resources = append(out.Resources, x.Body)
	}
	return s.Send(out)
}

type deltaStream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	id string
}

func (s *deltaStream) incremental() bool { return true }

func (s *deltaStream) recv() (*request, error) {
	r, err := s.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		node: r.Node, typeURL: r.TypeUrl, nonce: r.ResponseNonce, subscribe: r.ResourceNamesSubscribe,
		unsubscribe: r.ResourceNamesUnsubscribe, initial: r.InitialResourceVersions,
		isNack: r.ErrorDetail != nil, nack: r.ErrorDetail.GetMessage(),
	}, nil
}

func (s *deltaStream) send(r *response) error {
	out := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: r.typeURL, SystemVersionInfo: r.version, Nonce: r.nonce, RemovedResources: r.removed,
		Resources:    make([]*discoveryv3.Resource, 0, len(r.resources)),
		ControlPlane: &corev3.ControlPlane{Identifier: s.id},
	}
	for _, x := range r.resources {
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: x.Name, Version: x.Version, Resource: x.Body})
	}
	return s.Send(out)
}
