package decode

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func hashPolicies(list []*routev3.RouteAction_HashPolicy) ([]conf.HashPolicy, error) {
	var out []conf.HashPolicy
	for i, p := range list {
		h := conf.HashPolicy{Terminal: p.GetTerminal()}
		var err error
		switch s := p.GetPolicySpecifier().(type) {
		case *routev3.RouteAction_HashPolicy_Header_:
			h.Source, h.Name = conf.HashHeader, lower(s.Header.GetHeaderName())
			if h.Rewrite, err = regexRewrite(s.Header.GetRegexRewrite()); err != nil {
				return nil, fmt.Errorf("%d: header.regex_rewrite: %w", i, err)
			}
			if len(h.Name) > 0 && h.Name[0] == ':' {
				return nil, fmt.Errorf("%d: header %q is not supported: pseudo headers are not hashed", i, h.Name)
			}
		case *routev3.RouteAction_HashPolicy_Cookie_:
			h.Source, h.Name = conf.HashCookie, []byte(s.Cookie.GetName())
			if err := cookie(s.Cookie, &h); err != nil {
				return nil, fmt.Errorf("%d: cookie %q: %w", i, h.Name, err)
			}
		case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
			if !s.ConnectionProperties.GetSourceIp() {
				continue // as in Envoy: nothing to hash
			}
			h.Source = conf.HashSourceIP
		case *routev3.RouteAction_HashPolicy_QueryParameter_:
			h.Source, h.Name = conf.HashQuery, []byte(s.QueryParameter.GetName())
		default:
			return nil, fmt.Errorf("%d: only header, cookie, connection_properties and query_parameter are supported", i)
		}
		if h.Source != conf.HashSourceIP && len(h.Name) == 0 {
			return nil, fmt.Errorf("%d: name is empty", i)
		}
		out = append(out, h)
	}
	return out, nil
}

func cookie(c *routev3.RouteAction_HashPolicy_Cookie, h *conf.HashPolicy) error {
	if !cookieText(c.GetName(), "=; \t\"") || !cookieText(c.GetPath(), ";") {
		return errors.New("name or path holds a character that a cookie cannot hold")
	}
	if h.Make = c.Ttl != nil; !h.Make {
		return nil
	}
	ttl, err := duration(c.Ttl, 0)
	if err != nil {
		return fmt.Errorf("ttl: %w", err)
	}
	// Envoy takes the whole seconds.
	h.TTL = ttl.Truncate(time.Second)
	var b strings.Builder
	if h.TTL > 0 {
		b.WriteString("; Max-Age=" + strconv.FormatInt(int64(h.TTL/time.Second), 10))
	}
	if c.Path != "" {
		b.WriteString("; Path=" + c.Path)
	}
	for _, a := range c.GetAttributes() {
		if !cookieText(a.GetName(), "=;") || a.GetName() == "" || !cookieText(a.GetValue(), ";") {
			return fmt.Errorf("attribute %q holds a character that a cookie cannot hold", a.GetName())
		}
		b.WriteString("; " + a.GetName())
		if a.GetValue() != "" {
			b.WriteString("=" + a.GetValue())
		}
	}
	h.Attributes = b.String()
	return nil
}

func cookieText(s, bad string) bool { return headerText(s, false) && !strings.ContainsAny(s, bad) }

// hashTable reads the sizes of the tables that consistent hashing builds.
func hashTable(c *clusterv3.Cluster, out *conf.HashTable) error {
	*out = conf.HashTable{MinRing: conf.DefaultMinRing, MaxRing: conf.MaxRing, MaglevSize: conf.DefaultMaglevSize}
	if r := c.GetRingHashLbConfig(); r != nil {
		if err := only(r, "minimum_ring_size", "maximum_ring_size", "hash_function"); err != nil {
			return fmt.Errorf("ring_hash_lb_config: %w", err)
		}
		if r.HashFunction != clusterv3.Cluster_RingHashLbConfig_XX_HASH {
			return fmt.Errorf("ring_hash_lb_config: hash_function %s is not supported; use XX_HASH", r.HashFunction)
		}
		if v := r.MinimumRingSize; v != nil {
			out.MinRing = v.Value
		}
		if v := r.MaximumRingSize; v != nil {
			out.MaxRing = v.Value
		}
		if out.MinRing == 0 || out.MinRing > out.MaxRing || out.MaxRing > conf.MaxRing {
			return fmt.Errorf("ring_hash_lb_config: want 1 <= minimum_ring_size (%d) <= maximum_ring_size (%d) <= %d", out.MinRing, out.MaxRing, conf.MaxRing)
		}
	}
	if m := c.GetMaglevLbConfig(); m != nil {
		if err := only(m, "table_size"); err != nil {
			return fmt.Errorf("maglev_lb_config: %w", err)
		}
		if v := m.TableSize; v != nil {
			out.MaglevSize = v.Value
		}
		if n := out.MaglevSize; n < 2 || n > conf.MaxMaglevSize || !new(big.Int).SetUint64(n).ProbablyPrime(0) {
			return fmt.Errorf("maglev_lb_config: table_size %d must be a prime of at most %d", n, conf.MaxMaglevSize)
		}
	}
	if h := c.GetCommonLbConfig().GetConsistentHashingLbConfig(); h != nil {
		if err := only(h, "use_hostname_for_hashing"); err != nil {
			return fmt.Errorf("common_lb_config.consistent_hashing_lb_config: %w", err)
		}
		out.UseHostname = h.UseHostnameForHashing
	}
	return nil
}
