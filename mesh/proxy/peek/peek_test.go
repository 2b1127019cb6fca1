package peek

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wrapped is a connection in other clothes, as the listener's sniffing leaves it.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

func pair(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// become waits until the kernel has brought what was sent.
func become(t *testing.T, s *Socket, want State) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		got := s.State()
		if got == want {
			return
		}
		if got != Quiet || time.Now().After(end) {
			t.Fatalf("state %d, want %d", got, want)
		}
	}
}

func TestState(t *testing.T) {
	for name, c := range map[string]struct {
		peer func(*net.TCPConn) error
		want State
	}{
		"bytes":            {func(c *net.TCPConn) error { _, err := c.Write([]byte("x")); return err }, Bytes},
		"end":              {(*net.TCPConn).Close, Ended},
		"half closed":      {(*net.TCPConn).CloseWrite, Ended},
		"reset":            {func(c *net.TCPConn) error { _ = c.SetLinger(0); return c.Close() }, Ended},
		"bytes before end": {func(c *net.TCPConn) error { _, _ = c.Write([]byte("x")); return c.Close() }, Bytes},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := pair(t)
			s := New(tls.Client(wrapped{here}, &tls.Config{}))
			if got := s.State(); got != Quiet {
				t.Fatalf("state %d of a new connection", got)
			}
			_ = here.SetReadDeadline(time.Unix(1, 0)) // of no matter
			if err := c.peer(there); err != nil {
				t.Fatal(err)
			}
			become(t, s, c.want)
			if n := testing.AllocsPerRun(10, func() { s.State() }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func TestClosedHere(t *testing.T) {
	here, _ := pair(t)
	s := New(here)
	_ = here.Close()
	if got := s.State(); got != Ended {
		t.Errorf("state %d", got)
	}
}

func TestNoSocket(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if got := New(a).State(); got != Unknown {
		t.Errorf("state %d", got)
	}
}
