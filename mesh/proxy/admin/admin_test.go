package admin

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/outlier"
	"github.com/meshproof/meshproof/mesh/proxy/secrets"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// example is two clusters: one with three endpoints in two places, of which one is ejected and one drains, and one that sends
// to where connections were bound for.
func example(t *testing.T) *upstream.Set {
	t.Helper()
	dial := func(context.Context, netip.Addr, conf.Keepalive, string) (net.Conn, error) {
		return nil, errors.New("refused")
	}
	set := upstream.NewSet(nil, dial)
	detection := conf.DefaultOutlier
	detection.Consecutive5xx, detection.MaxPercent, detection.Interval, detection.BaseEjection = 2, 50, time.Second, 4*time.Second
	endpoint := func(addr string, change ...func(*conf.Endpoint)) conf.Endpoint {
		e := conf.Endpoint{Addr: netip.MustParseAddrPort(addr), Weight: 1}
		for _, c := range change {
			c(&e)
		}
		return e
	}
	cfg := &conf.Config{
		Listeners: map[string]*conf.Listener{"0.0.0.0_80": {Name: "0.0.0.0_80", Addrs: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:80")}}},
		Clusters: map[string]*conf.Cluster{
			"outbound|80||a.b.svc.cluster.local": {
				Name: "outbound|80||a.b.svc.cluster.local", Discovery: conf.EDS, ServiceName: "a.b", ChoiceCount: 2, Outlier: &detection,
				Breakers: conf.Breakers{Connections: 100, Pending: 10, Requests: conf.Unlimited, Retries: 3},
				Endpoints: &conf.Endpoints{Name: "a.b", Localities: []conf.Locality{
					{Region: "r1", Zone: "z1", Weight: 2, Endpoints: []conf.Endpoint{endpoint("10.0.0.1:80"), endpoint("10.0.0.2:80", func(e *conf.Endpoint) { e.Weight, e.Hostname = 5, "two" })}},
					{Region: "r2", Priority: 1, Weight: 1, Endpoints: []conf.Endpoint{endpoint("[fd00::1]:80", func(e *conf.Endpoint) { e.Draining = true })}},
				}},
			},
			"inbound|80||": {Name: "inbound|80||", Discovery: conf.OriginalDstDiscovery, LB: conf.OriginalDst, Breakers: conf.DefaultBreakers},
		},
	}
	set.Apply(cfg)
	m := set.View().Cluster("outbound|80||a.b.svc.cluster.local").Members
	m[0].Report(outlier.Answered, 500)
	m[1].Report(outlier.Answered, 503)
	m[1].Report(outlier.Answered, 503)
	m[1].Requests.Add(2)
	m[1].Errors.Add(2)
	m[0].Report(outlier.Answered, 500) // the second of its row, but 2 of 3 is over the cap
	return set
}

func source(set *upstream.Set) Source {
	return Source{
		Dump: func(eds bool, resource string) ([]byte, error) { return []byte(resource), nil },
		View: set.View, Events: set.OutlierEvents(), Secrets: &secrets.Store{},
		State: func() string { return "LIVE" }, Started: time.Now(), NodeID: "sidecar~10.0.0.9~p.n~n.svc.cluster.local", Version: "1",
		Counters: func() map[string]int64 {
			return map[string]int64{"control_plane.acks": 3, "control_plane.connected_state": 1}
		},
		Prometheus: func(io.Writer) {},
		Addrs:      func(string) []net.Addr { return []net.Addr{&net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 8080}} },
	}
}

func page(t *testing.T, s Source, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(s).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != 200 {
		t.Fatalf("%s: status %d: %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// TestPages: every page of live state, as it stands.
func TestPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands still
		set := example(t)
		s := source(set)
		var prom bytes.Buffer
		s.WriteClusterMetrics(&prom)
		for name, got := range map[string]string{
			"clusters.txt": page(t, s, "/clusters"), "clusters.json": page(t, s, "/clusters?format=json"), "stats.txt": page(t, s, "/stats"),
			"stats-filtered.json": page(t, s, "/stats?format=json&filter=ejections_enforced"), "stats-none.json": page(t, s, "/stats?format=json&filter=nothing"), "prometheus.txt": prom.String(),
			"outlier_events.jsonl": page(t, s, "/outlier_events"), "listeners.txt": page(t, s, "/listeners"), "listeners.json": page(t, s, "/listeners?format=json"),
			"server_info.json": page(t, s, "/server_info"), "certs.json": page(t, s, "/certs"), "index.txt": page(t, s, "/"),
		} {
			golden(t, name, got)
		}
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (write it anew with -update):\n%s", name, got)
	}
}

// TestJSONIsEnvoys: other tools read these pages as protos, strictly.
func TestJSONIsEnvoys(t *testing.T) {
	s := source(example(t))
	var c adminv3.Clusters
	if err := protojson.Unmarshal([]byte(page(t, s, "/clusters?format=json")), &c); err != nil {
		t.Fatal(err)
	}
	hosts := c.ClusterStatuses[1].HostStatuses
	if len(hosts) != 3 || hosts[0].HealthStatus.FailedOutlierCheck || !hosts[1].HealthStatus.FailedOutlierCheck || hosts[2].HealthStatus.EdsHealthStatus.String() != "DRAINING" || hosts[2].Priority != 1 {
		t.Errorf("%v", hosts)
	}
	if th := c.ClusterStatuses[1].CircuitBreakers.Thresholds[0]; th.MaxConnections.GetValue() != 100 || th.MaxRetries.GetValue() != 3 {
		t.Errorf("%v", th)
	}
	var l adminv3.Listeners
	if err := protojson.Unmarshal([]byte(page(t, s, "/listeners?format=json")), &l); err != nil {
		t.Fatal(err)
	}
	if a := l.ListenerStatuses[0].LocalAddress.GetSocketAddress(); a.GetPortValue() != 8080 {
		t.Errorf("%v", a)
	}
}

func TestReadyAndLogging(t *testing.T) {
	s := source(example(t))
	s.State = func() string { return "DRAINING" }
	s.Level = &slog.LevelVar{}
	s.Dump = func(bool, string) ([]byte, error) { return nil, errors.New("no dump") }
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/ready", 503, "DRAINING\n"},
		{"POST", "/logging?level=debug", 200, "meshproxy: debug"},
		{"POST", "/logging?level=loud", 400, "want debug"},
		{"POST", "/logging", 200, "meshproxy: debug"},
		{"GET", "/logging", 405, ""},
		{"GET", "/config_dump", 500, "no dump"},
		{"GET", "/nothing", 404, ""},
	} {
		w := httptest.NewRecorder()
		Handler(s).ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
	s.Level = nil
	w := httptest.NewRecorder()
	Handler(s).ServeHTTP(w, httptest.NewRequest("POST", "/logging?level=info", nil))
	if w.Code != 501 {
		t.Errorf("without a level: %d", w.Code)
	}
}
