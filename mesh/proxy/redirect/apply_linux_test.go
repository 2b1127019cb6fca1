package redirect

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread in a network namespace of its own with lo up. The thread is never given back.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := loopbackUp(); err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func TestApplyCapturesRealConnections(t *testing.T) {
	inNamespace(t, func() error {
		c := injected()
		c.UID = 4242  // nobody here: every connection is the app's
		for range 2 { // setting them again replaces them
			if err := Apply(c); err != nil {
				return err
			}
		}
		proxy, err := net.Listen("tcp", "127.0.0.1:15001")
		if err != nil {
			return err
		}
		defer proxy.Close()
		got := make(chan string, 1)
		errs := make(chan error, 1)
		go func() {
			conn, err := proxy.Accept()
			if err != nil {
				errs <- err
				return
			}
			defer conn.Close()
			dst, err := originalDst(conn.(*net.TCPConn))
			if err != nil {
				errs <- err
				return
			}
			got <- dst
			_, _ = io.WriteString(conn, "proxy")
		}()
		for _, args := range [][]string{
			{"link", "add", "d0", "type", "veth", "peer", "name", "d1"},
			{"addr", "add", "192.0.2.1/24", "dev", "d0"}, {"link", "set", "d0", "up"}, {"link", "set", "d1", "up"},
		} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %s", strings.Join(args, " "), out)
			}
		}
		conn, err := net.DialTimeout("tcp", "192.0.2.77:9080", 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		select {
		case dst := <-got:
			if dst != "192.0.2.77:9080" {
				t.Errorf("original destination %s", dst)
			}
		case err := <-errs:
			return err
		}
		b, err := io.ReadAll(conn)
		if string(b) != "proxy" {
			t.Errorf("read %q from what should be the proxy", b)
		}
		return err
	})
}

func TestApplyIsWhatTextSays(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft to read the rules back")
	}
	inNamespace(t, func() error {
		c := injected()
		c.IncludeOutbound, c.ExcludeOutbound, c.ExcludeOutboundPorts = "10.0.0.0/8,fd00::/8", "10.1.0.0/16", "5432"
		if err := Apply(c); err != nil {
			return err
		}
		out, err := exec.Command(nft, "list", "table", "inet", tableName).CombinedOutput()
		if err != nil {
			return err
		}
		want, err := Text(c)
		if err != nil {
			return err
		}
		if d := cmp.Diff(normal(want), normal(string(out))); d != "" {
			t.Errorf("-Text +nft:\n%s", d)
		}
		return nil
	})
}

// normal undoes what nft leaves out because it follows from the rest.
func normal(s string) string {
	var lines []string
	for l := range strings.Lines(s) {
		l = strings.TrimSpace(l)
		l = strings.ReplaceAll(l, "/32 ", " ")
		l = strings.ReplaceAll(l, "/128 ", " ")
		l = strings.ReplaceAll(l, "meta l4proto tcp ", "")
		if l != "" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n")
}

func originalDst(conn *net.TCPConn) (string, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var addr unix.RawSockaddrInet4
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(addr))
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_IP, unix.SO_ORIGINAL_DST, uintptr(unsafe.Pointer(&addr)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil {
		return "", err
	}
	if errno != 0 {
		return "", errno
	}
	p := addr.Port>>8 | addr.Port<<8
	return net.JoinHostPort(net.IP(addr.Addr[:]).String(), strconv.Itoa(int(p))), nil
}
