package telemetry

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// AppendFormat appends the record in the given format. A value that is not there is absent ("-" in access logs, "" in headers).
func AppendFormat(b []byte, f *conf.Format, r *Record, absent string) []byte {
	for i := range f.Parts {
		p := &f.Parts[i]
		if p.Command == "" {
			b = append(b, p.Literal...)
			continue
		}
		start := len(b)
		b = appendCommand(b, p, r)
		if p.Max > 0 && len(b)-start > p.Max {
			b = b[:start+p.Max]
		}
		if len(b) == start {
			b = append(b, absent...)
		}
	}
	return b
}

func appendCommand(b []byte, p *conf.FormatPart, r *Record) []byte {
	switch p.Command {
	case "START_TIME":
		return r.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	case "REQ":
		if v := requestField(r, p.Arg); len(v) > 0 {
			return append(b, v...)
		}
		return append(b, requestField(r, p.Alt)...)
	case "RESP":
		if r.Resp == nil {
			return b
		}
		v := r.Resp.Get(p.Arg)
		if len(v) == 0 && p.Alt != "" {
			v = r.Resp.Get(p.Alt)
		}
		return append(b, v...)
	case "TRAILER":
		if r.Resp == nil {
			return b
		}
		return append(b, r.Resp.Trailers.Get(p.Arg)...)
	case "PROTOCOL":
		switch {
		case r.Req == nil:
			return b
		case r.Req.Major == 2:
			return append(b, "HTTP/2"...)
		case r.Req.Minor == 0:
			return append(b, "HTTP/1.0"...)
		}
		return append(b, "HTTP/1.1"...)
	case "RESPONSE_CODE":
		return strconv.AppendInt(b, int64(r.Status), 10)
	case "RESPONSE_FLAGS":
		return append(b, r.Flags.String()...)
	case "RESPONSE_CODE_DETAILS":
		return append(b, r.Details...)
	case "CONNECTION_TERMINATION_DETAILS":
		return append(b, r.Term...)
	case "UPSTREAM_TRANSPORT_FAILURE_REASON":
		return append(b, r.Failure...)
	case "BYTES_RECEIVED":
		return strconv.AppendInt(b, r.BytesIn, 10)
	case "BYTES_SENT":
		return strconv.AppendInt(b, r.BytesOut, 10)
	case "DURATION":
		return strconv.AppendInt(b, int64(r.Duration/time.Millisecond), 10)
	case "RESPONSE_DURATION":
		return strconv.AppendInt(b, int64(r.UpstreamTime/time.Millisecond), 10)
	case "UPSTREAM_HOST":
		return append(b, r.Upstream...)
	case "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW":
		if r.Cluster == nil {
			return b
		}
		return append(b, r.Cluster.Name...)
	case "UPSTREAM_LOCAL_ADDRESS":
		return append(b, r.UpstreamLocal...)
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return appendAddr(b, r.Local)
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return appendIP(b, r.Local)
	case "DOWNSTREAM_LOCAL_PORT":
		return strconv.AppendUint(b, uint64(r.Local.Port()), 10)
	case "DOWNSTREAM_REMOTE_ADDRESS":
		return appendAddr(b, r.Remote)
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return appendIP(b, r.Remote)
	case "DOWNSTREAM_REMOTE_PORT":
		return strconv.AppendUint(b, uint64(r.Remote.Port()), 10)
	case "DOWNSTREAM_PEER_URI_SAN":
		return append(b, r.PeerURI...)
	case "DOWNSTREAM_LOCAL_URI_SAN":
		return append(b, r.LocalURI...)
	case "REQUESTED_SERVER_NAME":
		return append(b, r.SNI...)
	case "ROUTE_NAME":
		return append(b, r.RouteName...)
	}
	return b
}

func requestField(r *Record, name string) []byte {
	if r.Req == nil || name == "" {
		return nil
	}
	switch name {
	case ":method":
		return r.Req.Method
	case ":path":
		return r.Req.Target
	case ":authority", "host":
		return r.Req.Host
	case ":scheme":
		if r.Req.Scheme == nil {
			return []byte("http")
		}
		return r.Req.Scheme
	case "x-envoy-original-path":
		return r.OriginalPath
	}
	return r.Req.Get(name)
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	return a.AppendTo(b)
}

func appendIP(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	return a.Addr().AppendTo(b)
}
