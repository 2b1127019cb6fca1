package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local/fabric"
)

// lab implements clusters.Lab. It holds nothing open: a lab outlives the processes that use it.
type lab struct {
	st     *labState
	keeper process
}

func (l *lab) Name() string { return l.st.Name }

func (l *lab) Clusters() []clusters.Cluster {
	var out []clusters.Cluster
	for i := range l.st.Clusters {
		out = append(out, &cluster{lab: l, clusterState: &l.st.Clusters[i]})
	}
	return out
}

var _ clusters.Supervised = (*lab)(nil)

// Broken implements clusters.Supervised.
func (l *lab) Broken() error {
	if !l.keeper.alive() {
		return &keeperError{tail(filepath.Join(l.st.dir, "keeper.log"))}
	}
	for _, c := range l.st.Clusters {
		for _, n := range c.Nodes {
			var f failure
			err := readJSON(filepath.Join(n.Dir, "failed.json"), &f)
			if err == nil {
				return f
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Logs implements clusters.Supervised: the keeper's log, and of each node a folder with its components' and what failed first.
func (l *lab) Logs(dir string) error {
	errs := []error{copyFile(filepath.Join(l.st.dir, "keeper.log"), filepath.Join(dir, "keeper.log"))}
	for _, c := range l.st.Clusters {
		for _, n := range c.Nodes {
			logs, err := filepath.Glob(filepath.Join(n.Dir, "logs", "*.log"))
			errs = append(errs, err)
			for _, path := range append(logs, filepath.Join(n.Dir, "failed.json")) {
				errs = append(errs, copyFile(path, filepath.Join(dir, n.Name, filepath.Base(path))))
			}
		}
	}
	return errors.Join(errs...)
}

// copyFile copies what is there; the folder is made.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close() // read only
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

type keeperError struct{ tail []string }

func (e *keeperError) Error() string {
	return failure{Node: "all", Component: "keeper", Exit: "no longer running", Tail: e.tail}.Error()
}

// DialContext implements clusters.Lab. Addresses are numeric: names of Services mean something inside a cluster only.
func (l *lab) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("dial %s in lab %q: give an IP address: names are resolved inside its clusters only", addr, l.st.Name)
	}
	var conn net.Conn
	err = l.inOuter(func() (err error) {
		conn, err = dialDirect(ctx, network, addr)
		return err
	})
	if errors.Is(err, errNotRunning) {
		err = fmt.Errorf("dial %s: lab %q: %w", addr, l.st.Name, err)
	}
	return conn, err
}

var errNotRunning = errors.New("does not run")

// inOuter runs f in the lab's outer network namespace, which is the keeper's.
func (l *lab) inOuter(f func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", l.keeper.PID))
	if err != nil {
		return errNotRunning
	}
	defer ns.Close() // read only
	if !l.keeper.alive() {
		return errNotRunning
	}
	return fabric.In(ns, f)
}

type cluster struct {
	*clusterState
	lab *lab
}

func (c *cluster) Name() string       { return c.clusterState.Name }
func (c *cluster) Kubeconfig() string { return c.kubeconfig() }

// Network implements clusters.Cluster.
func (c *cluster) Network() string { return c.clusterState.Network }

// LoadBalancerIPs implements clusters.Cluster.
func (c *cluster) LoadBalancerIPs() string { return c.LoadBalancerCIDR }

func (c *cluster) RESTConfig() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", c.Name(), err)
	}
	cfg.QPS, cfg.Burst = 200, 400 // client-go's defaults throttle tests, not servers
	return cfg, nil
}

func (c *cluster) NodeIPs() []string {
	var ips []string
	for _, n := range c.Nodes {
		ips = append(ips, n.IP)
	}
	return ips
}

func (c *cluster) LoadImages(ctx context.Context, archives ...string) error {
	if len(archives) == 0 {
		return nil
	}
	args := make([]string, len(archives))
	for i, a := range archives {
		abs, err := filepath.Abs(a)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("load image: %w", err)
		}
		args[i] = abs
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range c.Nodes {
		n := &c.Nodes[i]
		g.Go(func() error {
			if err := c.lab.loadInto(ctx, n, args); err != nil {
				return fmt.Errorf("cluster %q: node %q: load images: %w", c.Name(), n.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// loadInto talks to the node's containerd through the mount namespace of its init.
func (l *lab) loadInto(ctx context.Context, n *nodeState, archives []string) error {
	var init process
	if err := readJSON(filepath.Join(n.Dir, "init.json"), &init); err != nil {
		return err
	}
	if !init.alive() {
		return errors.New("the node does not run")
	}
	socket := fmt.Sprintf("/proc/%d/root%s", init.PID, criSocket)
	cmd := exec.CommandContext(ctx, filepath.Join(l.st.Bin, "image-import"), append([]string{"--address", socket}, archives...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (c *cluster) Forward(ctx context.Context, addr string) (string, io.Closer, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &forwarder{cancel: cancel}
	f.wg.Go(func() {
		defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
		defer cancel()
		forward(ctx, ln, addr, c.lab.DialContext)
	})
	return ln.Addr().String(), f, nil
}

type forwarder struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Close ends the connections too and waits for them.
func (f *forwarder) Close() error {
	f.cancel()
	f.wg.Wait()
	return nil
}
