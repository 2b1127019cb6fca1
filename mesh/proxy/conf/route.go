package conf

import (
	"bytes"
	"regexp"
	"strings"
	"time"
)

// RouteTable is one RouteConfiguration, indexed by domain.
type RouteTable struct {
	Name       string
	Exact      map[string]*VirtualHost
	Suffix     []Wildcard // "*.example.com": longest first
	PrefixWild []Wildcard // "example.*": longest first
	Any        *VirtualHost
	Hosts      []*VirtualHost // in order of the control plane
	IgnorePort bool
	Headers    HeaderOps
	// SpecificWins turns the order of header changes round: route last.
	SpecificWins bool
	// Clusters are the names of every cluster that a route may pick.
	Clusters []string
}

// Wildcard is a domain with one "*"; Text is the fixed part, lower case.
type Wildcard struct {
	Text string
	Host *VirtualHost
}

// VirtualHost is a set of routes for some domains.
type VirtualHost struct {
	Name     string
	Domains  []string
	Routes   []*Route
	Headers  HeaderOps
	Attempts bool // x-envoy-attempt-count to the upstream
	// AttemptsInResponse puts the same header in responses.
	AttemptsInResponse bool
	RequireTLS         TLSRequirement
}

// TLSRequirement is Envoy's require_tls.
type TLSRequirement uint8

// When a plaintext request is redirected to https.
const (
	TLSNone TLSRequirement = iota
	TLSExternal
	TLSAll
)

// Route is a match and what to do. Exactly one of Forward, Redirect and Direct is set.
type Route struct {
	Name     string
	Match    RouteMatch
	Headers  HeaderOps
	Fault    *Fault // for connection managers with the filter; nil for none
	Forward  *Forward
	Redirect *Redirect
	Direct   *Direct
}

// PathKind is how the path is compared.
type PathKind uint8

// The path matches of Envoy's RouteMatch.
const (
	PathAny PathKind = iota
	PathExact
	PathPrefix
	PathRegex
	PathSeparatedPrefix
)

// RouteMatch must hold in full.
type RouteMatch struct {
	Path       PathKind
	Value      []byte
	Regex      *regexp.Regexp // anchored at both ends
	IgnoreCase bool
	Headers    []HeaderMatch
	Query      []QueryMatch
	// Fraction of requests out of a million; Always is all of them.
	Fraction uint32
	GRPC     bool
}

// Always is the Fraction that lets every request through.
const Always uint32 = 1_000_000

// HeaderMatch tests one header. With several values they are joined by a comma.
type HeaderMatch struct {
	Name           []byte // lower case; ":method", ":path", ":authority", ":scheme" are pseudo headers
	Kind           HeaderKind
	Match          StringMatch
	Present        bool
	From, To       int64
	Invert         bool
	MissingIsEmpty bool
}

// HeaderKind is how a header is tested.
type HeaderKind uint8

// The tests of Envoy's HeaderMatcher.
const (
	HeaderString HeaderKind = iota
	HeaderPresent
	HeaderRange
)

// QueryMatch tests one query parameter, raw as it stands in the path.
type QueryMatch struct {
	Name    string
	Present bool
	Match   StringMatch
}

// Forward sends a request to a cluster.
type Forward struct {
	Clusters      []WeightedCluster
	TotalWeight   uint32
	ClusterHeader []byte // instead of Clusters
	NotFoundCode  int    // when the cluster is missing; 503 by default
	PrefixRewrite []byte
	RegexRewrite  *RegexRewrite
	HostRewrite   []byte
	HostHeader    []byte
	HostPathRegex *RegexRewrite
	AutoHost      bool
	AppendXFHost  bool
	Timeout       time.Duration // 0 is none
	IdleTimeout   time.Duration
	MaxDuration   time.Duration // of a stream; 0 is none
	GRPCTimeout   bool          // for gRPC the client's grpc-timeout counts instead of MaxDuration
	GRPCMax       time.Duration // at most so long; 0 is as the client says
	Retry         *Retry
	Hash          []HashPolicy
	// HashSplit says that the hash also picks one of Clusters, so that a session stays on its version.
	HashSplit bool
	Upgrades  map[string]bool // overrides the connection manager's
}

// RegexRewrite replaces every match.
type RegexRewrite struct {
	Regex *regexp.Regexp
	Subst []byte // Go's ${1} syntax
}

// WeightedCluster is one share of a split.
type WeightedCluster struct {
	Name        string
	Weight      uint32
	Headers     HeaderOps
	HostRewrite []byte
}

// Redirect answers with a location.
type Redirect struct {
	Scheme      string
	HTTPS       bool
	Host        []byte
	Port        uint32
	Path        []byte
	Prefix      []byte
	Regex       *RegexRewrite
	Code        int
	StripQuery  bool
	SchemeIsSet bool
}

