package env

import (
	"context"
	"fmt"
	"time"

	"github.com/meshproof/meshproof/clusters"
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
	// generation. ErrNoControlPlane if nothing could.
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
var ErrNoControlPlane = fmt.Errorf("the lab has no control plane")

// noMesh is the driver "none": Istio's API is there, so that the same objects can be applied, and nothing obeys them.
type noMesh struct{}

func (noMesh) Driver() string                                      { return "none" }
func (noMesh) Labels() map[string]string                           { return nil }
func (noMesh) Synced(context.Context) (string, error)              { return "", nil }
func (noMesh) Ingress() string                                     { return "" }
func (noMesh) Push(context.Context, workload.Object) (Push, error) { return Push{}, ErrNoControlPlane }

func installMesh(ctx context.Context, e *Env, progress clusters.Progress) (Mesh, error) {
	return nil, fmt.Errorf("not built")
}
