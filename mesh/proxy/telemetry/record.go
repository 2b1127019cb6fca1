// Package telemetry turns finished exchanges into Istio's standard metrics and access logs, cheaply: the data path fills
// one Record per exchange, and every counter it touches is atomic.
package telemetry

import (
	"net/netip"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// Flags are Envoy's response flags.
type Flags uint32

// The response flags that this proxy sets, in the order in which Envoy prints them (envoy/stream_info/stream_info.h, CoreResponseFlag).
const (
	NoHealthyUpstream             Flags = 1 << iota // UH
	UpstreamRequestTimeout                          // UT
	UpstreamRemoteReset                             // UR
	UpstreamConnectionFailure                       // UF
	UpstreamConnectionTermination                   // UC
	UpstreamOverflow                                // UO
	NoRoute                                         // NR
	DelayInjected                                   // DI
	FaultInjected                                   // FI
	DownstreamTermination                           // DC
	RetryLimitExceeded                              // URX
	StreamIdleTimeout                               // SI
	DownstreamProtocolError                         // DPE
	DurationTimeout                                 // DT
	UpstreamProtocolError                           // UPE
	NoClusterFound                                  // NC
)

var flagNames = [...]string{"UH", "UT", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "DC", "URX", "SI", "DPE", "DT", "UPE", "NC"}

// String joins the short names by a comma; no flag is "-".
func (f Flags) String() string {
	if f == 0 {
		return "-"
	}
	s := ""
	for i, n := range flagNames {
		if f&(1<<i) != 0 {
			if s != "" {
				s += ","
			}
			s += n
		}
	}
	return s
}

// Record is what is known about one HTTP exchange or one TCP connection. The owner fills it in and reuses it.
type Record struct {
	Req  *http1.Request  // nil for TCP
	Resp *http1.Response // nil for TCP or when nothing was answered

	Start        time.Time
	Duration     time.Duration // set at the end
	UpstreamTime time.Duration // until the upstream's head

	Status   int
	Flags    Flags
	Details  string // RESPONSE_CODE_DETAILS
	Failure  string // UPSTREAM_TRANSPORT_FAILURE_REASON
	Term     string // CONNECTION_TERMINATION_DETAILS
	GRPC     bool   // the request was gRPC
	BytesIn  int64
	BytesOut int64
	HeadIn   int64
	HeadOut  int64
	// Of gRPC: what the client and what the server said.
	MessagesIn, MessagesOut Messages

	Direction     conf.Direction
	Cluster       *conf.Cluster
	Upstream      string // host:port
	UpstreamLocal string
	Endpoint      *conf.Endpoint
	RouteName     string
	OriginalPath  []byte // when the path was rewritten

	Local, Remote netip.AddrPort
	SNI           string
	PeerURI       string // SPIFFE id of the downstream peer, "" in plaintext
	LocalURI      string
	MTLS          bool           // on the side that faces the other workload
	Peer          *conf.Workload // told by metadata headers; nil unknown
	UpstreamURI   string
}

// BodyIn counts a piece of the request's body.
func (r *Record) BodyIn(p []byte) {
	r.BytesIn += int64(len(p))
	if r.GRPC {
		r.MessagesIn.Add(p)
	}
}

// BodyOut counts a piece of the answer's body.
func (r *Record) BodyOut(p []byte) {
	r.BytesOut += int64(len(p))
	if r.GRPC {
		r.MessagesOut.Add(p)
	}
}

// principal is the identity of the other workload.
func (r *Record) principal() string {
	if r.Direction == conf.Inbound {
		return r.PeerURI
	}
	return r.UpstreamURI
}
