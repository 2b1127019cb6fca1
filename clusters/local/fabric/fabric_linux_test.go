package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a network namespace of their own, which becomes a lab's outer one.
func TestMain(m *testing.M) {
	const inside = "meshproof-fabric-test"
	if os.Args[0] == inside || os.Geteuid() != 0 {
		goleak.VerifyTestMain(m)
		return
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = inside
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func site(index int, name, network string, nodes int) Site {
	s := Site{Name: name, Network: network, Index: index, PodCIDR: PodCIDR(index), ServiceCIDR: ServiceCIDR(index)}
	for j := range nodes {
		s.Nodes = append(s.Nodes, Node{IP: NodeIP(index, j), PodCIDR: prefix(24, 10, 32+index, j, 0)})
	}
	s.API = netip.AddrPortFrom(s.Nodes[0].IP, 6443)
	return s
}

// testFabric makes a fabric whose nodes are namespaces with a pod's, a Service's and a load balancer's address on lo, where
// everything answers with the address that it sees the client at.
type testFabric struct {
	*Fabric
	nodes map[string]*os.File // by address
}

func podIP(site, node int) string  { return addr(10, 32+site, node, 9).String() }
func serviceIP(site int) string    { return addr(10, 96+site, 0, 9).String() }
func loadBalancer(site int) string { return addr(10, 64, site, 9).String() }

var served = []string{"6443", "8080"}

func newFabric(t testing.TB, sites ...Site) *testFabric {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("MESHPROOF_E2E") != "" {
			t.Fatal("MESHPROOF_E2E=required: it needs root: it makes network namespaces")
		}
		t.Skip("needs root: it makes network namespaces")
	}
	f, err := New(sites)
	if err != nil {
		t.Fatal(err)
	}
	tf := &testFabric{Fabric: f, nodes: map[string]*os.File{}}
	t.Cleanup(func() {
		for _, s := range sites { // the outer namespace serves the next test too
			for _, name := range []string{hostDevice(s.Index)} {
				remove(t, f.outer, name)
			}
		}
		for a := range sites {
			for b := a + 1; b < len(sites); b++ {
				x, y := Middle(a, b)
				for _, name := range []string{x, y, cableBridge(a, b)} {
					remove(t, f.outer, name)
				}
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range sites {
		for j := range s.Nodes {
			tf.node(t, s, j)
		}
		if err := f.Balance(s.Index, netip.MustParseAddr(loadBalancer(s.Index)), []int{0}); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel takes up to a second to see that a port of a new bridge has a carrier.
	for _, from := range sites {
		for _, to := range sites {
			tf.settle(t, from.Nodes[0].IP.String(), loadBalancer(to.Index)+":8080")
		}
		for _, n := range from.Nodes {
			tf.settle(t, "", n.IP.String()+":8080")
		}
	}
	return tf
}

// settle asks until there is an answer.
func (f *testFabric) settle(t testing.TB, from, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err := f.get(attempt, from, to)
		done()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("from %q to %s: %v", from, to, err)
		}
	}
}

func remove(t testing.TB, nl *netlink.Handle, name string) {
	t.Helper()
	l, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkDel(l)
	}
	if err != nil {
		t.Error(err)
	}
}

func (f *testFabric) node(t testing.TB, s Site, j int) {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	f.nodes[s.Nodes[j].IP.String()] = ns
	if err := f.Join(s.Index, j, ns); err != nil {
		t.Fatal(err)
	}
	own := []string{podIP(s.Index, j), serviceIP(s.Index), loadBalancer(s.Index)}
	err = In(ns, func() error {
		if err := ConfigureNode(s, j); err != nil {
			return err
		}
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		for _, ip := range own {
			if err := addAddr(nl, "lo", netip.PrefixFrom(netip.MustParseAddr(ip), 32)); err != nil {
				return err
			}
		}
		for _, port := range served {
			l, err := net.Listen("tcp", ":"+port)
			if err != nil {
				return err
			}
			server := &http.Server{Handler: http.HandlerFunc(answer)}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = server.Serve(l)
			}()
			t.Cleanup(func() {
				_ = server.Close()
				<-ended
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("bytes"))
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if n == 0 {
		_, _ = io.WriteString(w, host)
		return
	}
	_, _ = w.Write(make([]byte, n))
}

// get asks url from a node, with a pod's address as source if from has one after a slash, or from the outer namespace if
// from is empty.
func (f *testFabric) get(ctx context.Context, from, url string) (string, error) {
	node, pod, _ := strings.Cut(from, "/")
	dialer := net.Dialer{Timeout: 2 * time.Second}
	if pod != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(pod)}
	}
	host, _, _ := strings.Cut(url, "/")
	var conn net.Conn
	dial := func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", host)
		return err
	}
	var err error
	if node == "" {
		err = dial()
	} else {
		err = In(f.nodes[node], dial)
	}
	if err != nil {
		return "", err
	}
	defer conn.Close() // the answer is read
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return conn, nil
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+url, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close() // read only
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func TestReach(t *testing.T) {
	f := newFabric(t, site(0, "east", "network1", 2), site(1, "west", "network1", 1), site(2, "south", "network2", 1))
	east, east2, west, south := NodeIP(0, 0).String(), NodeIP(0, 1).String(), NodeIP(1, 0).String(), NodeIP(2, 0).String()
	eastPod := east + "/" + podIP(0, 0)
	seam, _ := cableIPs(0, 2) // east's end of the cable to south
	const no = "refused"
	for _, c := range []struct {
		name, from, to string
		want           string // the client's address as the server sees it, or no
	}{
		{"own site: other node", east, east2 + ":8080", east},
		{"own site: pod to pod on another node", eastPod, podIP(0, 1) + ":8080", podIP(0, 0)},
		{"own site: load balancer address that nobody serves", eastPod, "10.64.0.77:8080", no},
		{"own site: pod address that nobody has", east, "10.32.0.77:8080", no},
		{"own network: node", eastPod, west + ":8080", podIP(0, 0)},
		{"own network: pod to pod", eastPod, podIP(1, 0) + ":8080", podIP(0, 0)},
		{"own network: from the second node", east2 + "/" + podIP(0, 1), podIP(1, 0) + ":8080", podIP(0, 1)},
		{"own network: Service", eastPod, serviceIP(1) + ":8080", podIP(0, 0)},
		{"own network: load balancer", eastPod, loadBalancer(1) + ":8080", podIP(0, 0)},
		{"own network: load balancer address that nobody serves", eastPod, "10.64.1.77:8080", no},
		{"other network: node", eastPod, south + ":8080", no},
		{"other network: pod", eastPod, podIP(2, 0) + ":8080", no},
		{"other network: Service", eastPod, serviceIP(2) + ":8080", no},
		{"other network: load balancer", eastPod, loadBalancer(2) + ":8080", seam.String()},
		{"other network: load balancer address that nobody serves", eastPod, "10.64.2.77:8080", no},
		{"other network: API server", eastPod, south + ":6443", seam.String()},
		{"other network: back, to a pod", south + "/" + podIP(2, 0), podIP(0, 0) + ":8080", no},
		{"other network: back, to a load balancer", south + "/" + podIP(2, 0), loadBalancer(0) + ":8080", seam.Next().String()},
		{"outside the lab", eastPod, "192.0.2.1:8080", no},
		{"outer namespace: pod", "", podIP(1, 0) + ":8080", hostIP(1).String()},
		{"outer namespace: Service of another network", "", serviceIP(2) + ":8080", hostIP(2).String()},
		{"outer namespace: load balancer", "", loadBalancer(2) + ":8080", hostIP(2).String()},
		{"outer namespace: load balancer address that nobody serves", "", "10.64.0.77:8080", no},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := f.get(t.Context(), c.from, c.to)
			if c.want != no {
				if err != nil || got != c.want {
					t.Errorf("from %s to %s: %q, %v; want the client at %s", c.from, c.to, got, err, c.want)
				}
				return
			}
			if err == nil {
				t.Fatalf("%s reaches %s, as %s", c.from, c.to, got)
			}
			// A neighbour that does not answer is given up later than the dialer gives up: none of these is that.
			if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("from %s to %s: %v; want it refused at once", c.from, c.to, err)
			}
		})
	}
}

// TestOuterForwardsNothing tries to use the outer namespace, which is a host in every network, as a router.
func TestOuterForwardsNothing(t *testing.T) {
	f := newFabric(t, site(0, "east", "network1", 1), site(1, "south", "network2", 1))
	err := In(f.nodes[NodeIP(0, 0).String()], func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		return addRoute(nl, "eth0", PodCIDR(1), hostIP(0))
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if got, err := f.get(ctx, NodeIP(0, 0).String(), podIP(1, 0)+":8080"); err == nil {
		t.Errorf("a pod of another network answers, to %s", got)
	}
}

func TestBalance(t *testing.T) {
	f := newFabric(t, site(0, "east", "network1", 3), site(1, "west", "network2", 1))
	ip := netip.MustParseAddr(loadBalancer(0))
	from := NodeIP(1, 0).String()
	// Nodes tell apart by a port that only some have: count accepted flows on each instead.
	hits := map[string]int{}
	for j := range 3 {
		ns := f.nodes[NodeIP(0, j).String()]
		var l net.Listener
		if err := In(ns, func() (err error) { l, err = net.Listen("tcp", ":9090"); return err }); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint(j)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close(); <-ended })
	}
	ask := func(nodes []int) map[string]int {
		t.Helper()
		if err := f.Balance(0, ip, nodes); err != nil {
			t.Fatal(err)
		}
		clear(hits)
		for range 90 {
			got, err := f.get(t.Context(), from, ip.String()+":9090")
			if err != nil {
				t.Fatal(err)
			}
			hits[got]++
		}
		return hits
	}
	if got := ask([]int{0, 1, 2}); len(got) != 3 { // 90 flows miss a node with 3*(2/3)^90 < 1e-15
		t.Errorf("over three nodes: %v", got)
	}
	if got := ask([]int{1}); got["1"] != 90 {
		t.Errorf("to node 1 only: %v", got)
	}
	if err := errors.Join(f.Balance(0, ip, nil), f.Balance(0, ip, nil)); err != nil {
		t.Fatal(err)
	}
	for _, client := range []string{from, ""} {
		if got, err := f.get(t.Context(), client, ip.String()+":9090"); err == nil {
			t.Errorf("an address without nodes answers %q: %s", client, got)
		}
	}
}

func TestConnect(t *testing.T) {
	f := newFabric(t, site(0, "east", "network1", 1), site(1, "west", "network1", 1))
	from, to := NodeIP(0, 0).String(), podIP(1, 0)+":8080"
	if err := f.Connect(0, 1, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	_, err := f.get(ctx, from, to)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("over a cut cable: %v; want it to hang", err)
	}
	cancel()
	if err := errors.Join(f.Connect(0, 1, false), f.Connect(0, 1, true), f.Connect(0, 1, true)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.get(t.Context(), from, to); err != nil {
		t.Errorf("over a mended cable: %v", err)
	}
}
