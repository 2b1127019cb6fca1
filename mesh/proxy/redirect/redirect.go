// Package redirect makes a pod's traffic pass its proxy: the rules that Istio's init container sets, as an nftables table of
// our own in the pod's network namespace.
//
// Source of rules and their order: istio tools/istio-iptables/pkg/capture/run.go and its golden files.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Config is what the flags of `meshproxy init` say.
type Config struct {
	OutboundPort uint16 // -p: the proxy's outbound listener
	InboundPort  uint16 // -z: its inbound listener
	UID          uint32 // -u: the proxy's user; its group is the same number
	// Each list is "*" for all, empty for none, or a comma-separated list.
	IncludeOutbound      string // -i: destination CIDRs that are captured
	ExcludeOutbound      string // -x: destination CIDRs that are not
	IncludeInboundPorts  string // -b: local ports that are captured
	ExcludeInboundPorts  string // -d: local ports that are not; counts where -b is *
	ExcludeOutboundPorts string // -o: destination ports that are never captured
	IncludeOutboundPorts string // -q: destination ports that are captured whatever their address
}

// The port of HBONE tunnels, which end at the proxy already.
const hbonePort = 15008

// The proxy's own calls to its app come from here, so that they are told from calls to itself. Source: Istio's
// InboundPassthroughBindIpv4 and -Ipv6.
var (
	passthrough4 = netip.MustParsePrefix("127.0.0.6/32")
	passthrough6 = netip.MustParsePrefix("::6/128")
	loopback4    = netip.MustParsePrefix("127.0.0.1/32")
	loopback6    = netip.MustParsePrefix("::1/128")
)

// The table and the chains in it; chains are named as Istio names them.
const (
	tableName       = "istio-redirect"
	chainPrerouting = "PREROUTING"
	chainOutputHook = "OUTPUT"
	chainInbound    = "ISTIO_INBOUND"
	chainOutput     = "ISTIO_OUTPUT"
	chainRedirect   = "ISTIO_REDIRECT"
	chainInRedirect = "ISTIO_IN_REDIRECT"
)

// chain is an ordered list of rules; hook is empty for a chain that is only jumped to.
type chain struct {
	name  string
	hook  string // prerouting | output
	rules []rule
}

// rule is a list of matches, all of which must hold, and one action. The zero value of a match does not restrict.
type rule struct {
	loopback bool         // leaves by lo
	source   netip.Prefix // is from
	dest     netip.Prefix // is to
	notDest  bool         // dest is inverted
	port     uint16       // TCP destination port
	notPort  bool         // port is inverted
	owner    owner

	jump       string // to a chain
	redirectTo uint16 // to a local port; with neither: return
}

type owner struct {
	kind string // uid | gid | "" for no match
	id   uint32
	not  bool
}