// Direct answers by itself.
type Direct struct {
	Code int
	Body []byte
}

// RetryOn is the set of conditions under which a request is tried again.
type RetryOn uint32

// The conditions of x-envoy-retry-on and x-envoy-retry-grpc-on.
const (
	Retry5xx RetryOn = 1 << iota
	RetryGatewayError
	RetryReset
	RetryResetBeforeRequest
	RetryConnectFailure
	RetryEnvoyRatelimited
	RetryRetriable4xx
	RetryRefusedStream
	RetryStatusCodes
	RetryHeaders
	RetryGRPCCancelled
	RetryGRPCDeadline
	RetryGRPCInternal
	RetryGRPCExhausted
	RetryGRPCUnavailable
)

var retryNames = map[string]RetryOn{
	"5xx": Retry5xx, "gateway-error": RetryGatewayError, "reset": RetryReset, "reset-before-request": RetryResetBeforeRequest,
	"connect-failure": RetryConnectFailure, "envoy-ratelimited": RetryEnvoyRatelimited, "retriable-4xx": RetryRetriable4xx,
	"refused-stream": RetryRefusedStream, "retriable-status-codes": RetryStatusCodes, "retriable-headers": RetryHeaders,
	"cancelled": RetryGRPCCancelled, "deadline-exceeded": RetryGRPCDeadline, "internal": RetryGRPCInternal,
	"resource-exhausted": RetryGRPCExhausted, "unavailable": RetryGRPCUnavailable, "http3-post-connect-failure": 0,
}

// ParseRetryOn reads a comma separated list; names it does not know are returned and otherwise ignored, as Envoy does.
func ParseRetryOn(s string) (on RetryOn, unknown []string) {
	for f := range strings.SplitSeq(s, ",") {
		f = strings.TrimSpace(f)
		if f == "" {
			continue
		}
		bit, ok := retryNames[f]
		if !ok {
			unknown = append(unknown, f)
		}
		on |= bit
	}
	return on, unknown
}

// Retry is a retry policy.
type Retry struct {
	On            RetryOn
	Num           int
	PerTry        time.Duration
	PerTryIdle    time.Duration
	Codes         []int
	BackoffBase   time.Duration
	BackoffMax    time.Duration
	PreviousHosts bool // avoid hosts that were tried
	HostAttempts  int  // picks before a tried host is taken all the same
}

// AppendMode is what a header addition does with a value that is there.
type AppendMode uint8

// Envoy's HeaderAppendAction.
const (
	Append AppendMode = iota
	AddIfAbsent
	Overwrite
	OverwriteIfExists
)

// HeaderOp adds or sets one header. Value is a literal when Format is nil.
type HeaderOp struct {
	Name      []byte
	Value     []byte
	Format    *Format
	Mode      AppendMode
	KeepEmpty bool
}

// HeaderOps are the changes at one level, to requests and to responses. Removals come after additions.
type HeaderOps struct {
	Add, RespAdd       []HeaderOp
	Remove, RespRemove [][]byte
}

// Empty reports whether there is nothing to do.
func (h *HeaderOps) Empty() bool {
	return len(h.Add)+len(h.RespAdd)+len(h.Remove)+len(h.RespRemove) == 0
}

// Format is a parsed format string (%NAME(ARG:ALT):MAX%).
type Format struct {
	Text  string
	Parts []FormatPart
}

// FormatPart is a literal or a command.
type FormatPart struct {
	Literal []byte
	Command string // without the percent signs and arguments
	Arg     string
	Alt     string
	Max     int // 0 is no limit
}

// HostIndex finds the virtual host for an authority (lower case), or nil. It does not allocate.
func (t *RouteTable) HostIndex(authority []byte) *VirtualHost {
	if t.IgnorePort {
		authority = cutPort(authority)
	}
	if v := t.Exact[string(authority)]; v != nil {
		return v
	}
	for i := range t.Suffix {
		w := &t.Suffix[i]
		if len(authority) > len(w.Text) && string(authority[len(authority)-len(w.Text):]) == w.Text {
			return w.Host
		}
	}
	for i := range t.PrefixWild {
		w := &t.PrefixWild[i]
		if len(authority) > len(w.Text) && string(authority[:len(w.Text)]) == w.Text {
			return w.Host
		}
	}
	return t.Any
}

func cutPort(a []byte) []byte {
	i := bytes.LastIndexByte(a, ':')
	if i < 0 || bytes.IndexByte(a[i:], ']') >= 0 {
		return a
	}
	if i > 0 && a[i-1] != ']' && bytes.IndexByte(a[:i], ':') >= 0 {
		return a // a bare IPv6 address
	}
	for _, c := range a[i+1:] {
		if c < '0' || c > '9' {
			return a
		}
	}
	return a[:i]
}
