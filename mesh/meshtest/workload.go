package meshtest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/proxy"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/listener"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

// Workload is one pod: an HTTP handler, and a sidecar unless it is Bare.
type Workload struct {
	Name, Namespace string
	Labels          map[string]string
	ServiceAccount  string
	Port            int           // of the handler in the pod
	Handler         http.Handler  // nil for a client only
	Serve           Server        // instead of Handler, for what is not HTTP/1.1
	Bare            bool          // no sidecar
	Gateway         bool          // a gateway instead of a sidecar
	Grace           time.Duration // of the proxy when it ends
	Cluster         string        // where it runs; the control plane's own when empty
	Metadata        map[string]any

	IP string // set by Add

	stop   func() // ends the proxy and waits
	m      *Mesh
	app    string // where the handler really listens
	mu     sync.Mutex
	wanted map[netip.AddrPort]chan netip.AddrPort // downstream address -> where it wanted to go
}

// Server serves connections until Stop; *grpc.Server is one.
type Server interface {
	Serve(net.Listener) error
	Stop()
}

// Add starts the workload and its proxy, puts it into the endpoints of the services that select it, and returns when the
// proxy is ready.
func (m *Mesh) Add(w *Workload) *Workload {
	m.t.Helper()
	if w.Namespace == "" {
		w.Namespace = "default"
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = "default"
	}
	if w.Port == 0 {
		w.Port = 8080
	}
	if w.Cluster == "" {
		w.Cluster = clusterID
	}
	w.m, w.wanted = m, map[netip.AddrPort]chan netip.AddrPort{}
	m.mu.Lock()
	m.added++
	n := m.added
	w.IP = fmt.Sprintf("127.1.%d.%d", os.Getpid()%250+1, n)
	m.mu.Unlock()
	w.serveApp()
	if !w.Bare {
		w.runProxy()
	}
	m.mu.Lock()
	m.workloads = append(m.workloads, w)
	labels := map[string]string{}
	for k, v := range w.Labels {
		labels[k] = v
	}
	if !w.Bare {
		labels["security.istio.io/tlsMode"] = "istio"
	}
	m.builder.SetIn(w.Cluster, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Name, Labels: labels}, Spec: corev1.PodSpec{ServiceAccountName: w.ServiceAccount},
		Status: corev1.PodStatus{PodIP: w.IP, Phase: corev1.PodRunning},
	})
	for _, s := range m.services {
		m.endpoints(s)
	}
	m.push()
	m.mu.Unlock()
	return w
}

// Remove takes the workload out of the endpoints while its proxy is told to end, as when a pod is deleted: neither waits for
// the other. It returns when the proxy has ended.
func (m *Mesh) Remove(w *Workload) {
	var wg sync.WaitGroup
	wg.Go(w.stop)
	m.mu.Lock()
	m.workloads = slices.DeleteFunc(m.workloads, func(o *Workload) bool { return o == w })
	m.builder.Delete(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Name}})
	for _, s := range m.services {
		m.endpoints(s)
	}
	m.push()
	m.mu.Unlock()
	wg.Wait()
}

// serveApp starts the handler: at the pod's own address when nothing captures it, else where only the proxy finds it.
func (w *Workload) serveApp() {
	if w.Handler == nil && w.Serve == nil {
		return
	}
	addr := "127.0.0.1:0"
	if w.Bare {
		addr = net.JoinHostPort(w.IP, strconv.Itoa(w.Port))
	}
	ln, err := net.Listen("tcp", addr)
	must(w.m.t, err)
	w.app = ln.Addr().String()
	var wg sync.WaitGroup
	if w.Serve != nil {
		wg.Go(func() { _ = w.Serve.Serve(ln) })
		w.m.t.Cleanup(func() {
			w.Serve.Stop()
			wg.Wait()
		})
		return
	}
	s := &http.Server{Handler: w.Handler, ReadHeaderTimeout: time.Minute}
	wg.Go(func() { _ = s.Serve(ln) })
	w.m.t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
}

