package listener

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Properties of a connection that filter chains are matched by.
type Properties struct {
	Local, Remote netip.AddrPort
	ServerName    string   // of the ClientHello, lower case
	Transport     string   // "tls" or "raw_buffer"
	ALPN          []string // of the ClientHello, or what the HTTP inspector found
}

// Match returns the filter chain for a connection: Envoy's order of criteria, the most specific value at each, and no
// way back from one that was taken. Nil closes the connection.
// Source: listener_components.proto, FilterChainMatch; source/common/listener_manager/filter_chain_manager_impl.cc.
func Match(l *conf.Listener, p *Properties) *conf.FilterChain {
	left := l.Chains
	local, remote := p.Local.Addr().Unmap(), p.Remote.Addr().Unmap()
	left = narrow(left, func(m *conf.ChainMatch) int {
		return specific(m.DestPort == 0, m.DestPort == p.Local.Port(), 1)
	})
	left = narrow(left, func(m *conf.ChainMatch) int { return prefixes(m.DestPrefixes, local) })
	left = narrow(left, func(m *conf.ChainMatch) int { return serverNames(m.ServerNames, p.ServerName) })
	left = narrow(left, func(m *conf.ChainMatch) int {
		return specific(m.Transport == "", m.Transport == p.Transport, 1)
	})
	left = narrow(left, func(m *conf.ChainMatch) int { return protocols(m.ALPN, p.ALPN) })
	left = narrow(left, func(m *conf.ChainMatch) int { return prefixes(m.DirectSources, remote) })
	left = narrow(left, func(m *conf.ChainMatch) int {
		isLocal := remote.IsLoopback() || remote == local
		return specific(m.SourceType == conf.SourceAny, isLocal == (m.SourceType == conf.SourceLocal), 1)
	})
	left = narrow(left, func(m *conf.ChainMatch) int { return prefixes(m.Sources, remote) })
	left = narrow(left, func(m *conf.ChainMatch) int {
		return specific(len(m.SourcePorts) == 0, slices.Contains(m.SourcePorts, p.Remote.Port()), 1)
	})
	if len(left) == 0 {
		return l.Default
	}
	return left[0]
}

// narrow keeps the chains with the highest score; below 0 a chain does not match.
func narrow(chains []*conf.FilterChain, score func(*conf.ChainMatch) int) []*conf.FilterChain {
	if len(chains) == 0 {
		return nil
	}
	best, same := -1, true
	first := score(&chains[0].Match)
	for _, c := range chains {
		s := score(&c.Match)
		best = max(best, s)
		same = same && s == first
	}
	if best < 0 {
		return nil
	}
	if same {
		return chains
	}
	var out []*conf.FilterChain
	for _, c := range chains {
		if score(&c.Match) == best {
			out = append(out, c)
		}
	}
	return out
}

func specific(any, match bool, value int) int {
	switch {
	case any:
		return 0
	case match:
		return value
	}
	return -1
}

func prefixes(list []netip.Prefix, a netip.Addr) int {
	if len(list) == 0 {
		return 0
	}
	best := -1
	for _, p := range list {
		if p.Contains(a) {
			best = max(best, p.Bits()+1)
		}
	}
	return best
}

func serverNames(list []string, name string) int {
	if len(list) == 0 {
		return 0
	}
	best := -1
	for _, n := range list {
		if suffix, ok := strings.CutPrefix(n, "*"); ok {
			if name != "" && len(name) > len(suffix) && strings.HasSuffix(name, suffix) {
				best = max(best, 1+len(suffix))
			}
		} else if n == name && name != "" {
			best = max(best, 1<<20)
		}
	}
	return best
}

// protocols prefers what comes first in the client's list.
func protocols(list, offered []string) int {
	if len(list) == 0 {
		return 0
	}
	for i, o := range offered {
		if slices.Contains(list, o) {
			return 1 + len(offered) - i
		}
	}
	return -1
}
