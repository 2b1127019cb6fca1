package fabric

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Fabric owns the routers of a lab. It lives in the process that made it, in whose network namespace the cables' middles are.
// The namespaces have no names: they go with the process and the nodes.
type Fabric struct {
	sites   []Site
	routers []*router // by index of the site
	outer   *netlink.Handle
}

type router struct {
	ns *os.File
	nl *netlink.Handle
}

// New makes the routers and the cables between them. The namespace of this process becomes the lab's outer one.
func New(sites []Site) (*Fabric, error) {
	f := &Fabric{sites: sites}
	if err := f.build(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close lets go of the routers; their namespaces end unless nodes hold devices in them.
func (f *Fabric) Close() error {
	var errs []error
	for _, r := range f.routers {
		if r.nl != nil {
			r.nl.Close()
		}
		errs = append(errs, r.ns.Close())
	}
	if f.outer != nil {
		f.outer.Close()
	}
	return errors.Join(errs...)
}

func (f *Fabric) build() (err error) {
	if f.outer, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if err := outerSysctls(); err != nil {
		return err
	}
	if err := up(f.outer, "lo"); err != nil {
		return err
	}
	for _, s := range f.sites {
		r, err := newRouter(s, f.sites)
		if r != nil {
			f.routers = append(f.routers, r)
		}
		if err == nil {
			err = f.host(s, r)
		}
		if err != nil {
			return fmt.Errorf("router of %s: %w", s.Name, err)
		}
	}
	for a := range f.sites {
		for b := a + 1; b < len(f.sites); b++ {
			if err := f.cable(a, b); err != nil {
				return fmt.Errorf("cable between %s and %s: %w", f.sites[a].Name, f.sites[b].Name, err)
			}
		}
	}
	return nil
}

// newRouter makes a namespace with the site's switch and the rules. A router that is returned has to be closed, error or not.
func newRouter(s Site, all []Site) (*router, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	r := &router{ns: ns}
	if r.nl, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE); err != nil {
		return r, fmt.Errorf("netlink: %w", err)
	}
	if err := up(r.nl, "lo"); err != nil {
		return r, err
	}
	if err := addBridge(r.nl, switchDevice); err != nil {
		return r, err
	}
	if err := addAddr(r.nl, switchDevice, netip.PrefixFrom(RouterIP(s.Index), NodeBits)); err != nil {
		return r, err
	}
	for i, n := range s.Nodes {
		routes := []netip.Prefix{n.PodCIDR}
		if i == 0 {
			routes = append(routes, s.ServiceCIDR)
		}
		for _, dst := range routes {
			if err := addRoute(r.nl, switchDevice, dst, n.IP); err != nil {
				return r, err
			}
		}
	}
	if err := addUnreachable(r.nl, LoadBalancerCIDR(s.Index)); err != nil {
		return r, err
	}
	return r, In(ns, func() error {
		if err := routerSysctls(); err != nil {
			return err
		}
		return load(rules(s, all))
	})
}

// host makes the outer namespace a host among the site's nodes.
func (f *Fabric) host(s Site, r *router) error {
	name := hostDevice(s.Index)
	bridge, err := r.nl.LinkByName(switchDevice)
	if err != nil {
		return err
	}
	if err := addVeth(f.outer, name, nil, "host", r.ns, nil); err != nil {
		return err
	}
	peer, err := r.nl.LinkByName("host")
	if err != nil {
		return err
	}
	if err := r.nl.LinkSetMaster(peer, bridge); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := errors.Join(up(r.nl, "host"), up(f.outer, name)); err != nil {
		return err
	}
	if err := addAddr(f.outer, name, netip.PrefixFrom(hostIP(s.Index), NodeBits)); err != nil {
		return err
	}
	for i, n := range s.Nodes {
		if err := addRoute(f.outer, name, n.PodCIDR, n.IP); err != nil {
			return err
		}
		if i == 0 {
			if err := addRoute(f.outer, name, s.ServiceCIDR, n.IP); err != nil {
				return err
			}
		}
	}
	return nil
}

// Balance routes a load balancer address of a site to those of its nodes, by flows; to none it is unreachable.
func (f *Fabric) Balance(site int, ip netip.Addr, nodes []int) error {
	return errors.Join(
		f.balance(f.routers[site].nl, switchDevice, site, ip, nodes),
		f.balance(f.outer, hostDevice(site), site, ip, nodes),
	)
}

func (f *Fabric) balance(nl *netlink.Handle, device string, site int, ip netip.Addr, nodes []int) error {
	dev, err := nl.LinkByName(device)
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(ip, 32))}
	if len(nodes) == 0 {
		if err := nl.RouteDel(route); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("route %s: %w", ip, err)
		}
		return nil
	}
	for _, n := range nodes {
		route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{
			LinkIndex: dev.Attrs().Index, Gw: net.IP(f.sites[site].Nodes[n].IP.AsSlice()),
		})
	}
	if err := nl.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s: %w", ip, err)
	}
	return nil
}

func load(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = bytes.NewReader([]byte(rules))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
