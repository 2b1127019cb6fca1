// Package meshtest runs both halves of the mesh in one process, on loopback and without Kubernetes: the control plane's
// model, translation, xDS server and certificate authority, and real proxies beside HTTP handlers.
//
// Every workload has a loopback address of its own (127.1.x.y). What redirect rules do in a pod, hooks do here: a client
// of a workload reaches its proxy's outbound listener together with the address that it wanted, and the workload's own
// address is the proxy's inbound listener. Everything else is the product.
package meshtest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/identity"
	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/mesh/translate"
	"github.com/meshproof/meshproof/mesh/xds/server"
)

// clusterID is the control plane's own cluster.
const clusterID = "Kubernetes"

// Mesh is a control plane with workloads. Everything ends with the test.
type Mesh struct {
	t       testing.TB
	dir     string
	address string // of the control plane
	server  *server.Server
	log     *slog.Logger

	mu        sync.Mutex
	builder   *model.Builder
	services  map[string]*corev1.Service
	workloads []*Workload
	vip       int
	added     int // workloads, ever
	revision  int64
}

// New starts a control plane that holds the objects of the YAML documents. Services need no address: they get one.
func New(t testing.TB, objects string) *Mesh {
	t.Helper()
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	m := &Mesh{t: t, dir: t.TempDir(), services: map[string]*corev1.Service{}, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	m.builder = model.NewBuilder(model.Mesh{
		TrustDomain: "cluster.local", DomainSuffix: "cluster.local", ClusterID: clusterID, MeshID: "cluster.local", RootNamespace: "istio-system",
	}, time.Now)
	m.server = server.New(server.Options{Source: translate.New(), Log: m.log, Identifier: "meshtest"})
	m.serve()
	m.Apply(objects)
	return m
}

func (m *Mesh) serve() {
	files, err := ca.NewSelfSigned("cluster.local", time.Now())
	must(m.t, err)
	authority, err := ca.New(files, time.Now)
	must(m.t, err)
	cert, err := authority.Serving([]string{"localhost"}, identity.ID{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "istiod"}, time.Hour)
	must(m.t, err)
	must(m.t, os.WriteFile(m.roots(), authority.Roots().PEM(), 0o600))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(m.t, err)
	m.address = fmt.Sprintf("localhost:%d", ln.Addr().(*net.TCPAddr).Port)
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12})))
	m.server.Register(g, tokens{})
	ca.Register(g, authority, tokens{}, m.log)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(ln) })
	m.t.Cleanup(func() {
		m.server.Close()
		g.Stop()
		wg.Wait()
	})
}

func (m *Mesh) roots() string { return filepath.Join(m.dir, "root-cert.pem") }

// tokens takes a bearer token for the identity that it spells.
type tokens struct{}

// Authenticate implements the Authenticators of xDS and of certificates.
func (tokens) Authenticate(ctx context.Context) (identity.ID, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		return identity.Parse(strings.TrimPrefix(v, "Bearer "))
	}
	return identity.ID{}, errors.New("no token")
}

// Apply adds or replaces the objects of the YAML documents and pushes. Refused objects fail the test.
func (m *Mesh) Apply(objects string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(objects), 4096)
	for {
		var raw map[string]any
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		must(m.t, err)
		if raw == nil {
			continue
		}
		m.builder.Set(m.decode(raw))
	}
	m.push()
	if p := m.server.Current().Problems; len(p) > 0 {
		m.t.Fatalf("objects refused: %+v", p)
	}
}

// Delete removes the VirtualService of that name.
func (m *Mesh) Delete(namespace, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.builder.Delete(&networking.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	m.push()
}

func (m *Mesh) decode(raw map[string]any) any {
	kind, _ := raw["kind"].(string)
	m.revision++
	stamp := func(o *metav1.ObjectMeta) {
		if o.Namespace == "" {
			o.Namespace = "default"
		}
		o.Generation = m.revision
	}
	switch kind {
	case "Service":
		o := &corev1.Service{}
		must(m.t, unmarshal(raw, o))
		stamp(&o.ObjectMeta)
		if old := m.services[o.Namespace+"/"+o.Name]; old != nil {
			o.Spec.ClusterIP = old.Spec.ClusterIP
		} else if o.Spec.ClusterIP == "" {
			m.vip++
			o.Spec.ClusterIP = fmt.Sprintf("10.96.%d.%d", m.vip/250, 1+m.vip%250)
		}
		m.services[o.Namespace+"/"+o.Name] = o
		m.endpoints(o)
		return o
	case "VirtualService":
		o := &networking.VirtualService{}
		must(m.t, unmarshal(raw, o))
		stamp(&o.ObjectMeta)
		return o
	case "DestinationRule":
		o := &networking.DestinationRule{}
		must(m.t, unmarshal(raw, o))
		stamp(&o.ObjectMeta)
		return o
	case "Gateway":
		o := &networking.Gateway{}
		must(m.t, unmarshal(raw, o))
		stamp(&o.ObjectMeta)
		return o
	}
	m.t.Fatalf("kind %q is not supported here", kind)
	return nil
}

// Record adds or replaces objects of one cluster, such as namespaces and gateways' Services, and pushes.
func (m *Mesh) Record(cluster string, objects ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range objects {
		m.builder.SetIn(cluster, o)
	}
	m.push()
}

// endpoints makes the EndpointSlices of a service from the workloads that it selects, one in each cluster that has workloads. The
// service is there too.
func (m *Mesh) endpoints(s *corev1.Service) {
	clusters := map[string]bool{clusterID: true}
	for _, w := range m.workloads {
		clusters[w.Cluster] = true
	}
	for c := range clusters {
		if c != clusterID {
			m.builder.SetIn(c, s)
		}
		m.builder.SetIn(c, m.slice(s, c))
	}
}

func (m *Mesh) slice(s *corev1.Service, cluster string) *discoveryv1.EndpointSlice {
	yes, tcp := true, corev1.ProtocolTCP
	es := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}}, AddressType: discoveryv1.AddressTypeIPv4}
	for _, p := range s.Spec.Ports {
		target := p.TargetPort.IntVal
		if target == 0 {
			target = p.Port
		}
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &target, Protocol: &tcp})
	}
	for _, w := range m.workloads {
		if w.Cluster == cluster && w.Namespace == s.Namespace && len(s.Spec.Selector) > 0 && model.Matches(s.Spec.Selector, w.Labels) {
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{w.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: w.Namespace, Name: w.Name},
			})
		}
	}
	return es
}

func (m *Mesh) push() { m.server.Publish(m.builder.Build()) }

// Acked waits until every proxy has acknowledged the newest configuration; a refusal or ten seconds fail the test.
func (m *Mesh) Acked() {
	m.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		open := m.open()
		if len(open) == 0 {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("not acknowledged: %+v", open)
		}
	}
}

// open lists the proxies that have not acknowledged the newest snapshot.
func (m *Mesh) open() []status.Proxy {
	m.t.Helper()
	var out []status.Proxy
	seq := m.server.Current().Sequence
	for _, p := range m.server.Proxies() {
		if p.LastError != "" {
			m.t.Fatalf("proxy %s refused: %s", p.Proxy, p.LastError)
		}
		if p.AckedSnapshot < seq {
			out = append(out, p)
		}
	}
	return out
}

func unmarshal(raw map[string]any, into any) error {
	b, err := json.Marshal(raw)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
