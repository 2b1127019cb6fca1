package server

import (
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/mesh/xds"
)

// TypeStatus is what one proxy was sent and has acknowledged of one type.
type TypeStatus struct {
	Sent, Acked     string // nonces
	SentAt, AckedAt time.Time
	Snapshot        uint64 // that the last response was made from
	LastError       string // why something of the present configuration is refused
}

func shortName(typ int) string { return [...]string{"CDS", "EDS", "LDS", "RDS"}[typ] }

// nack says what is refused and why. The caller holds mu.
func (s *connStatus) nack() string {
	var out []string
	for typ, t := range s.types {
		if t.LastError != "" {
			out = append(out, shortName(typ)+": "+t.LastError)
		}
	}
	return strings.Join(out, "; ")
}

// Proxies lists the connected proxies, in the order in which they came.
func (s *Server) Proxies() []status.Proxy {
	out := []status.Proxy{}
	for _, c := range s.connections() {
		p := status.Proxy{
			ClusterID: c.view.ClusterID, Proxy: c.view.ID, ProxyType: string(c.view.Type), IstioVersion: c.view.Version,
			Identifier: s.opts.Identifier,
		}
		c.status.mu.Lock()
		t := &c.status.types
		p.ClusterSent, p.ClusterAcked = t[cds].Sent, t[cds].Acked
		p.EndpointSent, p.EndpointAcked = t[eds].Sent, t[eds].Acked
		p.ListenerSent, p.ListenerAcked = t[lds].Sent, t[lds].Acked
		p.RouteSent, p.RouteAcked = t[rds].Sent, t[rds].Acked
		p.ConnectedAt, p.Snapshot = c.status.connected, c.status.computed
		if n := len(c.status.acks); n > 0 {
			p.AckedSnapshot = c.status.acks[n-1].seq
		}
		p.LastError = c.status.nack()
		c.status.mu.Unlock()
		out = append(out, p)
	}
	return out
}

// Push tells how far an object at a generation has come; status.Absent asks for its deletion.
func (s *Server) Push(object model.Key, generation int64) status.Push {
	s.mu.Lock()
	at, ok := s.history.find(object, generation)
	s.mu.Unlock()
	out := status.Push{Proxies: []status.ProxyPush{}}
	if !ok {
		return out
	}
	out.Snapshot, out.BuiltAt = at.seq, at.builtAt
	out.Proxies = s.PushOf(at.seq)
	for _, p := range s.Current().Problems {
		if p.Object == object && p.InForce != "this" {
			out.InForce = p.InForce
		}
	}
	return out
}

// PushOf tells how far a snapshot has come with every connected proxy.
func (s *Server) PushOf(seq uint64) []status.ProxyPush {
	out := []status.ProxyPush{}
	for _, c := range s.connections() {
		p := status.ProxyPush{Proxy: c.view.ID, Type: string(c.view.Type)}
		c.status.mu.Lock()
		p.Sent = c.status.computed >= seq
		for _, a := range c.status.acks {
			if a.seq >= seq {
				p.Acked, p.AckedAt = true, a.at
				break
			}
		}
		if !p.Acked && c.status.nackSeq >= seq {
			p.Nack = c.status.nack()
		}
		c.status.mu.Unlock()
		out = append(out, p)
	}
	return out
}

// history knows in which snapshot each version of each object first was.
type history struct {
	objects map[model.Key][]version
	last    map[model.Key]model.Version
	start   version // the first snapshot: objects absent then have always been
}

type version struct {
	generation int64 // status.Absent when the object was gone
	seq        uint64
	builtAt    time.Time
}

const versionsKept = 32

func (h *history) add(s *model.Snapshot) {
	if h.objects == nil {
		h.objects = map[model.Key][]version{}
		h.start = version{status.Absent, s.Sequence, s.BuiltAt}
	}
	note := func(k model.Key, generation int64) {
		v := append(h.objects[k], version{generation, s.Sequence, s.BuiltAt})
		if len(v) > versionsKept {
			v = v[len(v)-versionsKept:]
		}
		h.objects[k] = v
	}
	for k, v := range s.Objects {
		old, ok := h.last[k]
		if ok && old.UID != v.UID {
			note(k, status.Absent) // it was gone, if only between two snapshots
		}
		if !ok || old != v {
			note(k, v.Generation)
		}
	}
	for k := range h.last {
		if _, ok := s.Objects[k]; !ok {
			note(k, status.Absent)
		}
	}
	h.last = s.Objects
}

// find returns the first snapshot since which the object has had at least that generation, or has been gone.
func (h *history) find(k model.Key, generation int64) (version, bool) {
	if h.objects == nil {
		return version{}, false
	}
	vs := h.objects[k]
	if len(vs) == 0 {
		return h.start, generation == status.Absent
	}
	if generation == status.Absent {
		last := vs[len(vs)-1]
		return last, last.generation == status.Absent
	}
	// Generations start again when an object is made anew, so only those since its last absence count.
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].generation == status.Absent {
			vs = vs[i+1:]
			break
		}
	}
	for _, v := range vs {
		if v.generation >= generation {
			return v, true
		}
	}
	return version{}, false
}

// Configuration returns what a connected proxy is given now, or nil if it is not connected.
func (s *Server) Configuration(proxy string) ([]*xds.Part, error) {
	snap := s.Current()
	for _, c := range s.connections() {
		if c.view.ID == proxy && snap != nil {
			return s.opts.Source.Parts(snap, snap.View(c.view))
		}
	}
	return nil, nil
}
