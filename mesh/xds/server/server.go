// Package server is the aggregated discovery service: state of the world and delta, over one stream a proxy. It sends only
// what changed, makes before it breaks, and knows what every proxy has acknowledged.
package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/meshproof/meshproof/mesh/identity"
	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// Source makes the configuration of a proxy from a snapshot, as Parts in a fixed order and number. It is pure: equal input
// gives equal output, and unchanged Parts are best the same pointers.
type Source interface {
	Parts(s *model.Snapshot, v model.ProxyView) ([]*xds.Part, error)
}

// Authenticator tells who is calling. A nil Authenticator lets everybody in, as a plaintext port does.
type Authenticator interface {
	Authenticate(ctx context.Context) (identity.ID, error)
}

// Options of a Server. Source is required.
type Options struct {
	Source Source
	Log    *slog.Logger
	// CoverTimeout bounds how long routes wait for a proxy to ask for the endpoints of new clusters. Default 3 s.
	CoverTimeout time.Duration
	// Identifier of this control plane, sent with every response.
	Identifier string
}

// Server serves ADS. Publish gives it snapshots; Register makes it a service of a gRPC server.
type Server struct {
	opts    Options
	log     *slog.Logger
	nextID  atomic.Uint64
	current atomic.Pointer[model.Snapshot]

	mu      sync.Mutex
	conns   map[uint64]*conn
	history history
	closed  chan struct{}
	closing sync.Once
	active  sync.WaitGroup
	parts   diffCache
	stats   Stats
}

// Stats count what a Server did since it was made.
type Stats struct {
	Responses atomic.Uint64 // discovery responses sent
	Resources atomic.Uint64 // resources in them
	Bytes     atomic.Uint64 // of resources in them
	Nacks     atomic.Uint64
	Snapshots atomic.Uint64
}

// New returns a Server without a snapshot: streams wait for the first.
func New(opts Options) *Server {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.CoverTimeout == 0 {
		opts.CoverTimeout = 3 * time.Second
	}
	return &Server{opts: opts, log: opts.Log, conns: map[uint64]*conn{}, closed: make(chan struct{})}
}

// Register adds the service to a gRPC server; auth checks every stream before it is served.
func (s *Server) Register(g *grpc.Server, auth Authenticator) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &service{s: s, auth: auth})
}

// Publish makes a snapshot current and starts its way to every proxy. It does not wait for them. Snapshots must come in
// rising sequence.
func (s *Server) Publish(snap *model.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.add(snap)
	s.current.Store(snap)
	s.stats.Snapshots.Add(1)
	for _, c := range s.conns {
		c.wake()
	}
}

// Current is the newest snapshot, or nil before the first.
func (s *Server) Current() *model.Snapshot { return s.current.Load() }

// Stats returns the counters, which go on counting.
func (s *Server) Stats() *Stats { return &s.stats }

// Close ends all streams and waits for them. The gRPC servers themselves are their owner's to stop.
func (s *Server) Close() {
	s.closing.Do(func() { close(s.closed) })
	s.active.Wait()
}

// service is the Server as seen through one port, with that port's way of telling who calls.
type service struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	s    *Server
	auth Authenticator
}

func (sv *service) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return sv.serve(&sotwStream{AggregatedDiscoveryService_StreamAggregatedResourcesServer: stream, id: sv.s.opts.Identifier})
}

func (sv *service) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return sv.serve(&deltaStream{AggregatedDiscoveryService_DeltaAggregatedResourcesServer: stream, id: sv.s.opts.Identifier})
}

// serve runs one stream: a goroutine receives, this one decides and sends.
func (sv *service) serve(st protocol) error {
	s := sv.s
	ctx, cancel := context.WithCancel(st.Context())
	defer cancel()
	var id *identity.ID
	if sv.auth != nil {
		who, err := sv.auth.Authenticate(ctx)
		if err != nil {
			return status.Errorf(codes.Unauthenticated, "authenticate: %v", err)
		}
		id = &who
	}
	s.mu.Lock()
	select {
	case <-s.closed:
		s.mu.Unlock()
		return status.Error(codes.Unavailable, "control plane is shutting down")
	default:
	}
	s.active.Add(1)
	s.mu.Unlock()
	defer s.active.Done()

	requests := make(chan *request)
	received := make(chan error, 1)
	go func() {
		defer close(received)
		for {
			r, err := st.recv()
			if err != nil {
				received <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	// gRPC unblocks recv when this handler returns, so the receiver ends with its stream.

	var first *request
	select {
	case first = <-requests:
	case _ = <-received:
		return nil
	case <-s.closed:
		return status.Error(codes.Unavailable, "control plane is shutting down")
	}
	if first.node == nil {
		return status.Error(codes.InvalidArgument, "the first request carries no node")
	}
	view, err := model.ParseNode(first.node.GetId(), first.node.GetMetadata())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if id != nil && id.Namespace != view.Namespace {
		return status.Errorf(codes.PermissionDenied, "%s may not act for a proxy of namespace %s", id, view.Namespace)
	}
	c := newConn(s, st, view)
	s.add(c)
	defer s.remove(c)
	s.log.Info("proxy connected", "proxy", view.ID, "type", view.Type, "delta", st.incremental())
	defer s.log.Info("proxy disconnected", "proxy", view.ID)
	if err := c.handle(first); err != nil {
		return err
	}
	cover := time.NewTimer(time.Hour)
	cover.Stop()
	defer cover.Stop()
	for {
		if err := c.advance(); err != nil {
			return err
		}
		if len(c.uncovered) > 0 {
			if !c.coverArmed {
				cover.Reset(s.opts.CoverTimeout)
				c.coverArmed = true
			}
		} else if c.coverArmed {
			cover.Stop()
			c.coverArmed = false
		}
		select {
		case r := <-requests:
			if err := c.handle(r); err != nil {
				return err
			}
		case <-c.woken:
		case <-cover.C:
			c.coverArmed = false
			clear(c.uncovered)
		case err := <-received:
			if err == nil || errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
				return nil
			}
			return nil // the peer went away; there is nobody left to tell
		case <-s.closed:
			return status.Error(codes.Unavailable, "control plane is shutting down")
		}
	}
}

func (s *Server) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c.id] = c
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c.id)
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*conn, 0, len(s.conns))
	for _, c := range s.conns {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *conn) int { return int(a.id) - int(b.id) })
	return out
}

// diffCache finds each difference between two Parts once, however many proxies share them.
type diffCache struct {
	mu sync.Mutex
	m  map[diffKey]*diffCell
}

type diffKey struct {
	old, new *xds.Part
	typ      int
}

type diffCell struct {
	once sync.Once
	d    xds.Delta
}

const diffCacheSize = 256

func (d *diffCache) diff(old, new *xds.Part, typ int) xds.Delta {
	if old == new {
		return xds.Delta{}
	}
	d.mu.Lock()
	if d.m == nil || len(d.m) >= diffCacheSize {
		d.m = map[diffKey]*diffCell{}
	}
	k := diffKey{old, new, typ}
	c := d.m[k]
	if c == nil {
		c = &diffCell{}
		d.m[k] = c
	}
	d.mu.Unlock()
	c.once.Do(func() { c.d = xds.Diff(old, new, typ) })
	return c.d
}
