// Package tcpproxy is the network filter that joins a downstream connection with one to an endpoint of a cluster.
package tcpproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/mesh/proxy/breaker"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/hangup"
	"github.com/meshproof/meshproof/mesh/proxy/outlier"
	"github.com/meshproof/meshproof/mesh/proxy/router"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// Recorder is told of every connection, when it opens and when it ends.
type Recorder interface {
	TCPOpened(t *conf.TCP, r *telemetry.Record)
	TCPClosed(t *conf.TCP, r *telemetry.Record)
}

// Proxy serves TCP connections.
type Proxy struct {
	Set      *upstream.Set
	Recorder Recorder
}

// Serve joins c with an upstream connection until both directions ended. It does not close c.
func (p *Proxy) Serve(ctx context.Context, c *filter.Conn) {
	t := c.Chain.Current().TCP
	rec := &telemetry.Record{Start: c.AcceptedAt, Direction: c.Direction, Local: c.Local, Remote: c.Remote, SNI: c.SNI, PeerURI: c.PeerURI, LocalURI: c.LocalURI, MTLS: c.PeerURI != ""}
	up, host, bound := p.connect(ctx, c, t, rec)
	p.Recorder.TCPOpened(t, rec)
	if up != nil {
		host.Active.Add(1)
		rec.UpstreamLocal = up.LocalAddr().String()
		whole := join(ctx, c, up, t.IdleTimeout, rec)
		host.Active.Add(-1)
		if whole {
			_ = up.Close()
		} else {
			_ = hangup.Now(up)
		}
		bound.Give()
	}
	rec.Duration = time.Since(rec.Start)
	p.Recorder.TCPClosed(t, rec)
}

// connect makes a connection to an endpoint; bound is what to give back when it has ended.
func (p *Proxy) connect(ctx context.Context, c *filter.Conn, t *conf.TCP, rec *telemetry.Record) (up net.Conn, host *upstream.Host, bound *breaker.Resource) {
	name := router.Split(t.Clusters, t.TotalWeight).Name
	cl := p.Set.View().Cluster(name)
	if cl == nil {
		rec.Flags |= telemetry.NoClusterFound
		return nil, nil, nil
	}
	rec.Cluster = cl.Conf
	if bound = &cl.Breakers.Connections; !bound.Take() {
		rec.Flags |= telemetry.UpstreamOverflow
		return nil, nil, nil
	}
	var q balance.Query
	if t.HashSource && cl.Hashes() {
		q = balance.Query{Hash: xxhash.Sum64String(c.Remote.Addr().String()), HasHash: true}
	}
	for left := t.MaxConnect; left > 0; left-- {
		m, ok := cl.Pick(q, c.Local)
		if !ok {
			rec.Flags |= telemetry.NoHealthyUpstream
			break
		}
		rec.Upstream, rec.Endpoint = m.Addr, m.Endpoint
		up, err := m.DialTCP(ctx, cl.Conf.ConnectTimeout)
		if err == nil {
			rec.Flags &^= telemetry.UpstreamConnectionFailure
			m.Report(outlier.ConnectedFinal, 0)
			if c.Direction != conf.Inbound {
				rec.MTLS = m.Mesh
				if uri := m.PeerURI.Load(); uri != nil {
					rec.UpstreamURI = *uri
				}
			}
			return up, m.Host, bound
		}
		m.Report(connectResult(err), 0)
		cl.Stats.ConnectFail.Add(1)
		rec.Flags |= telemetry.UpstreamConnectionFailure
		rec.Failure = err.Error()
		if left == 1 {
			rec.Flags |= telemetry.RetryLimitExceeded
		}
	}
	bound.Give()
	return nil, nil, nil
}

func connectResult(err error) outlier.Result {
	if errors.Is(err, context.DeadlineExceeded) {
		return outlier.TimedOut
	}
	return outlier.ConnectFailed
}

// join copies both ways. When one side ends its sending half, the other side is told so and may go on. whole reports that both
// sides ended so.
func join(ctx context.Context, c *filter.Conn, up net.Conn, idle time.Duration, rec *telemetry.Record) (whole bool) {
	stop := context.AfterFunc(ctx, func() {
		_ = c.SetDeadline(time.Unix(1, 0))
		_ = hangup.Now(up) // a deadline would not hold against a farewell that is about to begin
	})
	defer stop()
	var wg sync.WaitGroup
	act := &activity{a: c.Conn, b: up, idle: idle}
	act.arm()
	wg.Go(func() {
		if len(c.Prefix) > 0 {
			n, err := up.Write(c.Prefix)
			if rec.BytesIn += int64(n); err != nil {
				act.abort()
				return
			}
		}
		rec.BytesIn += act.copy(ctx, up, c.Conn)
	})
	wg.Go(func() { rec.BytesOut += act.copy(ctx, c.Conn, up) })
	wg.Wait()
	return !act.dead
}

// activity ends both directions when neither has moved a byte for the idle time.
type activity struct {
	a, b net.Conn
	idle time.Duration

	mu    sync.Mutex
	due   time.Time
	doubt bool // one direction found nothing since due was set
	dead  bool
}

// arm sets the deadline of both sides, a full idle time from now.
func (v *activity) arm() {
	if v.idle == 0 {
		return
	}
	v.due, v.doubt = time.Now().Add(v.idle), false
	_ = v.a.SetReadDeadline(v.due)
	_ = v.b.SetReadDeadline(v.due)
}

// expired is called when a read of src met its deadline after n bytes. It reports whether the connection is idle: that
// takes both directions to say that nothing came, or one to say so twice, for the other may not have had its turn yet.
func (v *activity) expired(src net.Conn, n int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	switch {
	case v.dead:
		return true
	case n > 0:
		v.arm()
	case now.Before(v.due): // the other direction moved
		_ = src.SetReadDeadline(v.due)
	case v.doubt:
		return true
	default:
		v.doubt = true
		_ = src.SetReadDeadline(now.Add(v.idle / 8))
	}
	return false
}

func (v *activity) abort() {
	v.mu.Lock()
	v.dead = true
	v.mu.Unlock()
	_ = v.a.SetDeadline(time.Unix(1, 0))
	_ = v.b.SetDeadline(time.Unix(1, 0))
}

// copy moves bytes until src ends; inside the kernel where both are TCP.
func (v *activity) copy(ctx context.Context, dst, src net.Conn) (n int64) {
	for {
		k, err := io.Copy(dst, src)
		n += k
		if v.idle > 0 && errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil && !v.expired(src, k) {
			continue
		}
		if err != nil {
			v.abort()
			return n
		}
		if cw, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		} else {
			v.abort()
		}
		return n
	}
}
