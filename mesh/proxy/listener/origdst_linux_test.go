package listener

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/mesh/proxy/redirect"
)

// TestOriginalDst asks the kernel about a connection that real redirect rules caught, in a network namespace of its own.
func TestOriginalDst(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		done <- caught()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func caught() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	for _, args := range []string{"link set lo up", "link add d0 type veth peer name d1", "addr add 192.0.2.1/24 dev d0", "link set d0 up", "link set d1 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %s", args, out)
		}
	}
	if err := redirect.Apply(redirect.Config{OutboundPort: 15001, InboundPort: 15006, UID: 4242, IncludeOutbound: "*", IncludeInboundPorts: "*"}); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "0.0.0.0:15001")
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	c, err := net.Dial("tcp", "192.0.2.77:9080")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	in, err := ln.Accept()
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if dst, ok := OriginalDst(in); !ok || dst.String() != "192.0.2.77:9080" {
		return fmt.Errorf("original destination %v, %v", dst, ok)
	}
	return nil
}
