package env

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/objects"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// MeshNamespace is where the control plane and the gateways run.
const MeshNamespace = "istio-system"

// Mesh is an installed mesh as scenarios see it.
type Mesh interface {
	// Driver is the word that labs select it with.
	Driver() string
	// Labels are what a namespace needs for its pods to become part of the mesh.
	Labels() map[string]string
	// Synced waits until every proxy has acknowledged its configuration and says so in a few words, "" if there are none.
	Synced(ctx context.Context) (string, error)
	// Push says how far a change is: which proxies have acknowledged the configuration that holds the object at this
	// generation. ErrNoControlPlane if nothing could, a *RefusedError if the control plane does not honour it.
	Push(ctx context.Context, o workload.Object) (Push, error)
	// Ingress is the address, for Env.Dial, of the HTTP port of the gateway; "" if there is no gateway.
	Ingress() string
}

// Push is the way of one change to the proxies.
type Push struct {
	Ingested bool // the control plane has built a configuration with the change
	Built    time.Time
	Proxies  []ProxyPush
}

// ProxyPush is the way of one change to one proxy.
type ProxyPush struct {
	Proxy   string // pod.namespace
	Acked   bool
	AckedAt time.Time // by the clock of the control plane's host
	Nack    string    // why the proxy refused it, "" if it did not
}

// Acked counts the proxies that have acknowledged.
func (p Push) Acked() int {
	n := 0
	for _, x := range p.Proxies {
		if x.Acked {
			n++
		}
	}
	return n
}

// Complete returns nil when every proxy has acknowledged, or what is missing.
func (p Push) Complete() error {
	if !p.Ingested {
		return fmt.Errorf("the control plane has not taken the change in")
	}
	if len(p.Proxies) == 0 {
		return fmt.Errorf("no proxy is connected")
	}
	for _, x := range p.Proxies {
		if x.Nack != "" {
			return fmt.Errorf("%s refused it: %s", x.Proxy, x.Nack)
		}
	}
	for _, x := range p.Proxies {
		if !x.Acked {
			return fmt.Errorf("%d of %d proxies acked, %s has not", p.Acked(), len(p.Proxies), x.Proxy)
		}
	}
	return nil
}

// Live is when the last proxy acknowledged; zero if one has not.
func (p Push) Live() time.Time {
	last := time.Time{}
	for _, x := range p.Proxies {
		if !x.Acked {
			return time.Time{}
		}
		if x.AckedAt.After(last) {
			last = x.AckedAt
		}
	}
	return last
}

// ErrNoControlPlane means that the lab has none, by choice.
var ErrNoControlPlane = errors.New("the lab has no control plane")

// noMesh is the driver "none": Istio's API is there, so that the same objects can be applied, and nothing obeys them.
type noMesh struct{}

func (noMesh) Driver() string                                      { return "none" }
func (noMesh) Labels() map[string]string                           { return nil }
func (noMesh) Synced(context.Context) (string, error)              { return "", nil }
func (noMesh) Ingress() string                                     { return "" }
func (noMesh) Push(context.Context, workload.Object) (Push, error) { return Push{}, ErrNoControlPlane }

// installMeshes installs the mesh in every cluster and attaches to it.
func (e *Env) installMeshes(ctx context.Context, progress clusters.Progress) error {
	driver, err := install.ByName(e.Spec.Mesh.Driver)
	if err != nil {
		return err
	}
	if e.Spec.Mesh.Deferred && driver.Name() != "none" {
		progress(clusters.Event{Phase: phaseMesh, Detail: driver.Name() + ": left to whoever uses the lab (deferred)", Done: true})
		for _, s := range e.Sites {
			s.Mesh = noMesh{}
		}
		return nil
	}
	progress(clusters.Event{Phase: phaseMesh, Detail: driver.Name() + " " + e.Version})
	ctx, cancel := context.WithTimeoutCause(ctx, meshBudget, fmt.Errorf("not ready within %s", meshBudget))
	defer cancel()
	switch {
	case driver.Name() == "none":
		// Istio's API without anything behind it, so that the same objects can be applied.
		for _, s := range e.Sites {
			if err := s.applyCRDs(ctx); err != nil {
				return err
			}
			s.Mesh = noMesh{}
		}
		progress(clusters.Event{Phase: phaseMesh, Detail: "none: Istio's API is there, nothing obeys it", Done: true})
		return nil
	case len(e.Sites) > 1:
		return e.joinMeshes(ctx, driver, progress)
	}
	s := e.Sites[0]
	err = driver.Install(ctx, s.Client.Config(), install.Options{
		Tag: e.Version, Revision: e.Spec.Mesh.Revision, ClusterID: s.ID,
		Progress: func(component, detail string) {
			progress(clusters.Event{Phase: phaseMesh, Detail: component + ": " + detail})
		},
	})
	if err != nil {
		return err
	}
	if s.Mesh, err = e.attach(ctx, s, driver.Name()); err != nil {
		return err
	}
	progress(clusters.Event{
		Phase: phaseMesh, Done: true,
		Detail: fmt.Sprintf("%s %s, revision %s, control plane and ingress gateway Ready", driver.Name(), e.Version, e.Spec.Mesh.Revision),
	})
	return nil
}

