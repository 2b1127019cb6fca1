// Package conf is the proxy's runtime configuration: immutable values, fully checked and defaulted, without protos.
//
// A Config is published whole and never changed afterwards. Parts that did not change between two Configs are shared
// by pointer, so "did this change" is a pointer comparison.
package conf

import (
	"net/netip"
	"time"
)

// Config is everything the data path needs at one instant.
type Config struct {
	Listeners map[string]*Listener
	Routes    map[string]*RouteTable
	Clusters  map[string]*Cluster
}

// Unlimited is the value of a circuit breaker threshold that never trips.
const Unlimited = ^uint32(0)

// Breakers are the circuit breaker thresholds of a cluster for requests of default priority.
type Breakers struct{ Connections, Pending, Requests, Retries uint32 }

// DefaultBreakers are Envoy's.
var DefaultBreakers = Breakers{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}

// LBPolicy names how an endpoint is picked.
type LBPolicy uint8

// The balancing policies that are built.
const (
	RoundRobin LBPolicy = iota
	LeastRequest
	Random
	// RingHash and Maglev send equal hashes of requests to the same endpoint; see Forward.Hash.
	RingHash
	Maglev
	// OriginalDst sends to the address that the downstream connection was made for.
	OriginalDst
)

// Discovery says where the endpoints of a cluster come from.
type Discovery uint8

// The endpoint sources. StrictDNS makes one endpoint of each address, LogicalDNS keeps one endpoint and looks its name up at each connection.
const (
	Static Discovery = iota
	EDS
	StrictDNS
	LogicalDNS
	OriginalDstDiscovery
)

// Cluster is one upstream cluster with its endpoints.
type Cluster struct {
	Name           string
	Discovery      Discovery
	ServiceName    string // the EDS resource name; the cluster's own name when the control plane gave none
	LB             LBPolicy
	ChoiceCount    int // for LeastRequest, at least 2
	Hash           HashTable
	ConnectTimeout time.Duration
	IdleTimeout    time.Duration // of a pooled connection; 0 never
	MaxRequests    uint32        // per connection; 0 no limit
	Breakers       Breakers
	Outlier        *Outlier // nil is no outlier detection
	Keepalive      Keepalive
	// PanicThreshold is the percentage of healthy endpoints below which health is ignored; 0 never.
	PanicThreshold float64
	LocalityLB     bool
	BindSource     netip.Addr    // source address of upstream connections; invalid when the kernel chooses
	TLS            *UpstreamTLS  // used when no entry of TLSMatches matches
	TLSMatches     []TLSMatch    // first match on endpoint metadata wins
	Endpoints      *Endpoints    // nil for OriginalDstDiscovery
	Services       []Service     // istio.services of the cluster's metadata: telemetry's destination
	DNSRefresh     time.Duration // StrictDNS only
	Direction      Direction
	Protocol       Protocol
	HTTP2          HTTP2 // for connections that speak it
}

// Protocol is how HTTP is spoken to a cluster.
type Protocol uint8

// The protocols of a cluster. SameAsDownstream is HTTP/2 for requests that came by HTTP/2.
const (
	HTTP1Only Protocol = iota
	HTTP2Only
	SameAsDownstream
)

// HTTP2 are options of HTTP/2 connections; zero fields leave the codec's defaults.
type HTTP2 struct {
	MaxStreams                  uint32 // that a peer may open, or that are opened on one connection
	Window, ConnWindow          int32
	KeepAlive, KeepAliveTimeout time.Duration
}

// Keepalive is TCP keepalive of upstream connections; zero fields leave the kernel's values.
type Keepalive struct {
	On       bool
	Idle     time.Duration
	Interval time.Duration
	Probes   int
}

// Service names the service that a cluster stands for.
type Service struct{ Name, Namespace, Host string }

// TLSMatch chooses a TLS context by endpoint metadata (envoy.transport_socket_match). A nil TLS is plaintext.
type TLSMatch struct {
	Name  string
	Match map[string]string
	TLS   *UpstreamTLS
}

// Endpoints is one version of a cluster's endpoints.
type Endpoints struct {
	Name       string
	Localities []Locality
}

// Locality groups endpoints of one place and priority.
type Locality struct {
	Region, Zone, SubZone string
	Priority              uint32
	Weight                uint32
	Endpoints             []Endpoint
}

// Endpoint is one upstream address.
type Endpoint struct {
	Addr netip.AddrPort
	// Host and Port are set instead of Addr for names that are looked up.
	Host string
	Port uint16
	// Hostname is Envoy's endpoint.hostname, HashKey its metadata envoy.lb/hash_key: names for the tables of HashTable.
	Hostname  string
	HashKey   string
	Weight    uint32
	Unhealthy bool
	Draining  bool
	TLSMode   map[string]string // metadata envoy.transport_socket_match
	Workload  *Workload         // metadata istio.workload; nil when absent
}

// Workload is who stands behind an endpoint or a peer, as telemetry labels need it. Values are shared: never change one.
type Workload struct {
	Name, Namespace   string
	Canonical         string
	CanonicalRevision string
	Cluster           string
	App, Version      string
	Principal         string
}

// Direction is the traffic direction of a listener or cluster.
type Direction uint8

// The directions of traffic, seen from the workload.
const (
	Unspecified Direction = iota
	Inbound
	Outbound
)

// UpstreamTLS is the client side of a TLS connection.
type UpstreamTLS struct {
	TLSCommon
	SNI string
}

// DownstreamTLS is the server side of a TLS connection.
type DownstreamTLS struct {
	TLSCommon
	RequireClientCert bool
}

// TLSCommon is shared by both sides. ID is equal for equal contexts: pools of connections are kept by it.
type TLSCommon struct {
	ID         string
	ALPN       []string
	MinVersion uint16 // crypto/tls version; 0 default
	MaxVersion uint16
	Ciphers    []uint16
	CertSecret string // SDS name of the certificate; "" none
	RootSecret string // SDS name of the trust anchors; "" none
	CertPEM    []byte // inline instead of CertSecret
	KeyPEM     []byte
	RootPEM    []byte
	CertFile   string
	KeyFile    string
	RootFile   string
	SANs       []StringMatch // any of; empty accepts every name that chains to the roots
}