func (w *Workload) runProxy() {
	t := w.m.t
	principal := fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", w.Namespace, w.ServiceAccount)
	token := filepath.Join(w.m.dir, w.Name+".token")
	must(t, os.WriteFile(token, []byte(principal), 0o600))
	role := "sidecar"
	if w.Gateway {
		role = "router"
	}
	labels := map[string]any{}
	for k, v := range w.Labels {
		labels[k] = v
	}
	meta := map[string]any{"NAMESPACE": w.Namespace, "NAME": w.Name, "LABELS": labels, "CLUSTER_ID": w.Cluster}
	maps.Copy(meta, w.Metadata)
	ready := make(chan struct{})
	b := proxy.Bootstrap{
		NodeID:   fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", role, w.IP, w.Name, w.Namespace, w.Namespace),
		Metadata: meta,
		Workload: conf.Workload{
			Name: w.Name, Namespace: w.Namespace, Canonical: w.Labels["app"], CanonicalRevision: w.Labels["version"], App: w.Labels["app"],
			Version: w.Labels["version"], Cluster: w.Cluster, Principal: principal,
		},
		Discovery: client.DialOptions{Address: w.m.address, RootFile: w.m.roots(), TokenFile: token},
		CertTTL:   time.Hour, Admin: net.JoinHostPort(w.IP, "15000"), DrainTime: time.Second, Stop: listener.Drain{Grace: w.Grace, Limit: max(w.Grace, 100*time.Millisecond)},
		Listen: w.listen, OriginalDst: w.originalDst, Dial: w.dial,
		Ready: func() { close(ready) }, Log: w.m.log.With("proxy", w.Name),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- proxy.Run(ctx, b) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("proxy %s: %v", w.Name, err)
		}
	})
	t.Cleanup(w.stop)
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatalf("proxy %s ended: %v", w.Name, err)
	case <-time.After(15 * time.Second):
		t.Fatalf("proxy %s is not ready: %+v", w.Name, w.m.server.Proxies())
	}
}

// listen opens the proxy's ports at the workload's own address; the inbound listener is the workload's port itself.
func (w *Workload) listen(ctx context.Context, a netip.AddrPort) (net.Listener, error) {
	port := int(a.Port())
	if port == 15006 {
		port = w.Port
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", net.JoinHostPort(w.IP, strconv.Itoa(port)))
}

// originalDst is where a connection wanted to go: to this workload, or where its client said.
func (w *Workload) originalDst(c net.Conn) (netip.AddrPort, bool) {
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	if int(local.Port()) != 15001 {
		return local, true
	}
	select {
	case dst := <-w.want(c.RemoteAddr().(*net.TCPAddr).AddrPort()):
		return dst, true
	case <-time.After(5 * time.Second):
		return netip.AddrPort{}, false
	}
}

func (w *Workload) want(from netip.AddrPort) chan netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.wanted[from]
	if c == nil {
		c = make(chan netip.AddrPort, 1)
		w.wanted[from] = c
	}
	return c
}

// dial makes the proxy's own connections: to its application where that really is, to all else as asked.
func (w *Workload) dial(ctx context.Context, _ netip.Addr, _ conf.Keepalive, addr string) (net.Conn, error) {
	if addr == net.JoinHostPort(w.IP, strconv.Itoa(w.Port)) {
		addr = w.app
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// Client returns an HTTP client in the workload: it knows services by name (name, name.ns, or in full), and its
// connections pass the sidecar.
func (w *Workload) Client() *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return w.Connect(ctx, addr)
	}}
	w.m.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Connect makes a connection from the workload to host:port of a service; it passes the sidecar.
func (w *Workload) Connect(ctx context.Context, addr string) (net.Conn, error) {
	dst, err := w.m.resolve(addr, w.Namespace)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	if w.Bare {
		return d.DialContext(ctx, "tcp", dst.String())
	}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(w.IP, "15001"))
	if err != nil {
		return nil, err
	}
	w.want(c.LocalAddr().(*net.TCPAddr).AddrPort()) <- dst
	return c, nil
}

// resolve is the cluster's DNS.
func (m *Mesh) resolve(addr, namespace string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(ip, uint16(n)), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.services {
		full := s.Name + "." + s.Namespace
		if host == full || host == full+".svc" || host == full+".svc.cluster.local" || host == s.Name && s.Namespace == namespace {
			ip, err := netip.ParseAddr(s.Spec.ClusterIP)
			return netip.AddrPortFrom(ip, uint16(n)), err
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no such host %q", host)
}
