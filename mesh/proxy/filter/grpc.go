package filter

import (
	"bytes"
	"strconv"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

var (
	hContentType = []byte("content-type")
	hGRPCStatus  = []byte("grpc-status")
	hGRPCMessage = []byte("grpc-message")
	typeGRPC     = []byte("application/grpc")
)

// GRPC reports whether q is a gRPC request: content-type application/grpc, or that with a suffix or parameters.
func GRPC(q *http1.Request) bool {
	t := q.Get("content-type")
	if !bytes.HasPrefix(t, typeGRPC) {
		return false
	}
	return len(t) == len(typeGRPC) || t[len(typeGRPC)] == '+' || t[len(typeGRPC)] == ';'
}

// GRPCStatus is what Envoy tells gRPC clients instead of an HTTP status (source/common/grpc/status.cc).
func GRPCStatus(code int) int {
	switch code {
	case 400:
		return 13 // Internal
	case 401:
		return 16 // Unauthenticated
	case 403:
		return 7 // PermissionDenied
	case 404:
		return 12 // Unimplemented
	case 429, 502, 503, 504:
		return 14 // Unavailable
	}
	return 2 // Unknown
}

// replyGRPC answers by a head alone (Trailers-Only in gRPC's words): clients look at grpc-status, not at the status.
func (s *Stream) replyGRPC(code int, body []byte, details string) {
	r := &s.Resp
	status := s.GRPCCode
	if status == 0 {
		status = GRPCStatus(code)
	}
	r.Status, r.Framing, r.Length = 200, http1.NoBody, 0
	r.Set(hContentType, typeGRPC)
	r.Set(hGRPCStatus, r.Take(strconv.AppendInt(r.Scratch(), int64(status), 10)))
	if len(body) > 0 {
		r.Set(hGRPCMessage, r.Take(appendPercent(r.Scratch(), body)))
	}
	s.Rec.Details = details
	s.WriteHead()
	_ = s.Out.End(nil) // errors stick to the Sink
}

// appendPercent appends a grpc-message: printable ASCII but the percent sign stays as it is.
func appendPercent(b, text []byte) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range text {
		if c >= ' ' && c <= '~' && c != '%' {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return b
}
