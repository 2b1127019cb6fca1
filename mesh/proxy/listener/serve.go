package listener

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// serve takes one accepted connection to its end.
func (m *Manager) serve(l *live, raw net.Conn) {
	m.Opened.Add(1)
	m.Active.Add(1)
	defer m.Active.Add(-1)
	defer func() { _ = raw.Close() }() // nothing is left to tell the peer
	stop := context.AfterFunc(m.undecided, func() { _ = raw.Close() })
	t := l.conf.Load()
	c := &filter.Conn{Conn: raw, Local: addrPort(raw.LocalAddr()), Remote: addrPort(raw.RemoteAddr()), AcceptedAt: time.Now()}
	if t.UseOriginalDst || t.OriginalDst {
		if dst, ok := m.o.OriginalDst(raw); ok {
			c.Local = dst
		}
	}
	if t.UseOriginalDst {
		if next := m.forAddr(c.Local); next != nil && next != l {
			t = next.conf.Load()
		}
	}
	c.Listener, c.Direction = t.Name, t.Direction
	p := Properties{Local: c.Local, Remote: c.Remote, Transport: "raw_buffer"}
	if ok := m.sniff(t, c, &p); !ok {
		stop()
		return
	}
	stop()
	fc := Match(t.Listener, &p)
	if fc == nil {
		return
	}
	s := t.slots[fc]
	c.Chain, c.SNI = s, p.ServerName
	s.mu.Lock()
	s.conns[raw] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, raw)
		s.mu.Unlock()
		if s.gone.Load() {
			m.drop(s)
		}
	}()
	if m.ctx.Err() != nil {
		return
	}
	if s.tls != nil && !m.handshake(s, fc, c) {
		return
	}
	if fc.HTTP != nil {
		m.o.HTTP(m.ctx, c)
	} else {
		m.o.TCP(m.ctx, c)
	}
	if c.Conn != raw {
		_ = c.Close() // the TLS farewell
	}
	linger(raw)
}

// forAddr finds the listener that a redirected connection belongs to: of its address, or of every address at its port.
func (m *Manager) forAddr(a netip.AddrPort) *live {
	by := *m.byAddr.Load()
	if l := by[a]; l != nil {
		return l
	}
	wild := netip.IPv4Unspecified()
	if a.Addr().Is6() {
		if l := by[netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())]; l != nil {
			return l
		}
	}
	return by[netip.AddrPortFrom(wild, a.Port())]
}

func (m *Manager) sniff(t *table, c *filter.Conn, p *Properties) bool {
	port := c.Local.Port()
	wantTLS, wantHTTP := t.TLSInspector.Enabled(port), t.HTTPInspector.Enabled(port)
	if !wantTLS && !wantHTTP {
		return true
	}
	if t.InspectTimeout > 0 {
		_ = c.SetReadDeadline(time.Now().Add(t.InspectTimeout))
	}
	read, err := inspect(c.Conn, wantTLS, wantHTTP, p)
	if t.InspectTimeout > 0 {
		_ = c.SetReadDeadline(time.Time{})
	}
	c.Prefix = read
	if err != nil {
		var ne net.Error
		return errors.As(err, &ne) && ne.Timeout() && t.ContinueOnTimeout
	}
	return true
}

func (m *Manager) handshake(s *slot, fc *conf.FilterChain, c *filter.Conn) bool {
	ctx := m.ctx
	if fc.HandshakeTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, fc.HandshakeTimeout)
		defer cancel()
	}
	conn := tls.Server(&prefixed{Conn: c.Conn, prefix: c.Prefix}, s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		m.o.Log.Debug("tls handshake failed", "listener", c.Listener, "remote", c.Remote, "err", err)
		return false
	}
	st := conn.ConnectionState()
	c.Conn, c.Prefix, c.TLS, c.ALPN = conn, nil, true, st.NegotiatedProtocol
	if c.SNI == "" {
		c.SNI = st.ServerName
	}
	c.LocalURI = m.o.LocalURI()
	if len(st.PeerCertificates) > 0 {
		if uris := st.PeerCertificates[0].URIs; len(uris) > 0 {
			c.PeerURI = uris[0].String()
		}
		if h := s.Current().HTTP; h != nil {
			c.XFCC = xfcc(&st, c.LocalURI, h.XFCCFields)
		}
	}
	return true
}

// xfcc writes this hop's x-forwarded-client-cert element.
func xfcc(st *tls.ConnectionState, by string, f conf.XFCCFields) []byte {
	leaf := st.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	var parts []string
	if by != "" {
		parts = append(parts, "By="+by)
	}
	parts = append(parts, "Hash="+hex.EncodeToString(sum[:]))
	if f.Subject {
		parts = append(parts, `Subject="`+strings.ReplaceAll(leaf.Subject.String(), `"`, `\"`)+`"`)
	}
	if f.URI {
		for _, u := range leaf.URIs {
			parts = append(parts, "URI="+u.String())
		}
	}
	if f.DNS {
		for _, d := range leaf.DNSNames {
			parts = append(parts, "DNS="+d)
		}
	}
	return []byte(strings.Join(parts, ";"))
}

// prefixed gives back what sniffing read before it reads on.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// NetConn returns the connection below, as (*tls.Conn).NetConn does.
func (p *prefixed) NetConn() net.Conn { return p.Conn }

// lingerTime is how long the rest of what the peer sends is read away before the close: a close with unread bytes
// would be a reset, and the peer might lose the answer that is still under way (Envoy's delayed_close_timeout).
const lingerTime = time.Second

func linger(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok || t.CloseWrite() != nil {
		return
	}
	_ = t.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, t)
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
