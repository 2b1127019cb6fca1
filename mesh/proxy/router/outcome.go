package router

import "github.com/meshproof/meshproof/mesh/proxy/filter"

// outcome is the status that outlier detection counts: the response's, or for gRPC what the status in its head stands for.
// A status in trailers is not seen, as in Envoy.
func outcome(s *filter.Stream) int {
	if !filter.GRPC(&s.Req) {
		return s.Resp.Status
	}
	g := s.Resp.Get("grpc-status")
	if len(g) == 0 {
		return s.Resp.Status
	}
	n := 0
	for _, c := range g {
		if c < '0' || c > '9' || n > 16 {
			return 500
		}
		n = 10*n + int(c-'0')
	}
	if n >= len(grpcHTTP) {
		return 500
	}
	return grpcHTTP[n]
}

// grpcHTTP is the HTTP status of each gRPC status. Source: google/rpc/code.proto.
var grpcHTTP = [...]int{200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401}
