package fabric

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newNamespace returns a new network namespace, which lives as long as the file is open.
func newNamespace() (*os.File, error) {
	var ns *os.File
	err := elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return ns, nil
}

// In runs f on a thread that is in the network namespace for that long. A socket stays in the namespace that it was made in,
// whichever thread uses it later; so does a process that f starts.
func In(ns *os.File, f func() error) error {
	return elsewhere(func() error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) }, f)
}

// elsewhere runs enter and f on one thread and brings the thread home.
func elsewhere(enter, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close() // read only
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	result := f()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		// Still locked, so the runtime ends the thread together with the goroutine and never reuses it.
		return errors.Join(result, fmt.Errorf("leave a network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return result
}

func addBridge(nl *netlink.Handle, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return up(nl, name)
}

func up(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	if err := nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("device %s up: %w", name, err)
	}
	return nil
}

func addAddr(nl *netlink.Handle, device string, p netip.Prefix) error {
	l, err := nl.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), 32)}}
	if err := nl.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

func addRoute(nl *netlink.Handle, device string, dst netip.Prefix, via netip.Addr) error {
	l, err := nl.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	err = nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst), Gw: net.IP(via.AsSlice())})
	if err != nil {
		return fmt.Errorf("route %s via %s: %w", dst, via, err)
	}
	return nil
}

func addUnreachable(nl *netlink.Handle, dst netip.Prefix) error {
	err := nl.RouteAdd(&netlink.Route{Dst: ipNet(dst), Type: unix.RTN_UNREACHABLE, Priority: 1 << 16})
	if err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Masked().Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), 32)}
}

// The sysctls are those of the calling thread's namespace; new namespaces take some of the host's over.

func nodeSysctls() error { return sysctls(loose, map[string]string{"ipv4/ip_forward": "1"}) }

func routerSysctls() error {
	return sysctls(loose, quiet, map[string]string{
		"ipv4/ip_forward": "1", "ipv4/icmp_ratelimit": "0", "ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
	})
}

func outerSysctls() error { return sysctls(loose, quiet, map[string]string{"ipv4/ip_forward": "0"}) }

var (
	loose = map[string]string{"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0"}
	quiet = map[string]string{
		// By addresses, protocol and ports of each packet. Policy 1 would take the sender's hash, which changes with a retransmission,
		// and then a connection ends up on another node.
		"ipv4/fib_multipath_hash_policy": "3", "ipv4/fib_multipath_hash_fields": "55",
		"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1",
		"bridge/bridge-nf-call-iptables": "0", // a switch is no firewall
	}
)

func sysctls(sets ...map[string]string) error {
	for _, set := range sets {
		for name, v := range set {
			// The calling thread's namespace, not the process's.
			err := os.WriteFile("/proc/sys/net/"+name, []byte(v), 0o644)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// noOffload makes a device of the calling thread's namespace send packets that fit and have their checksums.
func noOffload(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, cmd := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STXCSUM} {
		value := struct{ cmd, data uint32 }{cmd, 0}
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(req.name[:unix.IFNAMSIZ-1], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return fmt.Errorf("offloads of %s: %w", device, errno)
		}
	}
	return nil
}

// Probe tries, in the namespace of this process, what a fabric is made of.
func Probe() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	if err := addBridge(nl, "probe"); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe0"
	if err := nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "probe1"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	return outerSysctls()
}
