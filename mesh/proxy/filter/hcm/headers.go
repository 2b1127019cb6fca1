package hcm

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// Names and values that every request or response needs; they are never changed.
var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
	hServer     = []byte("server")
	hDate       = []byte("date")
	hXFP        = []byte("x-forwarded-proto")
	hXFF        = []byte("x-forwarded-for")
	hXFCC       = []byte("x-forwarded-client-cert")
	hRequestID  = []byte("x-request-id")
	hInternal   = []byte("x-envoy-internal")
	hExternal   = []byte("x-envoy-external-address")
	vTrue       = []byte("true")
)

// finish is the codec's last change to every response head.
func finish(s *filter.Stream) {
	r := &s.Resp
	switch s.HTTP.ServerMode {
	case conf.ServerOverwrite:
		r.Set(hServer, s.HTTP.ServerName)
	case conf.ServerAppendIfAbsent:
		if !r.Has("server") {
			r.Add(hServer, s.HTTP.ServerName)
		}
	}
	if !r.Has("date") {
		r.Add(hDate, r.Take(time.Now().UTC().AppendFormat(r.Scratch(), "Mon, 02 Jan 2006 15:04:05 GMT")))
	}
	if s.HTTP.ReturnRequestID {
		if id := s.Req.Get("x-request-id"); id != nil {
			r.Set(hRequestID, id)
		}
	}
}

// prepare does what Envoy does to request heads before filters run. A code other than 0 refuses the request.
func prepare(s *filter.Stream) (code int, details string) {
	q, h := &s.Req, s.HTTP
	if string(q.Method) == "CONNECT" {
		return 403, "upgrade_failed"
	}
	if len(q.Host) == 0 {
		if h.DefaultHost == nil {
			return 400, "missing_host_header"
		}
		q.Host = h.DefaultHost
	}
	switch h.StripHostPort {
	case conf.HostPortStripAny:
		q.Host = stripPort(q.Host, 0)
	case conf.HostPortStripMatching:
		q.Host = stripPort(q.Host, s.Conn.Local.Port())
	}
	if h.UnderscoreHeaders != conf.UnderscoreAllow && !underscores(s) {
		return 400, "http1.unexpected_underscore"
	}
	if h.NormalizePath || h.MergeSlashes || h.EscapedSlashes != conf.SlashesKeep {
		if code, details := normalize(s); code != 0 {
			return code, details
		}
	}
	forwarded(s)
	clientCert(s)
	q.Scheme = s.Scheme
	switch {
	case !q.Has("x-request-id"):
		if h.GenerateRequestID {
			q.Add(hRequestID, q.Take(appendUUID(q.Scratch())))
		}
	case h.UseRemote && !s.Internal && !h.PreserveRequestID && h.GenerateRequestID:
		q.Set(hRequestID, q.Take(appendUUID(q.Scratch())))
	}
	return 0, ""
}

// forwarded keeps x-forwarded-for, x-forwarded-proto and x-envoy-internal, and drops what only friends may say.
func forwarded(s *filter.Stream) {
	q, h := &s.Req, s.HTTP
	remote := s.Conn.Remote.Addr().Unmap()
	xff, some := q.Joined(hXFF)
	switch {
	case h.UseRemote:
		trusted := remote
		single := !some
		if h.TrustedHops > 0 {
			if a, ok := nthFromRight(xff, h.TrustedHops); ok {
				trusted = a
			}
		}
		if !h.SkipXFF {
			b := q.Scratch()
			if some {
				b = append(append(b, xff...), ',')
			}
			q.Set(hXFF, q.Take(remote.AppendTo(b)))
		}
		s.Internal = single && private(trusted)
		if h.TrustedHops == 0 {
			q.Set(hXFP, s.Scheme) // the edge knows better than its client
		}
		if !s.Internal {
			dropTrusted(s)
			q.Set(hExternal, q.Take(trusted.AppendTo(q.Scratch())))
		}
	default:
		if some && bytes.IndexByte(xff, ',') < 0 {
			a, err := netip.ParseAddr(string(xff))
			s.Internal = err == nil && private(a)
		} else {
			s.Internal = false
		}
	}
	if v := q.Get("x-forwarded-proto"); v != nil {
		if string(v) == "http" || string(v) == "https" {
			s.Scheme = v
		}
	} else {
		q.Add(hXFP, s.Scheme)
	}
	if h.UseRemote {
		if s.Internal {
			q.Set(hInternal, vTrue)
		} else {
			q.Del(hInternal)
		}
	}
}

