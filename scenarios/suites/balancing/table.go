package balancing

import (
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/mesh/proxy/balance"
	"github.com/meshproof/meshproof/reports/evidence"
)

// The sizes of tables that nobody set: Envoy's defaults.
const (
	ringLeast  = 1024
	ringMost   = 8 << 20
	maglevSize = 65537
)

// table says which host each hash belongs to. It is the proxy's own table, built again from the hosts that the proxy tells; the
// published vectors of Envoy hold it to Envoy's.
type table struct {
	hosts []string // addresses
	pick  balance.Picker
}

// newTable is the table of a Service over hosts, nil for none.
func newTable(s stickyService, hosts []string) *table {
	if len(hosts) == 0 {
		return nil
	}
	build := balance.Ring(s.leastRing(), ringMost)
	if s.table == maglev {
		build = balance.Maglev(maglevSize)
	}
	weights, index := make([]float64, len(hosts)), make([]int, len(hosts))
	for i := range hosts {
		weights[i], index[i] = 1/float64(len(hosts)), i
	}
	return &table{hosts: hosts, pick: build(hosts, weights, index)}
}

// leastRing is the minimumRingSize of a Service.
func (s stickyService) leastRing() uint64 {
	if s.ring == 0 {
		return ringLeast
	}
	return s.ring
}

// points is how many points of each of so many hosts a Service's ring has. Source: ring_hash_lb.cc.
func (s stickyService) points(hosts int) int { return (int(s.leastRing()) + hosts - 1) / hosts }

// promised is the share of hashes that changes owner at most when a fifth host joins four, or leaves five: the host's own share, and
// the error of the table. Zero is no bound.
//
// Maglev moves 0.1 % beside, and at most 1 % in 60 sets of addresses; a ring that is made anew with other numbers of points moves 30 %
// in all, with a standard deviation of 1.9, five of which are allowed. On the exact ring a host may own nearly anything.
func (s stickyService) promised() float64 {
	switch {
	case s.table == maglev:
		return 1.0/podsAfter + maglevError
	case s.ring == 0:
		return 0.40
	}
	return 0
}

// maglevError is the share of hashes that move although their host stays. Source of its size: Eisenbud et al., Maglev, figure 12.
const maglevError = 0.02

func (t *table) owner(hash uint64) string {
	return t.hosts[t.pick.Pick(balance.Query{Hash: hash, HasHash: true})]
}

// grid is how many hashes, evenly apart, stand for all of them: dozens for each point of a ring.
const grid = 1 << 16

// shares is the part of all hashes that each host owns.
func (t *table) shares() map[string]float64 {
	out := map[string]float64{}
	for i := range uint64(grid) {
		out[t.owner(i<<48|1<<47)] += 1.0 / grid
	}
	return out
}

// moved is the part of all hashes that have another owner in the table b.
func (t *table) moved(b *table) float64 {
	n := 0
	for i := range uint64(grid) {
		if h := i<<48 | 1<<47; t.owner(h) != b.owner(h) {
			n++
		}
	}
	return float64(n) / grid
}

// hashOf is what a request of a Service is hashed by, and the session that it belongs to. A request that was given its cookie by
// the answer was hashed by that one. It is false when the request has nothing to hash.
func (s stickyService) hashOf(r evidence.Request, clientIP string) (session string, hash uint64, ok bool) {
	switch s.by {
	case byCookie:
		v := cookieOf(r.Cookie, s.cookie)
		if v == "" {
			set, _, _ := strings.Cut(r.SetCookie, "\n")
			v = cookieOf(set, s.cookie)
		}
		return loadgen.SessionName(r.Session) + " " + v, xxhash.Sum64String(v), v != ""
	case byHeader, byQuery:
		name := loadgen.SessionName(r.Session)
		return name, xxhash.Sum64String(name), true
	}
	return clientIP, xxhash.Sum64String(clientIP), clientIP != ""
}
