package hcm

import (
	"context"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// look is how often exchanges of HTTP/1 that take long are looked at. Nothing reads their connections meanwhile, so that
// only the kernel knows that a client has gone; shorter exchanges pay nothing.
const look = 100 * time.Millisecond

// Run notices clients of HTTP/1 that went away while their answer was awaited, and has long gRPC calls report, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	t := time.NewTicker(look)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			m.lookAround()
			m.reportCalls(now)
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Manager) watch(c *connection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns == nil {
		m.conns = map[*connection]struct{}{}
	}
	m.conns[c] = struct{}{}
}

func (m *Manager) forget(c *connection) {
	m.mu.Lock()
	delete(m.conns, c)
	m.mu.Unlock()
}

func (m *Manager) lookAround() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		epoch := c.busy.Load()
		if epoch != 0 && epoch == c.seen && c.raw != nil && left(c.raw) {
			c.s.Interrupt(epoch, telemetry.DownstreamTermination)
		}
		c.seen = epoch
	}
}
