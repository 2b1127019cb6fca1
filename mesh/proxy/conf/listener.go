package conf

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Listener accepts connections, or takes over connections that another listener accepted (Bind false).
type Listener struct {
	Name           string
	Addrs          []netip.AddrPort // the first is the main one
	Bind           bool
	Direction      Direction
	UseOriginalDst bool // read SO_ORIGINAL_DST and hand over to the listener of that address, if there is one
	OriginalDst    bool // the original_dst listener filter: the local address becomes the original one
	TLSInspector   *PortPredicate
	HTTPInspector  *PortPredicate
	// InspectTimeout ends sniffing; 0 waits for as long as it takes.
	InspectTimeout    time.Duration
	ContinueOnTimeout bool
	Chains            []*FilterChain
	Default           *FilterChain // nil closes what matches nothing
}

// PortPredicate says for which destination ports a listener filter is off.
type PortPredicate struct{ Disabled []PortRange }

// PortRange is half open: From <= p < To.
type PortRange struct{ From, To uint16 }

// Enabled reports whether the filter runs for a connection to port.
func (p *PortPredicate) Enabled(port uint16) bool {
	if p == nil {
		return false
	}
	for _, r := range p.Disabled {
		if port >= r.From && (port < r.To || r.To == 0) {
			return false
		}
	}
	return true
}

// FilterChain is what is done with a connection that matches. Exactly one of HTTP and TCP is set.
type FilterChain struct {
	Name  string
	Match ChainMatch
	TLS   *DownstreamTLS // nil is plaintext
	// HandshakeTimeout bounds the TLS handshake; 0 is no bound.
	HandshakeTimeout time.Duration
	HTTP             *HTTP
	TCP              *TCP
}

// ChainMatch is Envoy's FilterChainMatch; empty fields match everything.
type ChainMatch struct {
	DestPort      uint16
	DestPrefixes  []netip.Prefix
	ServerNames   []string // exact, or "*.suffix"
	Transport     string   // "", "tls", "raw_buffer"
	ALPN          []string
	DirectSources []netip.Prefix
	SourceType    SourceType
	Sources       []netip.Prefix
	SourcePorts   []uint16
}

// SourceType restricts a chain by where the connection comes from.
type SourceType uint8

// The source types of Envoy's FilterChainMatch.
const (
	SourceAny SourceType = iota
	SourceLocal
	SourceExternal
)

// TCP is Envoy's tcp_proxy: bytes to one cluster out of Clusters.
type TCP struct {
	StatPrefix  string
	Clusters    []WeightedCluster
	TotalWeight uint32
	IdleTimeout time.Duration // 0 never
	MaxConnect  int           // attempts, at least 1
	HashSource  bool          // the client's address is the hash for RingHash and Maglev
	AccessLog   []AccessLog
}

// HTTP is Envoy's HTTP connection manager.
type HTTP struct {
	StatPrefix  string
	RouteName   string      // RDS; "" when Routes is set
	Routes      *RouteTable // inline
	ServerName  []byte
	ServerMode  ServerMode
	AccessLog   []AccessLog
	UseRemote   bool
	SkipXFF     bool
	TrustedHops int
	XFCC        XFCCMode
	XFCCFields  XFCCFields
	// GenerateRequestID, PreserveRequestID and ReturnRequestID steer x-request-id.
	GenerateRequestID bool
	PreserveRequestID bool
	ReturnRequestID   bool
	Proxy100          bool
	NormalizePath     bool
	MergeSlashes      bool
	EscapedSlashes    EscapedSlashes
	StripHostPort     HostPort
	HTTP10            bool
	DefaultHost       []byte // for HTTP/1.0 without a Host
	Upgrades          []string
	Faults            bool // the fault filter is in the chain, so that routes' faults count
	Codec             Codec
	HTTP2             HTTP2
	UnderscoreHeaders Underscores
	MaxHeaderBytes    int
	MaxHeaders        int
	IdleTimeout       time.Duration // of a connection without a request; 0 never
	StreamIdleTimeout time.Duration
	RequestTimeout    time.Duration // whole request received; 0 none
	HeadersTimeout    time.Duration
	MaxConnDuration   time.Duration
	DelayedClose      time.Duration
}

// Codec is how a listener's connections speak HTTP.
type Codec uint8

// The codecs of the connection manager. CodecAuto goes by ALPN, or else by the first bytes.
const (
	CodecAuto Codec = iota
	CodecHTTP1
	CodecHTTP2
)

// ServerMode says what happens to the response's server header.
type ServerMode uint8

// Envoy's server_header_transformation.
const (
	ServerOverwrite ServerMode = iota
	ServerAppendIfAbsent
	ServerPassThrough
)

// XFCCMode says what happens to x-forwarded-client-cert.
type XFCCMode uint8

// Envoy's forward_client_cert_details.
const (
	XFCCSanitize XFCCMode = iota
	XFCCForwardOnly
	XFCCAppendForward
	XFCCSanitizeSet
	XFCCAlwaysForwardOnly
)

// XFCCFields are the parts that are written about the client's certificate; Hash and By always are.
type XFCCFields struct{ Subject, URI, DNS, Cert, Chain bool }

// EscapedSlashes is Envoy's path_with_escaped_slashes_action.
type EscapedSlashes uint8

// What is done with %2F and %5C in a path.
const (
	SlashesKeep EscapedSlashes = iota
	SlashesReject
	SlashesRedirect
	SlashesForward
)

// HostPort says which port is cut off the authority.
type HostPort uint8

// Envoy's strip_matching_host_port and strip_any_host_port.
const (
	HostPortKeep HostPort = iota
	HostPortStripMatching
	HostPortStripAny
)

// Underscores is Envoy's headers_with_underscores_action.
type Underscores uint8

// What is done with header names that hold an underscore.
const (
	UnderscoreAllow Underscores = iota
	UnderscoreReject
	UnderscoreDrop
)

// AccessLog is one access-log sink: a line of text, or a JSON object a line when JSON is set.
type AccessLog struct {
	Path   string // "/dev/stdout", "/dev/stderr" or a file
	Format *Format
	JSON   []JSONField
}

// JSONField is one field of a JSON access log.
type JSONField struct {
	Key    string
	Format *Format
}

// SortJSON puts fields in the order of their keys, as Envoy writes them.
func SortJSON(f []JSONField) {
	slices.SortFunc(f, func(a, b JSONField) int { return strings.Compare(a.Key, b.Key) })
}

// StringMatch is Envoy's StringMatcher.
type StringMatch struct {
	Kind       StringKind
	Value      string
	Regex      *regexp.Regexp // anchored at both ends
	IgnoreCase bool
}

// StringKind is how a string is compared.
type StringKind uint8

// The comparisons of Envoy's StringMatcher.
const (
	Exact StringKind = iota
	Prefix
	Suffix
	Contains
	Regex
)
