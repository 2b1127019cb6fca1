//go:build !linux

package listener

import (
	"net"
	"net/netip"
)

// OriginalDst reports that the connection was not redirected: only Linux has the rules, and redirect.Apply says so.
func OriginalDst(net.Conn) (netip.AddrPort, bool) { return netip.AddrPort{}, false }
