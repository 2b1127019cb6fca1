// Package router ends the HTTP filter chain: it finds the route of a request, changes its head as the route says, sends
// it to an endpoint of the route's cluster, tries again where the policy allows it, and streams the answer back.
package router

import (
	"bytes"
	"math/rand/v2"
	"net/url"
	"strconv"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// Find returns the virtual host and the first route that matches, or nil. random decides runtime fractions.
// It does not allocate unless a regular expression or case folding is asked for.
func Find(t *conf.RouteTable, q *http1.Request, scheme []byte, random uint64) (*conf.VirtualHost, *conf.Route) {
	var lower [256]byte
	host := q.Host
	for i, c := range host {
		if 'A' <= c && c <= 'Z' {
			host = append(lower[:0], host...)
			for ; i < len(host); i++ {
				if c := host[i]; 'A' <= c && c <= 'Z' {
					host[i] = c + 32
				}
			}
			break
		}
	}
	vh := t.HostIndex(host)
	if vh == nil {
		return nil, nil
	}
	path, query := q.Target, []byte(nil)
	if i := bytes.IndexByte(path, '?'); i >= 0 {
		path, query = path[:i], path[i+1:]
	}
	if i := bytes.IndexByte(path, '#'); i >= 0 {
		path = path[:i]
	}
	for _, r := range vh.Routes {
		if matches(&r.Match, q, path, query, scheme, random) {
			return vh, r
		}
	}
	return vh, nil
}

func matches(m *conf.RouteMatch, q *http1.Request, path, query, scheme []byte, random uint64) bool {
	switch m.Path {
	case conf.PathExact:
		if len(path) != len(m.Value) || !equal(path, m.Value, m.IgnoreCase) {
			return false
		}
	case conf.PathPrefix:
		// Envoy matches prefixes against path and query together.
		full := q.Target
		if len(full) < len(m.Value) || !equal(full[:len(m.Value)], m.Value, m.IgnoreCase) {
			return false
		}
	case conf.PathSeparatedPrefix:
		n := len(m.Value)
		if len(path) < n || !equal(path[:n], m.Value, m.IgnoreCase) || len(path) > n && path[n] != '/' {
			return false
		}
	case conf.PathRegex:
		if !m.Regex.Match(path) {
			return false
		}
	}
	if m.Fraction != conf.Always && uint32(random%uint64(conf.Always)) >= m.Fraction {
		return false
	}
	if m.GRPC && !filter.GRPC(q) {
		return false
	}
	for i := range m.Headers {
		if !matchHeader(&m.Headers[i], q, scheme) {
			return false
		}
	}
	for i := range m.Query {
		if !matchQuery(&m.Query[i], query) {
			return false
		}
	}
	return true
}

func equal(a, b []byte, fold bool) bool {
	if fold {
		return bytes.EqualFold(a, b)
	}
	return bytes.Equal(a, b)
}

func matchHeader(h *conf.HeaderMatch, q *http1.Request, scheme []byte) bool {
	var v []byte
	ok := true
	switch string(h.Name) {
	case ":method":
		v = q.Method
	case ":path":
		v = q.Target
	case ":authority", "host":
		v = q.Host
	case ":scheme":
		v = scheme
	default:
		v, ok = q.Joined(h.Name)
	}
	if h.Kind == conf.HeaderPresent {
		return (ok == h.Present) != h.Invert
	}
	if !ok && !h.MissingIsEmpty {
		return false // also when inverted: Envoy never matches a header that is not there
	}
	var match bool
	switch h.Kind {
	case conf.HeaderRange:
		n, err := strconv.ParseInt(string(v), 10, 64)
		match = err == nil && n >= h.From && n < h.To
	default:
		match = h.Match.Match(v)
	}
	return match != h.Invert
}

func matchQuery(m *conf.QueryMatch, query []byte) bool {
	for len(query) > 0 {
		pair := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		name, value, _ := bytes.Cut(pair, []byte("="))
		if string(name) != m.Name {
			if bytes.IndexByte(name, '%') < 0 {
				continue
			}
			if n, err := url.QueryUnescape(string(name)); err != nil || n != m.Name {
				continue
			}
		}
		if m.Present {
			return true
		}
		return m.Match.Match(value)
	}
	// Envoy: present_match false is not offered for query parameters; what is missing never matches.
	return false
}

// split picks one weighted cluster with one random value.
func split(cs []conf.WeightedCluster, total uint32, random uint64) *conf.WeightedCluster {
	if len(cs) == 1 {
		return &cs[0]
	}
	r := uint32(random % uint64(total))
	for i := range cs {
		if r < cs[i].Weight {
			return &cs[i]
		}
		r -= cs[i].Weight
	}
	return &cs[len(cs)-1]
}

// Split picks one of the clusters of a TCP route.
func Split(cs []conf.WeightedCluster, total uint32) *conf.WeightedCluster {
	return split(cs, total, rand.Uint64())
}
