package conf

import "time"

// HashTable is the table behind RingHash and Maglev. Source: Envoy's RingHashLbConfig, MaglevLbConfig and
// ConsistentHashingLbConfig.
type HashTable struct {
	MinRing, MaxRing uint64 // entries of the ring
	MaglevSize       uint64 // entries of the Maglev table, a prime
	// UseHostname names endpoints by their hostname, not by their address.
	UseHostname bool
}

// Limits and defaults of HashTable.
const (
	DefaultMinRing    = 1024
	MaxRing           = 8 << 20
	DefaultMaglevSize = 65537
	MaxMaglevSize     = 5_000_011
)

// HashSource is what of a request is hashed.
type HashSource uint8

// The sources of Envoy's RouteAction.HashPolicy.
const (
	HashHeader HashSource = iota
	HashCookie
	HashSourceIP
	HashQuery
)

// HashPolicy is one part of a request's hash.
type HashPolicy struct {
	Source HashSource
	// Name of the header (lower case), cookie or query parameter.
	Name []byte
	// Rewrite changes header values before they are hashed; nil is none.
	Rewrite *RegexRewrite
	// Terminal ends the list when there is a hash already.
	Terminal bool
	// Make says that a cookie which is missing is made, with TTL (0: until the browser ends) and Attributes, the text between
	// the value and "; HttpOnly".
	Make       bool
	TTL        time.Duration
	Attributes string
}
