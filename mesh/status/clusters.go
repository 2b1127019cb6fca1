package status

import (
	"context"
	"net/http"
	"time"
)

// ClusterzPath lists the remote clusters.
const ClusterzPath = "/debug/clusterz"

// Cluster says how a remote cluster is.
type Cluster struct {
	Cluster   string    `json:"cluster"`
	Secret    string    `json:"secret"`
	Synced    bool      `json:"synced"`    // read at least once; what was read stays in force while the cluster cannot be reached
	Reachable bool      `json:"reachable"` // now
	Since     time.Time `json:"since"`     // it is, or is not, reachable
	Error     string    `json:"error,omitempty"`
}

// RegisterClusters adds the endpoint that lists the remote clusters.
func RegisterClusters(mux *http.ServeMux, list func() []Cluster) {
	mux.HandleFunc("GET "+ClusterzPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, list()) })
}

// Clusterz asks a control plane at base how the remote clusters are.
func Clusterz(ctx context.Context, c *http.Client, base string) ([]Cluster, error) {
	var out []Cluster
	err := get(ctx, c, base, ClusterzPath, &out)
	return out, err
}