// plan lists the chains for c, those that are jumped to first.
func plan(c Config) ([]chain, error) {
	if c.OutboundPort == 0 || c.InboundPort == 0 {
		return nil, errors.New("redirect: both the outbound port (-p) and the inbound port (-z) are needed")
	}
	var errs []error
	ports := func(flag, list string) []uint16 {
		p, err := parsePorts(list)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
		return p
	}
	cidrs := func(flag, list string) []netip.Prefix {
		p, err := parseCIDRs(list)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
		return p
	}

	in := chain{name: chainInbound}
	if c.IncludeInboundPorts != "" {
		in.rules = append(in.rules, rule{port: hbonePort})
		if c.IncludeInboundPorts == "*" {
			for _, p := range ports("-d", c.ExcludeInboundPorts) {
				in.rules = append(in.rules, rule{port: p})
			}
			in.rules = append(in.rules, rule{jump: chainInRedirect})
		} else {
			for _, p := range ports("-b", c.IncludeInboundPorts) {
				in.rules = append(in.rules, rule{port: p, jump: chainInRedirect})
			}
		}
	}

	out := chain{name: chainOutput}
	// Before calls to oneself are looked at, or an excluded port would be captured on the way back in.
	for _, p := range ports("-o", c.ExcludeOutboundPorts) {
		out.rules = append(out.rules, rule{port: p})
	}
	out.rules = append(out.rules,
		rule{loopback: true, source: passthrough4},
		rule{loopback: true, source: passthrough6})
	for _, kind := range []string{"uid", "gid"} {
		is, isNot := owner{kind: kind, id: c.UID}, owner{kind: kind, id: c.UID, not: true}
		out.rules = append(out.rules,
			// The proxy calls its own Service: back in through the inbound listener, as from anybody.
			rule{loopback: true, dest: loopback4, notDest: true, port: hbonePort, notPort: true, owner: is, jump: chainInRedirect},
			rule{loopback: true, dest: loopback6, notDest: true, port: hbonePort, notPort: true, owner: is, jump: chainInRedirect},
			// The app calls itself: not the mesh's business.
			rule{loopback: true, owner: isNot},
			rule{owner: is})
	}
	out.rules = append(out.rules, rule{dest: loopback4}, rule{dest: loopback6})
	for _, p := range cidrs("-x", c.ExcludeOutbound) {
		out.rules = append(out.rules, rule{dest: p})
	}
	for _, p := range ports("-q", c.IncludeOutboundPorts) {
		out.rules = append(out.rules, rule{port: p, jump: chainRedirect})
	}
	if c.IncludeOutbound == "*" {
		out.rules = append(out.rules, rule{jump: chainRedirect})
	} else {
		for _, p := range cidrs("-i", c.IncludeOutbound) {
			out.rules = append(out.rules, rule{dest: p, jump: chainRedirect})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	return []chain{
		{name: chainRedirect, rules: []rule{{redirectTo: c.OutboundPort}}},
		{name: chainInRedirect, rules: []rule{{redirectTo: c.InboundPort}}},
		in, out,
		{name: chainPrerouting, hook: "prerouting", rules: []rule{{jump: chainInbound}}},
		{name: chainOutputHook, hook: "output", rules: []rule{{jump: chainOutput}}},
	}, nil
}

// Text renders the rules for c as nft prints them; it changes nothing.
func Text(c Config) (string, error) {
	chains, err := plan(c)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName)
	for _, ch := range chains {
		fmt.Fprintf(&b, "\tchain %s {\n", ch.name)
		if ch.hook != "" {
			priority := "dstnat"
			if ch.hook == "output" {
				priority = "-100" // the same; nft has the name for prerouting only
			}
			fmt.Fprintf(&b, "\t\ttype nat hook %s priority %s; policy accept;\n", ch.hook, priority)
		}
		for _, r := range ch.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String(), nil
}

func (r rule) String() string {
	var m []string
	if r.loopback {
		m = append(m, `oifname "lo"`)
	}
	for _, a := range []struct {
		word string
		p    netip.Prefix
		not  bool
	}{{"saddr", r.source, false}, {"daddr", r.dest, r.notDest}} {
		if a.p.IsValid() {
			family := "ip"
			if a.p.Addr().Is6() {
				family = "ip6"
			}
			m = append(m, family+" "+a.word+" "+negate(a.not)+a.p.String())
		}
	}
	m = append(m, "meta l4proto tcp")
	if r.port != 0 {
		m = append(m, "tcp dport "+negate(r.notPort)+strconv.Itoa(int(r.port)))
	}
	if r.owner.kind != "" {
		m = append(m, "meta sk"+r.owner.kind+" "+negate(r.owner.not)+strconv.FormatUint(uint64(r.owner.id), 10))
	}
	switch {
	case r.jump != "":
		m = append(m, "jump "+r.jump)
	case r.redirectTo != 0:
		m = append(m, "redirect to :"+strconv.Itoa(int(r.redirectTo)))
	default:
		m = append(m, "return")
	}
	return strings.Join(m, " ")
}

func negate(not bool) string {
	if not {
		return "!= "
	}
	return ""
}

func parsePorts(list string) ([]uint16, error) {
	var out []uint16
	for _, s := range split(list) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a port: give numbers from 1 to 65535 with commas between", s)
		}
		if !slices.Contains(out, uint16(n)) {
			out = append(out, uint16(n))
		}
	}
	return out, nil
}

func parseCIDRs(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range split(list) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not a CIDR: give addresses like 10.0.0.0/8 with commas between", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func split(list string) []string {
	var out []string
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}
