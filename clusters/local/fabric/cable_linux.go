package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// cable connects two routers and gives each the routes to the other's site.
func (f *Fabric) cable(a, b int) error {
	bridge := cableBridge(a, b)
	if err := addBridge(f.outer, bridge); err != nil {
		return err
	}
	ipA, ipB := cableIPs(a, b)
	ends := []struct {
		from, to   int
		own, other netip.Addr
	}{{a, b, ipA, ipB}, {b, a, ipB, ipA}}
	for _, e := range ends {
		if err := f.end(e.from, e.to, e.own, e.other); err != nil {
			return err
		}
	}
	return f.Connect(a, b, true)
}

// end makes one half of a cable: from the router of a site to the middle.
func (f *Fabric) end(from, to int, own, other netip.Addr) error {
	middle, _ := Middle(from, to)
	r, name := f.routers[from], cableEnd(to)
	if err := addVeth(f.outer, middle, nil, name, r.ns, cableMAC(own)); err != nil {
		return err
	}
	// What leaves the router are packets as a wire has them: that is what gets lost, late and written down.
	if err := In(r.ns, func() error { return noOffload(name) }); err != nil {
		return err
	}
	if err := errors.Join(up(r.nl, name), up(f.outer, middle)); err != nil {
		return err
	}
	if err := addAddr(r.nl, name, netip.PrefixFrom(own, 31)); err != nil {
		return err
	}
	dev, err := r.nl.LinkByName(name)
	if err != nil {
		return err
	}
	// Known for ever, so that packets into a cut cable vanish, as they do behind a switch, and no router reports them.
	neighbour := &netlink.Neigh{
		LinkIndex: dev.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IP(other.AsSlice()), HardwareAddr: cableMAC(other),
	}
	if err := r.nl.NeighAdd(neighbour); err != nil {
		return fmt.Errorf("neighbour %s: %w", other, err)
	}
	peer := f.sites[to]
	reachable := []netip.Prefix{LoadBalancerCIDR(peer.Index), netip.PrefixFrom(peer.API.Addr(), 32)}
	if peer.Network == f.sites[from].Network {
		reachable = []netip.Prefix{LoadBalancerCIDR(peer.Index), NodeCIDR(peer.Index), peer.PodCIDR, peer.ServiceCIDR}
	}
	for _, dst := range reachable {
		if err := addRoute(r.nl, name, dst, other); err != nil {
			return err
		}
	}
	return nil
}

// Connect joins the two halves of a cable in the middle, or parts them: then nothing passes, and somebody else may carry it.
func (f *Fabric) Connect(a, b int, connected bool) error {
	bridge, err := f.outer.LinkByName(cableBridge(a, b))
	if err != nil {
		return err
	}
	towardsA, towardsB := Middle(a, b)
	for _, name := range []string{towardsA, towardsB} {
		dev, err := f.outer.LinkByName(name)
		if err != nil {
			return err
		}
		if connected {
			err = f.outer.LinkSetMaster(dev, bridge)
		} else if dev.Attrs().MasterIndex != 0 {
			err = f.outer.LinkSetNoMaster(dev)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// cableMAC makes a locally administered hardware address of the address of a cable's end.
func cableMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x4d, b[0], b[1], b[2], b[3]}
}

// addVeth makes a pair: one end in the handle's namespace, the other in ns.
func addVeth(nl *netlink.Handle, name string, mac net.HardwareAddr, peer string, ns *os.File, peerMAC net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerHardwareAddr: peerMAC, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := nl.LinkAdd(v); err != nil {
		return fmt.Errorf("veth %s: %w", name, err)
	}
	return nil
}
