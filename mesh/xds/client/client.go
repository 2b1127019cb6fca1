// Package client is the proxy's side of ADS, delta or state of the world: it keeps one stream to the control plane,
// subscribes, acknowledges or rejects, and comes back after a loss without asking again for what it has.
package client

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// Resource is one resource as it came.
type Resource struct {
	Name    string
	Version string
	Body    *anypb.Any
}

// Update is what one response changes.
type Update struct {
	Type    string
	Upserts []Resource
	Removed []string
	// Full says that Upserts is everything there is of the type (state of the world, listeners and clusters).
	Full bool
}

// Handler takes updates, one at a time. An error rejects the response: it is sent back as the reason. What the Handler
// took before it found the error stays taken, as in Envoy.
type Handler interface {
	Apply(Update) error
}

// Options of a Client.
type Options struct {
	// Conn is the connection to the control plane; the Client does not close it.
	Conn grpc.ClientConnInterface
	Node *corev3.Node
	// Sotw asks for the state-of-the-world protocol instead of delta.
	Sotw    bool
	Handler Handler
	Log     *slog.Logger
	// Backoff bounds the pause between two streams; zero values are 100 ms and 15 s.
	BackoffMin, BackoffMax time.Duration
}

// Client is safe for concurrent use.
type Client struct {
	o    Options
	wake chan struct{}

	mu    sync.Mutex
	types map[string]*typeState

	connected atomic.Bool
	nacks     atomic.Int64
	acks      atomic.Int64
}

type typeState struct {
	wildcard bool
	names    []string          // sorted
	versions map[string]string // delta: of each resource that was accepted
	version  string            // sotw: last accepted
	nonce    string
	sent     []string // names that the stream knows of
	begun    bool     // the stream has a subscription for this type
	dirty    bool
}

// Stats is what the client has done.
type Stats struct {
	Connected   bool
	Acks, Nacks int64
}

// Stats returns counters.
func (c *Client) Stats() Stats { return Stats{c.connected.Load(), c.acks.Load(), c.nacks.Load()} }

// New returns a Client that subscribes to every cluster and listener.
func New(o Options) *Client {
	if o.BackoffMin == 0 {
		o.BackoffMin = 100 * time.Millisecond
	}
	if o.BackoffMax == 0 {
		o.BackoffMax = 15 * time.Second
	}
	c := &Client{o: o, wake: make(chan struct{}, 1), types: map[string]*typeState{}}
	for _, t := range xds.PushOrder {
		c.types[t] = &typeState{wildcard: t == xds.ClusterType || t == xds.ListenerType, versions: map[string]string{}}
	}
	return c
}

// Subscribe makes names the set of resources that are asked for, for a type that is not taken whole.
func (c *Client) Subscribe(typeURL string, names []string) {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	c.mu.Lock()
	t := c.types[typeURL]
	if t == nil {
		t = &typeState{versions: map[string]string{}}
		c.types[typeURL] = t
	}
	if slices.Equal(t.names, names) {
		c.mu.Unlock()
		return
	}
	for _, n := range t.names {
		if _, kept := slices.BinarySearch(names, n); !kept {
			delete(t.versions, n)
		}
	}
	t.names, t.dirty = names, true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run keeps a stream up until ctx ends. It returns nil then.
func (c *Client) Run(ctx context.Context) error {
	pause := c.o.BackoffMin
	for {
		began := time.Now()
		err := c.stream(ctx)
		c.connected.Store(false)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > c.o.BackoffMax {
			pause = c.o.BackoffMin
		}
		d := pause/2 + rand.N(pause/2+1)
		c.o.Log.Warn("xds stream ended", "err", err, "again_in", d)
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		pause = min(2*pause, c.o.BackoffMax)
	}
}

// transport is one stream of either protocol.
type transport interface {
	// flush sends what subscriptions have changed.
	flush() error
	// recv waits for a response.
	recv() (func() error, error)
}

func (c *Client) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	for _, t := range c.types {
		t.nonce, t.sent, t.begun = "", nil, false
		t.dirty = t.wildcard || len(t.names) > 0
	}
	c.mu.Unlock()
	ads := discoveryv3.NewAggregatedDiscoveryServiceClient(c.o.Conn)
	var tr transport
	if c.o.Sotw {
		s, err := ads.StreamAggregatedResources(ctx, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("open stream: %w", err)
		}
		tr = &sotw{c: c, s: s, node: c.o.Node}
	} else {
		s, err := ads.DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("open stream: %w", err)
		}
		tr = &delta{c: c, s: s, node: c.o.Node}
	}
	if err := tr.flush(); err != nil {
		return err
	}
	// Receiving has a goroutine of its own; everything that sends happens here.
	type received struct {
		handle func() error
		err    error
	}
	in := make(chan received)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			h, err := tr.recv()
			select {
			case in <- received{h, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	defer wg.Wait()
	defer cancel() // ends recv
	for {
		select {
		case r := <-in:
			if r.err != nil {
				return r.err
			}
			c.connected.Store(true)
			if err := r.handle(); err != nil {
				return err
			}
			if err := tr.flush(); err != nil {
				return err
			}
		case <-c.wake:
			if err := tr.flush(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func nack(err error) *status.Status {
	return &status.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
}
