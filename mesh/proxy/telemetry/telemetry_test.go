package telemetry

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record is GET /a?b as v1 of reviews answered it.
func record() *Record {
	q := &http1.Request{Method: []byte("GET"), Target: []byte("/a?b"), Host: []byte("reviews:9080"), Minor: 1}
	q.Add([]byte("user-agent"), []byte("curl"))
	q.Add([]byte("x-quote"), []byte("a\"b\n"))
	p := &http1.Response{Status: 200}
	p.Add([]byte("x-envoy-upstream-service-time"), []byte("3"))
	p.Trailers.Add([]byte("sum"), []byte("9"))
	return &Record{
		Req: q, Resp: p, Start: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), Duration: 4 * time.Millisecond, UpstreamTime: 3 * time.Millisecond, Status: 200,
		Details: "via_upstream", BytesIn: 10, BytesOut: 20, HeadIn: 100, Direction: conf.Outbound, Upstream: "10.0.0.3:9080", UpstreamLocal: "10.0.0.1:5000",
		Cluster:   &conf.Cluster{Name: "outbound|9080|v1|reviews.default.svc.cluster.local", Services: []conf.Service{{Name: "reviews", Namespace: "default", Host: "reviews.default.svc.cluster.local"}}},
		Endpoint:  &conf.Endpoint{Workload: &conf.Workload{Name: "reviews-v1", Namespace: "default", Canonical: "reviews", CanonicalRevision: "v1", Cluster: "east", App: "reviews", Version: "v1"}},
		RouteName: "default", Local: netip.MustParseAddrPort("10.96.0.1:9080"), Remote: netip.MustParseAddrPort("10.0.0.1:4000"), SNI: "sni",
		MTLS: true, UpstreamURI: "spiffe://td/ns/default/sa/reviews", PeerURI: "spiffe://td/ns/default/sa/peer", LocalURI: "spiffe://td/ns/default/sa/me",
	}
}

func TestFormat(t *testing.T) {
	tcp := &Record{Start: record().Start, Flags: NoHealthyUpstream | UpstreamOverflow}
	for _, c := range []struct {
		text, want, tcp string
	}{
		{"%START_TIME%", "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678Z"},
		{"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%", "GET /a?b HTTP/1.1", "- - -"},
		{"%REQ(:AUTHORITY)% %REQ(:SCHEME)% %REQ(USER-AGENT)% %REQ(NONE)% %REQ(NONE?USER-AGENT)%", "reviews:9080 http curl - curl", "- - - - -"},
		{"%REQ(USER-AGENT):2% 100%%", "cu 100%", "- 100%"},
		{"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% %RESP(A?B)% %TRAILER(SUM)%", "3 - 9", "- - -"},
		{"%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "200 - via_upstream", "0 UH,UO -"},
		{"%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_DURATION%", "10 20 4 3", "0 0 0 0"},
		{"%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS%", "10.0.0.3:9080 outbound|9080|v1|reviews.default.svc.cluster.local 10.0.0.1:5000", "- - -"},
		{"%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%", "10.96.0.1:9080 10.0.0.1 4000", "- - 0"},
		{"%REQUESTED_SERVER_NAME% %ROUTE_NAME% %DOWNSTREAM_PEER_URI_SAN%", "sni default spiffe://td/ns/default/sa/peer", "- - -"},
	} {
		f, err := conf.ParseFormat(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(AppendFormat(nil, f, record(), "-")); got != c.want {
			t.Errorf("%s: %q, want %q", c.text, got, c.want)
		}
		if got := string(AppendFormat(nil, f, tcp, "-")); got != c.tcp {
			t.Errorf("%s of TCP: %q, want %q", c.text, got, c.tcp)
		}
	}
}

func TestFlags(t *testing.T) {
	for f, want := range map[Flags]string{0: "-", NoHealthyUpstream: "UH", UpstreamOverflow: "UO", StreamIdleTimeout: "SI", UpstreamConnectionFailure | RetryLimitExceeded: "UF,URX", NoRoute | NoClusterFound: "NR,NC"} {
		if got := f.String(); got != want {
			t.Errorf("%d: %s, want %s", f, got, want)
		}
	}
}

// sink is a file in memory.
type memory struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	closed bool
	err    error
}

func (m *memory) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, m.err
	}
	return m.buf.Write(p)
}

