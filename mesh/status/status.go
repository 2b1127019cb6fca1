// Package status is how the control plane tells what every proxy was sent and has acknowledged: the JSON shapes of its
// debug endpoints, and a client for them.
package status

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/model"
)

// Paths of the endpoints.
const (
	SynczPath  = "/debug/syncz"
	PushzPath  = "/debug/pushz"
	ConfigPath = "/debug/configz"
)

// Proxy is a row of syncz, with the names that Istio gives its fields. A nonce sent and not acked is pending.
type Proxy struct {
	ClusterID     string    `json:"cluster_id,omitempty"`
	Proxy         string    `json:"proxy"` // pod.namespace
	ProxyType     string    `json:"proxy_type,omitempty"`
	ProxyVersion  string    `json:"proxy_version,omitempty"`
	IstioVersion  string    `json:"istio_version,omitempty"`
	ClusterSent   string    `json:"cluster_sent,omitempty"`
	ClusterAcked  string    `json:"cluster_acked,omitempty"`
	ListenerSent  string    `json:"listener_sent,omitempty"`
	ListenerAcked string    `json:"listener_acked,omitempty"`
	RouteSent     string    `json:"route_sent,omitempty"`
	RouteAcked    string    `json:"route_acked,omitempty"`
	EndpointSent  string    `json:"endpoint_sent,omitempty"`
	EndpointAcked string    `json:"endpoint_acked,omitempty"`
	ConnectedAt   time.Time `json:"connected_at"`
	Snapshot      uint64    `json:"snapshot"`       // newest one whose push was begun
	AckedSnapshot uint64    `json:"acked_snapshot"` // newest one acknowledged in full
	LastError     string    `json:"last_error,omitempty"`
	Identifier    string    `json:"control_plane,omitempty"`
}

// State is Istio's word for a type's state: SYNCED, STALE or NOT SENT.
func State(sent, acked string) string {
	switch {
	case sent == "":
		return "NOT SENT"
	case sent == acked:
		return "SYNCED"
	default:
		return "STALE"
	}
}

// Push says how far one version of one object has come.
type Push struct {
	// Snapshot is the first one that holds the object at that generation or a newer one; 0 means not yet ingested.
	Snapshot uint64      `json:"snapshot"`
	BuiltAt  time.Time   `json:"builtAt"`
	Proxies  []ProxyPush `json:"proxies"`
	// InForce is "previous" or "none" when the newest version of the object has errors and traffic does not obey it.
	InForce string `json:"inForce,omitempty"`
}

// ProxyPush is one proxy's part of a Push. A proxy for which the snapshot changed nothing counts as acked when that was found.
type ProxyPush struct {
	Proxy   string    `json:"proxy"`
	Type    string    `json:"type"` // sidecar | router
	Sent    bool      `json:"sent"`
	Acked   bool      `json:"acked"`
	AckedAt time.Time `json:"ackedAt"`
	Nack    string    `json:"nack,omitempty"`
}

// Done tells whether the object was ingested, is in force, and every connected proxy has acknowledged it.
func (p Push) Done() bool {
	if p.Snapshot == 0 || p.InForce != "" {
		return false
	}
	for _, x := range p.Proxies {
		if !x.Acked {
			return false
		}
	}
	return true
}

// Absent is the generation to ask Pushz for when an object is deleted.
const Absent = -1

// Pushz asks a control plane at base ("http://host:15014") how far an object has come.
func Pushz(ctx context.Context, c *http.Client, base string, object model.Key, generation int64) (Push, error) {
	q := url.Values{"kind": {object.Kind}, "namespace": {object.Namespace}, "name": {object.Name}, "generation": {strconv.FormatInt(generation, 10)}}
	var out Push
	err := get(ctx, c, base, PushzPath+"?"+q.Encode(), &out)
	return out, err
}

// Syncz asks for one row a connected proxy.
func Syncz(ctx context.Context, c *http.Client, base string) ([]Proxy, error) {
	var out []Proxy
	err := get(ctx, c, base, SynczPath, &out)
	return out, err
}

// Problems asks for everything wrong with the mesh's objects.
func Problems(ctx context.Context, c *http.Client, base string) ([]model.ObjectProblem, error) {
	var out []model.ObjectProblem
	err := get(ctx, c, base, ConfigPath+"?problems", &out)
	return out, err
}

func get(ctx context.Context, c *http.Client, base, path string, out any) error {
	u := strings.TrimSuffix(base, "/") + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("control plane: GET %s: %s: %s", path, resp.Status, strings.TrimSpace(string(b)))
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("control plane: GET %s: %w", path, err)
	}
	return nil
}
