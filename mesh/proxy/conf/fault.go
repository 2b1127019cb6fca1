package conf

import "time"

// Fault is what Envoy's fault filter does to a route's requests before the router sees them: first it holds them up, then it answers
// in place of the upstream. Each request draws for both by itself.
type Fault struct {
	Delay         time.Duration // 0 is none
	DelayFraction uint32        // of requests out of a million
	Abort         int           // HTTP status of the answer; 0 is none
	AbortGRPC     int           // grpc-status for gRPC clients; 0 is what follows from Abort
	AbortFraction uint32
}

// FaultFilter is the name by which a connection manager and its routes mean the same fault filter.
const FaultFilter = "envoy.filters.http.fault"