// attach finds the control plane and the gateway of a site's mesh.
func (e *Env) attach(ctx context.Context, s *Site, driver string) (Mesh, error) {
	m := &istioMesh{served: e.servedBy(s), driver: driver, revision: e.Spec.Mesh.Revision, istiod: fmt.Sprintf("istiod:%d", monitoringPort)}
	find := func(ctx context.Context) (string, error) {
		return s.PodAddress(ctx, MeshNamespace, "app=istiod,istio.io/rev="+m.revision, monitoringPort)
	}
	_, err := find(ctx)
	if err != nil {
		return nil, err
	}
	// The pod may be another by the time of the next connection.
	m.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: 4, DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			addr, err := find(ctx)
			if err != nil {
				return nil, err
			}
			return e.Dial(ctx, network, addr)
		},
	}}
	if m.ingress, err = s.ServiceNodePort(ctx, MeshNamespace, ingressName, 80); err != nil {
		return nil, err
	}
	return m, nil
}

// meshBudget bounds an installation; pods of it start within seconds.
const meshBudget = 90 * time.Second

// monitoringPort is where istiod tells about itself.
const monitoringPort = 15014

// applyCRDs makes the custom resource definitions and waits until the API server serves them.
func (s *Site) applyCRDs(ctx context.Context) error {
	crds, err := s.Client.Apply(ctx, "definitions", objects.CRDs())
	if err != nil {
		return err
	}
	_, err = expect.Converge(ctx, expect.Budget{Within: 20 * time.Second}, func(context.Context) (struct{}, error) {
		for _, c := range crds {
			if ok, err := s.Client.Established(ctx, c.Name); !ok {
				return struct{}{}, errors.Join(fmt.Errorf("CustomResourceDefinition %s is not established", c.Name), err)
			}
		}
		return struct{}{}, nil
	})
	return err
}

// istioMesh is a mesh whose control plane answers on istiod's debug endpoints.
type istioMesh struct {
	served   []*Site // whose proxies are connected to it; its own cluster first
	driver   string
	revision string
	istiod   string // host:port of the control plane's debug endpoints, for http alone
	ingress  string
	http     *http.Client
}

func (m *istioMesh) Driver() string  { return m.driver }
func (m *istioMesh) Ingress() string { return m.ingress }

func (m *istioMesh) Labels() map[string]string {
	if m.revision == "default" {
		return map[string]string{"istio-injection": "enabled"}
	}
	return map[string]string{"istio.io/rev": m.revision}
}

func (m *istioMesh) Push(ctx context.Context, o workload.Object) (Push, error) {
	key := model.Key{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
	p, err := status.Pushz(ctx, m.http, "http://"+m.istiod, key, o.Generation)
	if err != nil {
		return Push{}, err
	}
	out := Push{Ingested: p.Snapshot != 0, Built: p.BuiltAt}
	for _, x := range p.Proxies {
		out.Proxies = append(out.Proxies, ProxyPush{Proxy: x.Proxy, Acked: x.Acked, AckedAt: x.AckedAt, Nack: x.Nack})
	}
	if out.Complete() != nil {
		return out, nil
	}
	// Proxies also acknowledge a configuration that leaves the object out.
	problems, err := status.Problems(ctx, m.http, "http://"+m.istiod)
	if err != nil {
		return out, err
	}
	for _, x := range problems {
		if x.Object == key && x.Generation == o.Generation && x.InForce != "this" {
			return out, &RefusedError{Object: o, Why: x.Problem.String()}
		}
	}
	return out, nil
}

// RefusedError says that the control plane does not honour an object as it stands; waiting does not help.
type RefusedError struct {
	Object workload.Object
	Why    string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s is refused: %s", e.Object, e.Why) }

func (m *istioMesh) Synced(ctx context.Context) (string, error) {
	return expect.Converge(ctx, expect.Budget{Within: 30 * time.Second}, func(ctx context.Context) (string, error) {
		proxies, err := status.Syncz(ctx, m.http, "http://"+m.istiod)
		if err != nil {
			return "", err
		}
		connected := map[string]bool{}
		for _, p := range proxies {
			connected[p.ClusterID+"/"+p.Proxy] = true
			if p.LastError != "" {
				return "", fmt.Errorf("proxy %s refused its configuration: %s", p.Proxy, p.LastError)
			}
			for _, t := range []struct{ name, sent, acked string }{
				{"clusters", p.ClusterSent, p.ClusterAcked}, {"listeners", p.ListenerSent, p.ListenerAcked},
				{"routes", p.RouteSent, p.RouteAcked}, {"endpoints", p.EndpointSent, p.EndpointAcked},
			} {
				if status.State(t.sent, t.acked) == "STALE" {
					return "", fmt.Errorf("proxy %s has not acknowledged its %s", p.Proxy, t.name)
				}
			}
		}
		for _, s := range m.served {
			want, err := s.Client.Proxies(ctx)
			if err != nil {
				return "", err
			}
			for _, w := range want {
				if !connected[s.ID+"/"+w] {
					return "", fmt.Errorf("the proxy of %s in cluster %s is not connected to the control plane", w, s.ID)
				}
			}
		}
		return fmt.Sprintf("%d proxies synced", len(proxies)), nil
	})
}
