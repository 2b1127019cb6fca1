package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local/fabric"
	"github.com/meshproof/meshproof/clusters/local/link"
)

// linkSet is the keeper's: the links that are cut or slowed.
type linkSet struct {
	st  *labState
	fab connector

	mu    sync.Mutex
	links map[[2]int]*changedLink
}

// connector is the part of a fabric.Fabric that links need.
type connector interface {
	Connect(a, b int, connected bool) error
}

type changedLink struct {
	clusters.LinkState
	relay *link.Relay
}

func newLinkSet(st *labState, fab connector) *linkSet {
	return &linkSet{st: st, fab: fab, links: map[[2]int]*changedLink{}}
}

// change brings a link into another state; what cannot be done leaves it as it was, or the error says why that failed too.
func (s *linkSet) change(a, b string, edit func(*clusters.LinkState)) error {
	x, y, err := s.st.pair(a, b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]int{x.Index, y.Index}
	l := s.links[key]
	if l == nil {
		l = &changedLink{LinkState: clusters.LinkState{A: x.Name, B: y.Name}}
	}
	next := l.LinkState
	edit(&next)
	if next.Slow != nil {
		if err := link.Check(*next.Slow); err != nil {
			return err
		}
	}
	if err := s.bring(l, x, y, next); err != nil {
		return errors.Join(err, s.bring(l, x, y, l.LinkState))
	}
	l.LinkState = next
	if next.Cut || next.Slow != nil {
		s.links[key] = l
	} else {
		delete(s.links, key)
	}
	return nil
}

// bring makes the devices of a link what the state says.
func (s *linkSet) bring(l *changedLink, x, y *clusterState, to clusters.LinkState) (err error) {
	if l.relay != nil {
		l.relay.Stop()
		l.relay = nil
	}
	whole := !to.Cut && to.Slow == nil
	if err := s.fab.Connect(x.Index, y.Index, whole); err != nil || whole || to.Cut {
		return err
	}
	towardsA, towardsB := fabric.Middle(x.Index, y.Index)
	l.relay, err = link.StartRelay(towardsA, towardsB, *to.Slow)
	return err
}

func (s *linkSet) list() []clusters.LinkState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []clusters.LinkState{}
	for _, l := range s.links {
		out = append(out, l.LinkState)
	}
	slices.SortFunc(out, func(a, b clusters.LinkState) int { return cmp.Or(cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B)) })
	return out
}

// close stops what is relayed.
func (s *linkSet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		if l.relay != nil {
			l.relay.Stop()
		}
	}
}

// pair returns two clusters in the order of the lab.
func (st *labState) pair(a, b string) (x, y *clusterState, err error) {
	var names []string
	for i := range st.Clusters {
		c := &st.Clusters[i]
		names = append(names, c.Name)
		if c.Name != a && c.Name != b {
			continue
		}
		if x == nil {
			x = c
		} else {
			y = c
		}
	}
	if a == b {
		return nil, nil, fmt.Errorf("%s and %s are one cluster: a link is between two", a, b)
	}
	for _, name := range []string{a, b} {
		if !slices.Contains(names, name) {
			return nil, nil, fmt.Errorf("there is no cluster %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return x, y, nil
}

// labLink implements clusters.Link.
type labLink struct {
	lab  *lab
	a, b *clusterState
}

// Link implements clusters.Lab.
func (l *lab) Link(a, b string) (clusters.Link, error) {
	x, y, err := l.st.pair(a, b)
	if err != nil {
		return nil, fmt.Errorf("lab %q: %w", l.st.Name, err)
	}
	return &labLink{lab: l, a: x, b: y}, nil
}

var _ clusters.Linked = (*lab)(nil)

// Links implements clusters.Linked.
func (l *lab) Links(ctx context.Context) (out []clusters.LinkState, err error) {
	err = l.control(ctx, http.MethodGet, "/links", nil, &out)
	return out, err
}

func (k *labLink) order(ctx context.Context, what string, body any) error {
	return k.lab.control(ctx, http.MethodPost, "/links/"+k.a.Name+"/"+k.b.Name+"/"+what, body, nil)
}

func (k *labLink) Cut(ctx context.Context) error  { return k.order(ctx, "cut", nil) }
func (k *labLink) Heal(ctx context.Context) error { return k.order(ctx, "heal", nil) }

func (k *labLink) Slow(ctx context.Context, how clusters.Impairment) error {
	if err := link.Check(how); err != nil {
		return fmt.Errorf("link between %s and %s: %w", k.a.Name, k.b.Name, err)
	}
	return k.order(ctx, "slow", how)
}

// Capture sees what is on the side of the cluster that the lab names first: packets to it have been slowed already, packets
// from it not yet.
func (k *labLink) Capture(ctx context.Context, w io.Writer) (io.Closer, error) {
	towardsA, _ := fabric.Middle(k.a.Index, k.b.Index)
	var c *link.Capture
	err := k.lab.inOuter(func() (err error) {
		c, err = link.StartCapture(towardsA, w)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab %q: link between %s and %s: %w", k.lab.st.Name, k.a.Name, k.b.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // Close by the caller returns the same error
	return closer(func() error {
		stop()
		return c.Close()
	}), nil
}

type closer func() error

func (f closer) Close() error { return f() }
