package client

import (
	"fmt"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/meshproof/meshproof/mesh/xds"
)

type delta struct {
	c    *Client
	s    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node *corev3.Node // sent once
}

func (d *delta) flush() error {
	d.c.mu.Lock()
	var reqs []*discoveryv3.DeltaDiscoveryRequest
	for _, url := range order(d.c.types) {
		t := d.c.types[url]
		if !t.dirty {
			continue
		}
		t.dirty = false
		q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url}
		want := t.names
		if t.wildcard {
			want = []string{"*"}
		}
		q.ResourceNamesSubscribe = missing(want, t.sent)
		q.ResourceNamesUnsubscribe = missing(t.sent, want)
		if !t.begun {
			q.InitialResourceVersions = maps.Clone(t.versions)
		}
		if t.begun && len(q.ResourceNamesSubscribe)+len(q.ResourceNamesUnsubscribe) == 0 {
			continue
		}
		t.begun, t.sent = true, want
		reqs = append(reqs, q)
	}
	d.c.mu.Unlock()
	for _, q := range reqs {
		if err := d.send(q); err != nil {
			return err
		}
	}
	return nil
}

func (d *delta) send(q *discoveryv3.DeltaDiscoveryRequest) error {
	q.Node, d.node = d.node, nil
	if err := d.s.Send(q); err != nil {
		return fmt.Errorf("send %s: %w", q.TypeUrl, err)
	}
	return nil
}

func (d *delta) recv() (func() error, error) {
	r, err := d.s.Recv()
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return func() error { return d.handle(r) }, nil
}

func (d *delta) handle(r *discoveryv3.DeltaDiscoveryResponse) error {
	up := Update{Type: r.TypeUrl, Removed: r.RemovedResources}
	for _, res := range r.Resources {
		up.Upserts = append(up.Upserts, Resource{res.Name, res.Version, res.Resource})
	}
	err := d.c.o.Handler.Apply(up)
	q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	if err != nil {
		d.c.nacks.Add(1)
		d.c.o.Log.Error("configuration rejected", "type", r.TypeUrl, "err", err)
		q.ErrorDetail = nack(err)
		return d.send(q)
	}
	d.c.acks.Add(1)
	d.c.mu.Lock()
	if t := d.c.types[r.TypeUrl]; t != nil {
		for _, res := range r.Resources {
			if t.wildcard || slices.Contains(t.names, res.Name) {
				t.versions[res.Name] = res.Version
			}
		}
		for _, n := range r.RemovedResources {
			delete(t.versions, n)
		}
	}
	d.c.mu.Unlock()
	return d.send(q)
}

// missing returns what of a is not in b.
func missing(a, b []string) []string {
	in := make(map[string]bool, len(b))
	for _, n := range b {
		in[n] = true
	}
	var out []string
	for _, n := range a {
		if !in[n] {
			out = append(out, n)
		}
	}
	return out
}

// order lists the types make before break, those it does not name last.
func order(types map[string]*typeState) []string {
	out := slices.Clone(xds.PushOrder[:])
	for _, url := range slices.Sorted(maps.Keys(types)) {
		if !slices.Contains(out, url) {
			out = append(out, url)
		}
	}
	return slices.DeleteFunc(out, func(u string) bool { return types[u] == nil })
}
