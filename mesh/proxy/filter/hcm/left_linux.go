package hcm

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// left reports whether the peer has closed its side or the connection is broken, whatever still lies unread before that.
// Like Envoy, this takes a half-closed HTTP connection for one that was given up.
func left(raw syscall.RawConn) (gone bool) {
	err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			gone = info.State == unix.BPF_TCP_CLOSE_WAIT || info.State == unix.BPF_TCP_CLOSE || info.State == unix.BPF_TCP_LAST_ACK
		}
	})
	return gone && err == nil
}
