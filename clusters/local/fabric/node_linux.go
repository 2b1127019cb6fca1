package fabric

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Join connects a node's network namespace to its site's switch; there the device is eth0.
func (f *Fabric) Join(site, node int, ns *os.File) error {
	r := f.routers[site]
	bridge, err := r.nl.LinkByName(switchDevice)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("n%d", node)
	attrs.MasterIndex = bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := r.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	return up(r.nl, attrs.Name)
}

// ConfigureNode sets up the network of a node that has joined, in the namespace of the calling thread.
func ConfigureNode(s Site, node int) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	self := s.Nodes[node]
	if err := up(nl, "lo"); err != nil {
		return err
	}
	if err := addAddr(nl, "eth0", netip.PrefixFrom(self.IP, NodeBits)); err != nil {
		return err
	}
	if err := up(nl, "eth0"); err != nil {
		return err
	}
	if err := addRoute(nl, "eth0", netip.PrefixFrom(netip.IPv4Unspecified(), 0), RouterIP(s.Index)); err != nil {
		return err
	}
	for i, n := range s.Nodes {
		if i == node {
			continue
		}
		if err := addRoute(nl, "eth0", n.PodCIDR, n.IP); err != nil {
			return err
		}
	}
	// A pod address that nobody has must not wander to the router and back.
	if err := addUnreachable(nl, self.PodCIDR); err != nil {
		return err
	}
	return nodeSysctls()
}