func (m *memory) Close() error { m.closed = true; return nil }

func (m *memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.buf.String()
}

func text(t *testing.T, s string) *conf.Format {
	t.Helper()
	f, err := conf.ParseFormat(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestLogs: lines are written within a second, many at once sooner, and what waits at the end is not lost.
func TestLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := map[string]*memory{}
		l := &Logs{Open: func(path string) (io.WriteCloser, error) {
			if path == "/bad" {
				return nil, errors.New("no such place")
			}
			files[path] = &memory{}
			return files[path], nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- l.Run(ctx) }()
		logs := []conf.AccessLog{
			{Path: "/text", Format: text(t, "%REQ(:METHOD)% %RESPONSE_CODE%\n")},
			{Path: "/json", JSON: []conf.JSONField{{Key: "ua", Format: text(t, "%REQ(USER-AGENT)%")}, {Key: "q", Format: text(t, "%REQ(X-QUOTE)%")}, {Key: "none", Format: text(t, "%REQ(NONE)%")}}},
			{Path: "/bad", Format: text(t, "lost\n")},
		}
		l.Write(logs, record())
		if files["/text"].String() != "" {
			t.Error("a line was written on its own")
		}
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if got := files["/text"].String(); got != "GET 200\n" {
			t.Errorf("text: %q", got)
		}
		if got := files["/json"].String(); got != `{"ua":"curl","q":"a\"b\n","none":"-"}`+"\n" {
			t.Errorf("json: %q", got)
		}
		long := []conf.AccessLog{{Path: "/text", Format: &conf.Format{Parts: []conf.FormatPart{{Literal: bytes.Repeat([]byte("x"), gathered)}}}}}
		l.Write(long, record())
		if got := len(files["/text"].String()); got != 8+gathered {
			t.Errorf("%d bytes are written, want all %d", got, 8+gathered)
		}
		l.Write(logs, record())
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if got := files["/text"].String(); !strings.HasSuffix(got, "xGET 200\n") || !files["/text"].closed {
			t.Error("the last line is lost, or the file is open")
		}
	})
}

// TestLogThatFails: a sink that cannot be written costs its lines, never the traffic's memory.
func TestLogThatFails(t *testing.T) {
	m := &memory{err: errors.New("disk full")}
	l := &Logs{Open: func(string) (io.WriteCloser, error) { return m, nil }}
	logs := []conf.AccessLog{{Path: "/x", Format: &conf.Format{Parts: []conf.FormatPart{{Literal: bytes.Repeat([]byte("x"), 1000)}}}}}
	for range 1000 {
		l.Write(logs, record())
	}
	if n := cap(l.sink("/x").buf); n > 4*gathered {
		t.Errorf("%d bytes wait for a disk that is full", n)
	}
}