// dropTrusted removes the headers by which a client inside may steer the router.
func dropTrusted(s *filter.Stream) {
	q := &s.Req
	out := q.Fields[:0]
	for _, f := range q.Fields {
		if bytes.HasPrefix(f.Name, []byte("x-envoy-")) {
			switch string(f.Name[8:]) {
			case "retry-on", "retry-grpc-on", "max-retries", "upstream-alt-stat-name", "upstream-rq-timeout-ms", "upstream-rq-per-try-timeout-ms",
				"upstream-rq-timeout-alt-response", "expected-rq-timeout-ms", "force-trace", "ip-tags", "original-url", "decorator-operation",
				"downstream-service-cluster", "downstream-service-node", "hedge-on-per-try-timeout", "retriable-status-codes", "retriable-header-names",
				"internal":
				continue
			}
		}
		out = append(out, f)
	}
	q.Fields = out
}

func nthFromRight(xff []byte, n int) (netip.Addr, bool) {
	for ; n > 1; n-- {
		i := bytes.LastIndexByte(xff, ',')
		if i < 0 {
			return netip.Addr{}, false
		}
		xff = xff[:i]
	}
	if i := bytes.LastIndexByte(xff, ','); i >= 0 {
		xff = xff[i+1:]
	}
	a, err := netip.ParseAddr(string(bytes.TrimSpace(xff)))
	return a, err == nil
}

func private(a netip.Addr) bool { return a.IsPrivate() || a.IsLoopback() }

// clientCert keeps x-forwarded-client-cert as the mode says.
func clientCert(s *filter.Stream) {
	q := &s.Req
	mode := s.HTTP.XFCC
	if mode == conf.XFCCAlwaysForwardOnly {
		return
	}
	if s.Conn.XFCC == nil { // no mutual TLS: nothing that came can be trusted
		q.Del(hXFCC)
		return
	}
	switch mode {
	case conf.XFCCSanitize:
		q.Del(hXFCC)
	case conf.XFCCSanitizeSet:
		q.Set(hXFCC, s.Conn.XFCC)
	case conf.XFCCAppendForward:
		old, _ := q.Joined(hXFCC)
		if len(old) == 0 {
			q.Set(hXFCC, s.Conn.XFCC)
			return
		}
		b := append(append(q.Scratch(), old...), ',')
		q.Set(hXFCC, q.Take(append(b, s.Conn.XFCC...)))
	}
}

func stripPort(host []byte, only uint16) []byte {
	i := bytes.LastIndexByte(host, ':')
	if i < 0 || bytes.IndexByte(host[i:], ']') >= 0 {
		return host
	}
	port := 0
	for _, ch := range host[i+1:] {
		if ch < '0' || ch > '9' || port > 65535 {
			return host
		}
		port = port*10 + int(ch-'0')
	}
	if only != 0 && port != int(only) {
		return host
	}
	return host[:i]
}

func underscores(s *filter.Stream) bool {
	q := &s.Req
	out := q.Fields[:0]
	for _, f := range q.Fields {
		if bytes.IndexByte(f.Name, '_') >= 0 {
			if s.HTTP.UnderscoreHeaders == conf.UnderscoreReject {
				return false
			}
			continue
		}
		out = append(out, f)
	}
	q.Fields = out
	return true
}

// appendUUID appends a random (version 4) UUID.
func appendUUID(b []byte) []byte {
	var u [16]byte
	x, y := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		u[i], u[8+i] = byte(x>>(8*i)), byte(y>>(8*i))
	}
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	b = hex.AppendEncode(b, u[:4])
	b = append(b, '-')
	b = hex.AppendEncode(b, u[4:6])
	b = append(b, '-')
	b = hex.AppendEncode(b, u[6:8])
	b = append(b, '-')
	b = hex.AppendEncode(b, u[8:10])
	b = append(b, '-')
	return hex.AppendEncode(b, u[10:])
}
