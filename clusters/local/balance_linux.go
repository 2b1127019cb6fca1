package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local/balancer"
	"github.com/meshproof/meshproof/clusters/local/fabric"
)

// balance is the keeper's part for one cluster: it runs the controller of load balancers and gives people ports on the host
// for them. home is the host's network namespace.
func balance(ctx context.Context, c *clusterState, fab *fabric.Fabric, home *os.File) {
	waitFor(ctx, apiReady(c))
	if ctx.Err() != nil {
		return
	}
	d := &doors{cluster: c, home: home, open: map[doorKey]*door{}, ports: map[doorKey]string{}}
	defer d.close()
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.pkiDir(), "load-balancer.conf"))
	if err != nil {
		slog.Error("load balancers", "cluster", c.Name, "err", err)
		return
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		slog.Error("load balancers", "cluster", c.Name, "err", err)
		return
	}
	var nodes []string
	for _, n := range c.Nodes {
		nodes = append(nodes, n.Name)
	}
	err = balancer.Run(ctx, balancer.Config{
		Client: client, Range: netip.MustParsePrefix(c.LoadBalancerCIDR), Nodes: nodes,
		Route:   func(ip netip.Addr, nodes []int) error { return fab.Balance(c.Index, ip, nodes) },
		Publish: func(now []balancer.Balancer) { d.set(ctx, now) },
	})
	if ctx.Err() == nil {
		slog.Error("load balancers", "cluster", c.Name, "err", err)
	}
}

// doors are the host's ports for a cluster's load balancers. Only one goroutine uses them.
type doors struct {
	cluster *clusterState
	home    *os.File
	open    map[doorKey]*door
	ports   map[doorKey]string // also of those that are closed: whoever comes back gets the same
}

type doorKey struct {
	namespace, service string
	port               int32
}

type door struct {
	listener net.Listener
	target   string
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func (d *door) close() {
	d.cancel()
	d.wg.Wait()
}

// set opens and closes doors, and writes down what there is.
func (d *doors) set(ctx context.Context, now []balancer.Balancer) {
	list := []clusters.LoadBalancer{}
	wanted := map[doorKey]bool{}
	for _, b := range now {
		lb := clusters.LoadBalancer{Namespace: b.Namespace, Service: b.Service, IP: b.IP.String()}
		for _, p := range b.Ports {
			out := clusters.LoadBalancerPort{Name: p.Name, Port: p.Port, Protocol: p.Protocol}
			if p.Protocol == "TCP" {
				k := doorKey{b.Namespace, b.Service, p.Port}
				wanted[k] = true
				local, err := d.ensure(ctx, k, netip.AddrPortFrom(b.IP, uint16(p.Port)).String())
				if err != nil {
					slog.Error("port on the host", "service", b.Namespace+"/"+b.Service, "port", p.Port, "err", err)
				}
				out.Local = local
			}
			lb.Ports = append(lb.Ports, out)
		}
		list = append(list, lb)
	}
	for k, o := range d.open {
		if !wanted[k] {
			o.close()
			delete(d.open, k)
		}
	}
	if err := writeJSON(d.cluster.balancersFile(), list); err != nil {
		slog.Error("load balancers", "cluster", d.cluster.Name, "err", err)
	}
}

// ensure returns the address on the host that leads to target.
func (d *doors) ensure(ctx context.Context, k doorKey, target string) (string, error) {
	if o := d.open[k]; o != nil {
		if o.target == target {
			return o.listener.Addr().String(), nil
		}
		o.close()
		delete(d.open, k)
	}
	l, err := d.listen(k)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	o := &door{listener: l, target: target, cancel: cancel}
	o.wg.Go(func() {
		defer context.AfterFunc(ctx, func() { _ = l.Close() })()
		forward(ctx, l, target, dialDirect)
	})
	d.open[k], d.ports[k] = o, l.Addr().String()
	return d.ports[k], nil
}

func (d *doors) listen(k doorKey) (l net.Listener, err error) {
	try := []string{"127.0.0.1:0"}
	if before, ok := d.ports[k]; ok {
		try = []string{before, "127.0.0.1:0"}
	}
	for _, addr := range try {
		err = fabric.In(d.home, func() error {
			l, err = net.Listen("tcp", addr)
			return err
		})
		if err == nil {
			return l, nil
		}
	}
	return nil, err
}

func (d *doors) close() {
	for _, o := range d.open {
		o.close()
	}
}

func (c *clusterState) balancersFile() string { return filepath.Join(c.Dir, "balancers.json") }

// LoadBalancers implements clusters.Balanced.
func (c *cluster) LoadBalancers() ([]clusters.LoadBalancer, error) {
	var out []clusters.LoadBalancer
	if err := readJSON(c.balancersFile(), &out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster %q: %w", c.Name(), err)
	}
	return out, nil
}

var _ clusters.Balanced = (*cluster)(nil)