// TestMetrics: Istio's names, labels and buckets, for a sidecar's two directions and for TCP.
func TestMetrics(t *testing.T) {
	m := NewMetrics(conf.Workload{Name: "productpage", Namespace: "default", Canonical: "productpage", CanonicalRevision: "v1", Cluster: "east", App: "productpage", Version: "v1", Principal: "spiffe://td/ns/default/sa/productpage"}, "1.2.3")
	out := record()
	m.HTTP(out)
	m.HTTP(out)
	failed := record()
	failed.Status, failed.Flags, failed.Resp, failed.Endpoint, failed.Duration = 503, UpstreamOverflow, nil, nil, time.Minute
	m.HTTP(failed)
	in := record()
	in.Direction, in.Cluster, in.Endpoint = conf.Inbound, &conf.Cluster{Name: "inbound|9080||"}, nil
	in.Peer = &conf.Workload{Name: `odd"name`, Namespace: "other"}
	m.HTTP(in)
	tcp := record()
	tcp.Req, tcp.Resp = nil, nil
	m.TCPOpened(tcp)
	m.TCPClosed(tcp)
	tcp.Flags = UpstreamConnectionFailure | RetryLimitExceeded
	m.TCPOpened(tcp)
	m.TCPClosed(tcp)
	// The same labels from a cluster of a later push are one series.
	again := record()
	m.HTTP(again)
	var got bytes.Buffer
	m.WritePrometheus(&got)
	path := filepath.Join("testdata", "metrics.txt")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("metrics (write them anew with -update):\n%s", got.String())
	}
	if n := strings.Count(got.String(), `request_protocol="tcp",response_flags="UF,URX"`); n != 4 {
		t.Errorf("%d series of connections that failed, want 4", n)
	}
	if n := strings.Count(got.String(), "istio_requests_total{"); n != 3 {
		t.Errorf("%d series of requests, want 3", n)
	}
	if n := testing.AllocsPerRun(100, func() { m.HTTP(out) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// TestMetricsOverPushes: every push makes new clusters and workloads; equal ones go on in the same series, and those that
// left are not held.
func TestMetricsOverPushes(t *testing.T) {
	m := NewMetrics(conf.Workload{Name: "a"}, "1.2.3")
	push := func() weak.Pointer[conf.Cluster] {
		r := record()
		w := *r.Endpoint.Workload
		r.Cluster = &conf.Cluster{Name: r.Cluster.Name, Services: slices.Clone(r.Cluster.Services)}
		r.Endpoint = &conf.Endpoint{Workload: &w}
		m.HTTP(r)
		m.TCPOpened(r)
		m.TCPClosed(r)
		return weak.Make(r.Cluster)
	}
	var last weak.Pointer[conf.Cluster]
	for range 1000 {
		last = push()
	}
	if len(m.http.all) != 1 || len(m.tcp.all) != 1 {
		t.Errorf("%d and %d series, want one of each", len(m.http.all), len(m.tcp.all))
	}
	m.Forget()
	runtime.GC()
	if last.Value() != nil {
		t.Error("a cluster that left is still held")
	}
	push()
	var got bytes.Buffer
	m.WritePrometheus(&got)
	for _, want := range []string{"istio_requests_total{", "istio_tcp_connections_opened_total{", "istio_tcp_connections_closed_total{"} {
		if i := strings.Index(got.String(), want); i < 0 || !strings.Contains(strings.SplitN(got.String()[i:], "\n", 2)[0], "} 1001") {
			t.Errorf("%s is not 1001:\n%s", want, got.String())
		}
	}
}

// TestMetricsOfManyPeers: who a client says it is costs a series only so often, and only if it could be a name.
func TestMetricsOfManyPeers(t *testing.T) {
	m := NewMetrics(conf.Workload{Name: "a"}, "1.2.3")
	in := record()
	in.Direction, in.Endpoint = conf.Inbound, nil
	for i := range 3 * maxPeers {
		in.Peer = &conf.Workload{Name: strconv.Itoa(i)}
		m.HTTP(in)
	}
	in.Peer = &conf.Workload{Name: "0"} // known: counted on
	m.HTTP(in)
	if n := len(m.http.all); n != maxPeers+1 {
		t.Errorf("%d series, want %d and one of unknown peers", n, maxPeers)
	}
	if n := len(m.http.known); n > maxKnown {
		t.Errorf("%d keys are remembered", n)
	}
	var got bytes.Buffer
	m.WritePrometheus(&got)
	requests, _, _ := strings.Cut(got.String(), "# TYPE istio_request_duration")
	for _, want := range []string{`source_workload="0",.*} 2$`, fmt.Sprintf(`source_workload="unknown",.*} %d$`, 2*maxPeers)} {
		if !regexp.MustCompile(`(?m)^istio_requests_total{.*` + want).MatchString(requests) {
			t.Errorf("no series like %s", want)
		}
	}
	m = NewMetrics(conf.Workload{Name: "a"}, "1.2.3")
	in.Peer = &conf.Workload{Name: "b", App: strings.Repeat("x", 254)}
	m.HTTP(in)
	got.Reset()
	m.WritePrometheus(&got)
	if !strings.Contains(got.String(), `source_workload="unknown"`) {
		t.Error("a peer whose names are no names has labels")
	}
}

// TestBuild: the version is told before there is any traffic.
func TestBuild(t *testing.T) {
	for version, tag := range map[string]string{"1.2.3": "1.2.3", "": "unknown"} {
		var got bytes.Buffer
		NewMetrics(conf.Workload{Name: "a"}, version).WritePrometheus(&got)
		if want := "# TYPE istio_build gauge\nistio_build{component=\"proxy\",tag=\"" + tag + "\"} 1\n"; got.String() != want {
			t.Errorf("%q: %s, want %s", version, got.String(), want)
		}
	}
}
