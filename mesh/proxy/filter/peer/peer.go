// Package peer is the HTTP filter by which two proxies of the mesh tell each other who stands behind them: Istio's
// x-envoy-peer-metadata headers. Only telemetry depends on them, so nothing of them is trusted for more.
package peer

import (
	"sync"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

var (
	hMetadata = []byte("x-envoy-peer-metadata")
	hID       = []byte("x-envoy-peer-metadata-id")
)

// known bounds how many peers are remembered: what they say is theirs to choose.
const known = 4096

// longest is what is looked at and remembered of one peer; decode refuses more.
const longest = 16 << 10

// Filter serves every connection of a proxy.
type Filter struct {
	id, metadata []byte
	decode       func([]byte) (*conf.Workload, error)

	mu    sync.RWMutex
	peers map[string]*conf.Workload
}

// New returns a Filter that presents the proxy by id and metadata (encoded). decode reads the metadata of others.
func New(id string, metadata []byte, decode func([]byte) (*conf.Workload, error)) *Filter {
	return &Filter{id: []byte(id), metadata: metadata, decode: decode, peers: map[string]*conf.Workload{}}
}

// Request implements filter.HTTP. What the application or a client says about peers goes no further.
func (f *Filter) Request(s *filter.Stream) bool {
	q := &s.Req
	said := q.Get("x-envoy-peer-metadata")
	if s.Conn.Direction == conf.Inbound {
		s.Rec.Peer = f.workload(said)
		s.PeerAsked = said != nil
	} else {
		s.PeerID, s.PeerMetadata = f.id, f.metadata // the router adds them for endpoints of the mesh
	}
	if said != nil {
		q.Del(hMetadata)
	}
	q.Del(hID)
	return false
}

// Response implements filter.HTTP.
func (f *Filter) Response(s *filter.Stream) {
	r := &s.Resp
	if s.Conn.Direction == conf.Inbound {
		if s.PeerAsked {
			r.Set(hMetadata, f.metadata)
			r.Set(hID, f.id)
		}
		return
	}
	if said := r.Get("x-envoy-peer-metadata"); said != nil {
		s.Rec.Peer = f.workload(said)
		r.Del(hMetadata)
	}
	r.Del(hID)
}

func (f *Filter) workload(said []byte) *conf.Workload {
	if said == nil || len(said) > longest {
		return nil
	}
	f.mu.RLock()
	w, ok := f.peers[string(said)]
	f.mu.RUnlock()
	if ok {
		return w
	}
	w, err := f.decode(said)
	if err != nil {
		w = nil // remembered all the same
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.peers) >= known {
		clear(f.peers)
	}
	f.peers[string(said)] = w
	return w
}

// Add puts the stream's own metadata on a request for an endpoint of the mesh, or takes it off for any other.
func Add(s *filter.Stream, mesh bool) {
	if s.PeerMetadata == nil {
		return
	}
	if mesh {
		s.Req.Set(hMetadata, s.PeerMetadata)
		s.Req.Set(hID, s.PeerID)
	} else if s.AttemptCount > 1 {
		s.Req.Del(hMetadata)
		s.Req.Del(hID)
	}
}
