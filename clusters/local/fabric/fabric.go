// Package fabric is the network of a lab of embedded clusters: what is between the nodes.
//
// Each cluster has a switch, a bridge in a network namespace of its own, which also is the cluster's router. Between two
// routers runs a cable of their own, whose middle lies in the lab's outer namespace:
//
//	router east: bridge "nodes" -- l1 === m0-1 -- bridge b0-1 -- m1-0 === l0 -- bridge "nodes" :router west
//	                   |                    (outer namespace)                         |
//	                   h0 ------------------ outer namespace ------------------------ h1
//
// The outer namespace is a host on every switch and forwards nothing. Routers know the way to all of a cluster of their own
// network, and to load balancer addresses and the API server of one of another network, with their own address as source.
package fabric

import (
	"fmt"
	"net/netip"
)

// Site is one cluster as its network sees it.
type Site struct {
	Name        string
	Network     string
	Index       int // from 0; makes addresses and names of devices
	Nodes       []Node
	PodCIDR     netip.Prefix // of all nodes
	ServiceCIDR netip.Prefix
	API         netip.AddrPort
}

// Node is one node of a site.
type Node struct {
	IP      netip.Addr
	PodCIDR netip.Prefix
}

// The addresses of site i. They never leave a lab, so every lab has the same ones.
const (
	NodeBits     = 24
	switchDevice = "nodes" // of a router
)

// NodeCIDR is where the nodes of a site are.
func NodeCIDR(site int) netip.Prefix { return prefix(NodeBits, 10, 30, site, 0) }

// NodeIP is the address of a site's node, from 0.
func NodeIP(site, node int) netip.Addr { return addr(10, 30, site, 11+node) }

// RouterIP is the way out of a site's nodes.
func RouterIP(site int) netip.Addr { return addr(10, 30, site, 1) }

// hostIP is the outer namespace's address among the nodes of a site.
func hostIP(site int) netip.Addr { return addr(10, 30, site, 2) }

// PodCIDR is where the pods of a site are, a /24 a node.
func PodCIDR(site int) netip.Prefix { return prefix(16, 10, 32+site, 0, 0) }

// ServiceCIDR is where the ClusterIPs of a site are.
func ServiceCIDR(site int) netip.Prefix { return prefix(16, 10, 96+site, 0, 0) }

// LoadBalancerCIDR is where a site's Services of type LoadBalancer get their addresses.
func LoadBalancerCIDR(site int) netip.Prefix { return prefix(24, 10, 64, site, 0) }

// MaxSites is how many sites the addresses are enough for.
const MaxSites = 32

// cableIPs are the addresses of the two ends of the cable between sites a < b.
func cableIPs(a, b int) (netip.Addr, netip.Addr) {
	n := 2 * (a*MaxSites + b)
	return addr(10, 28, n>>8, n&255), addr(10, 28, n>>8, n&255+1)
}

func addr(a, b, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)})
}

func prefix(bits, a, b, c, d int) netip.Prefix { return netip.PrefixFrom(addr(a, b, c, d), bits) }

// Middle returns the names of the devices in the outer namespace where the cable between two sites can be touched: the end
// towards a, and the end towards b.
func Middle(a, b int) (towardsA, towardsB string) {
	return fmt.Sprintf("m%d-%d", a, b), fmt.Sprintf("m%d-%d", b, a)
}

func cableBridge(a, b int) string { return fmt.Sprintf("b%d-%d", min(a, b), max(a, b)) }
func cableEnd(peer int) string    { return fmt.Sprintf("l%d", peer) }
func hostDevice(site int) string  { return fmt.Sprintf("h%d", site) }
