package router

import (
	"bytes"
	"encoding/hex"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// hSetCookie is never changed.
var hSetCookie = []byte("set-cookie")

// hashed computes the request's hash from the head as it came in, for clusters that pick by it. set are the Set-Cookie
// values of cookies that were made for it. It allocates only to make a cookie, to rewrite a header, or for a header that
// comes more than once. Source: Envoy's hash_policy.cc.
func hashed(s *filter.Stream, list []conf.HashPolicy) (q balance.Query, set [][]byte) {
	for i := range list {
		p := &list[i]
		var h uint64
		ok := false
		switch p.Source {
		case conf.HashHeader:
			h, ok = hashHeader(s, p)
		case conf.HashCookie:
			var v, cookie []byte
			if v, ok = cookieValue(s, p.Name); !ok && p.Make {
				v, cookie = makeCookie(s, p)
				set, ok = append(set, cookie), true
			}
			h = xxhash.Sum64(v)
		case conf.HashSourceIP:
			var buf [64]byte
			h, ok = xxhash.Sum64(source(s).AppendTo(buf[:0])), true
		case conf.HashQuery:
			var v []byte
			if v, ok = queryValue(s.Req.Target, p.Name); ok {
				h = xxhash.Sum64(v)
			}
		}
		if ok {
			// Rotated, so that two equal parts do not cancel each other out.
			q.Hash, q.HasHash = bits.RotateLeft64(q.Hash, 1)^h, true
		}
		if p.Terminal && q.HasHash {
			break
		}
	}
	return q, set
}

// hashHeader hashes every value of a header, in sorted order.
func hashHeader(s *filter.Stream, p *conf.HashPolicy) (uint64, bool) {
	var one [1][]byte
	values := one[:0]
	for i := range s.Req.Fields {
		f := &s.Req.Fields[i]
		if !bytes.Equal(f.Name, p.Name) {
			continue
		}
		v := f.Value
		if p.Rewrite != nil {
			v = p.Rewrite.Regex.ReplaceAll(v, p.Rewrite.Subst)
		}
		values = append(values, v)
	}
	if len(values) == 0 && string(p.Name) == "host" {
		values = append(values, s.Req.Host)
	}
	switch len(values) {
	case 0:
		return 0, false
	case 1:
		return xxhash.Sum64(values[0]), true
	}
	slices.SortFunc(values, bytes.Compare)
	var d xxhash.Digest
	h := uint64(0)
	for _, v := range values { // the hash of each is the seed of the next
		d.ResetWithSeed(h)
		_, _ = d.Write(v) // never fails
		h = d.Sum64()
	}
	return h, true
}

// cookieValue finds the first cookie of that name, without its quotes; an empty one is not there.
func cookieValue(s *filter.Stream, name []byte) ([]byte, bool) {
	for i := range s.Req.Fields {
		f := &s.Req.Fields[i]
		if string(f.Name) != "cookie" {
			continue
		}
		for rest := f.Value; len(rest) > 0; {
			var pair []byte
			pair, rest, _ = bytes.Cut(rest, []byte(";"))
			k, v, ok := bytes.Cut(bytes.TrimLeft(pair, " "), []byte("="))
			if !ok || !bytes.Equal(k, name) {
				continue
			}
			if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
				v = v[1 : n-1]
			}
			return v, len(v) > 0
		}
	}
	return nil, false
}

// makeCookie makes the value and the Set-Cookie line of a session's cookie. The value is the same for every request of a
// connection, so that those which race get the same endpoint.
func makeCookie(s *filter.Stream, p *conf.HashPolicy) (value, line []byte) {
	var buf [128]byte
	b := s.Conn.Local.AppendTo(s.Conn.Remote.AppendTo(buf[:0]))
	h := xxhash.Sum64(b)
	sum := [8]byte{byte(h >> 56), byte(h >> 48), byte(h >> 40), byte(h >> 32), byte(h >> 24), byte(h >> 16), byte(h >> 8), byte(h)}
	line = append(append(make([]byte, 0, len(p.Name)+len(p.Attributes)+30), p.Name...), `="`...)
	start := len(line)
	line = hex.AppendEncode(line, sum[:])
	value = line[start:]
	return value, append(append(append(line, '"'), p.Attributes...), "; HttpOnly"...)
}

var hXFF = []byte("x-forwarded-for")

// source is the address of the client: of the connection, or what x-forwarded-for says where that may be trusted.
func source(s *filter.Stream) netip.Addr {
	direct := s.Conn.Remote.Addr()
	skip := s.HTTP.TrustedHops
	if s.HTTP.UseRemote {
		if skip == 0 {
			return direct
		}
		skip--
		if !s.HTTP.SkipXFF {
			skip++ // our own addition stands last
		}
	}
	xff, _ := s.Req.Joined(hXFF)
	for ; skip > 0; skip-- {
		i := bytes.LastIndexByte(xff, ',')
		if i < 0 {
			return direct
		}
		xff = xff[:i]
	}
	if i := bytes.LastIndexByte(xff, ','); i >= 0 {
		xff = xff[i+1:]
	}
	if xff = bytes.TrimSpace(xff); len(xff) == 0 || len(xff) > 45 {
		return direct
	}
	if a, err := netip.ParseAddr(string(xff)); err == nil {
		return a
	}
	return direct
}

// queryValue is the first value of a query parameter, as it stands in the target.
func queryValue(target, name []byte) ([]byte, bool) {
	_, query, ok := bytes.Cut(target, []byte("?"))
	if !ok {
		return nil, false
	}
	query, _, _ = bytes.Cut(query, []byte("#"))
	for len(query) > 0 {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte("&"))
		k, v, _ := bytes.Cut(pair, []byte("="))
		if bytes.Equal(k, name) {
			return v, true
		}
	}
	return nil, false
}
