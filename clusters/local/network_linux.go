package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
)

// makeOuterNetwork sets up the namespace that this process lives in: a bridge, and no route out of the lab.
func makeOuterNetwork() error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	if err := addAddr(br, gatewayIP, nodeBits); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("bridge up: %w", err)
	}
	return netSysctls()
}

// connectNode joins the namespaces of a node's init to the bridge and routes the node's pods, and the cluster's Services
// when it is the first, to it.
func connectNode(c *clusterState, n *nodeState, pid int) error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "n" + n.IP[len("10.30.0."):]
	attrs.MasterIndex = br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("veth up: %w", err)
	}
	if err := addRoute(br, n.PodCIDR, n.IP); err != nil {
		return err
	}
	if n.IP == c.Nodes[0].IP {
		return addRoute(br, c.ServiceCIDR, n.IP)
	}
	return nil
}

// configureNodeNetwork sets up eth0 in the namespace of this process, a node's init.
func configureNodeNetwork(st *labState, self *nodeState) error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := addAddr(eth, self.IP, nodeBits); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return err
	}
	if err := addRoute(eth, "0.0.0.0/0", gatewayIP); err != nil {
		return err
	}
	for _, c := range st.Clusters {
		for _, n := range c.Nodes {
			if n.IP == self.IP {
				continue
			}
			if err := addRoute(eth, n.PodCIDR, n.IP); err != nil {
				return err
			}
		}
	}
	// A pod address that nobody has must not wander to the bridge and back.
	_, own, err := net.ParseCIDR(self.PodCIDR)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: own, Type: syscall.RTN_UNREACHABLE, Priority: 1 << 16}); err != nil {
		return fmt.Errorf("route %s: %w", own, err)
	}
	return netSysctls()
}

// netSysctls are those of this network namespace; new namespaces take some of the host's over.
func netSysctls() error {
	for name, v := range map[string]string{
		"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(v), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}

func addAddr(l netlink.Link, ip string, bits int) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(bits, 32)}}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s: %w", ip, err)
	}
	return nil
}

func addRoute(l netlink.Link, cidr, via string) error {
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("route %s via %s: %w", cidr, via, err)
	}
	return nil
}

// makeProbeLink tries the kind of link that joins nodes and pods.
func makeProbeLink() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "probe1"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	return nil
}
