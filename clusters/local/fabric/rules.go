package fabric

import (
	"fmt"
	"strings"
)

// rules are the nftables rules of a site's router; others are all sites of the lab.
//
// What has no route is refused by a rule, since the kernel itself would answer only the first few packets.
//
// A load balancer address that kube-proxy has no rule for comes back from the node: it is refused there, or it would go round
// in circles. Where there are other networks, what comes from them may go to load balancers and to the API server alone, and
// what goes to them carries the router's address, since the way back to ours is not known there.
func rules(s Site, all []Site) string {
	var foreign, snat []string
	for _, o := range all {
		if o.Network == s.Network {
			continue
		}
		foreign = append(foreign, fmt.Sprintf("%q", cableEnd(o.Index)))
		own, _ := cableIPs(min(s.Index, o.Index), max(s.Index, o.Index))
		if s.Index > o.Index {
			own = own.Next()
		}
		snat = append(snat, fmt.Sprintf("    oifname %q snat to %s\n", cableEnd(o.Index), own))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table ip meshproof {\n  chain prerouting {\n    type filter hook prerouting priority filter; policy accept;\n")
	fmt.Fprintf(&b, "    fib daddr type != local fib daddr oif missing reject with icmp net-unreachable\n  }\n")
	fmt.Fprintf(&b, "  chain forward {\n    type filter hook forward priority filter; policy accept;\n")
	if len(foreign) > 0 {
		fmt.Fprintf(&b, "    ct state established,related accept\n")
		fmt.Fprintf(&b, "    iifname { %s } jump foreign\n", strings.Join(foreign, ", "))
	}
	fmt.Fprintf(&b, "    iifname %[1]q oifname %[1]q ip daddr %s reject with icmp host-unreachable\n  }\n", switchDevice, LoadBalancerCIDR(s.Index))
	if len(foreign) > 0 {
		fmt.Fprintf(&b, "  chain foreign {\n    ip daddr %s accept\n", LoadBalancerCIDR(s.Index))
		fmt.Fprintf(&b, "    ip daddr %s tcp dport %d accept\n", s.API.Addr(), s.API.Port())
		fmt.Fprintf(&b, "    reject with icmp admin-prohibited\n  }\n")
		fmt.Fprintf(&b, "  chain postrouting {\n    type nat hook postrouting priority srcnat;\n%s  }\n", strings.Join(snat, ""))
	}
	b.WriteString("}\n")
	return b.String()
}
