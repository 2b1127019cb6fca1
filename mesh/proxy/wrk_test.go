package proxy

import (
	"os"
	"os/signal"
	"testing"

	"github.com/meshproof/meshproof/mesh/xds"
)

// TestServeForLoad is no test of its own: it serves a control plane on which a proxy process can be measured from outside
// (docs/proxy.md). It runs only when told where the proxy is to listen and where the back ends are.
func TestServeForLoad(t *testing.T) {
	listen := os.Getenv("MESHPROXY_LOAD_LISTEN")
	if listen == "" {
		t.Skip("MESHPROXY_LOAD_LISTEN is not set")
	}
	a := newADS(t)
	act := weighted("v1", 90, "v2", 10)
	act.RetryPolicy = istioRetries(t)
	a.put(xds.Set{
		Clusters:  []*clusterPB{edsCluster("v1"), edsCluster("v2")},
		Endpoints: []*claPB{cla(t, "v1", os.Getenv("MESHPROXY_LOAD_V1")), cla(t, "v2", os.Getenv("MESHPROXY_LOAD_V2"))},
		Listeners: []*listenerPB{httpListener(t, listen, "80")},
		Routes:    []*routesPB{table("80", []string{"*"}, prefix("/", act))},
	})
	if err := os.WriteFile(os.Getenv("MESHPROXY_LOAD_FILE"), []byte(a.addr), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
}
