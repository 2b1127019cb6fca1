package telemetry

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Metrics counts Istio's standard metrics. One exchange costs one map look-up and a few atomic additions.
type Metrics struct {
	self    conf.Workload
	version string

	mu    sync.RWMutex
	http  seriesOf[httpKey, httpSeries]
	tcp   seriesOf[tcpKey, tcpSeries]
	grpc  map[string]*messageSeries  // by labels
	peers map[conf.Workload]struct{} // those that have labels
}

// seriesOf has every series by its labels. Rendering them for each exchange would be slow, so known has them by what the
// labels are made of as well; it may be emptied at any time.
type seriesOf[K comparable, S any] struct {
	all   map[string]*S
	known map[K]*S
}

const (
	// maxKnown bounds what is held of clusters and workloads that left.
	maxKnown = 4096
	// maxPeers bounds how many peers have labels: who they are is theirs to say. Others are unknown.
	maxPeers = 512
	// maxName is that of Kubernetes. A peer with a longer one is unknown.
	maxName = 253
)

// NewMetrics returns counters for a proxy of the given workload and version; "" is an unknown one. self must not change.
func NewMetrics(self conf.Workload, version string) *Metrics {
	m := &Metrics{self: self, version: version, grpc: map[string]*messageSeries{}, peers: map[conf.Workload]struct{}{}}
	m.http.all, m.http.known = map[string]*httpSeries{}, map[httpKey]*httpSeries{}
	m.tcp.all, m.tcp.known = map[string]*tcpSeries{}, map[tcpKey]*tcpSeries{}
	return m
}

// Forget lets go of clusters and workloads, of which there are new ones now. Counters go on.
func (m *Metrics) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.http.known)
	clear(m.tcp.known)
}

// add returns the series of labels, and remembers it by k. The caller holds the lock.
func (s *seriesOf[K, S]) add(k K, labels string) *S {
	if len(s.known) >= maxKnown {
		clear(s.known)
	}
	x := s.all[labels]
	if x == nil {
		x = new(S)
		s.all[labels] = x
	}
	s.known[k] = x
	return x
}

// httpKey is everything that labels are made of. Pointers are of shared values: keys may differ where labels do not.
type httpKey struct {
	direction conf.Direction
	cluster   *conf.Cluster
	endpoint  *conf.Workload
	peer      *conf.Workload
	principal string // of the peer, by its certificate
	status    int
	flags     Flags
	isGRPC    bool
	grpc      string // grpc-status
	mtls      bool
}

type tcpKey struct {
	direction conf.Direction
	cluster   *conf.Cluster
	endpoint  *conf.Workload
	principal string
	flags     Flags
	mtls      bool
}

// Istio's buckets, in milliseconds and bytes.
var (
	durationBounds = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
	sizeBounds     = durationBounds
)

type histogram struct {
	buckets [20]atomic.Uint64
	sum     atomic.Uint64 // microseconds for durations, bytes for sizes
}

// observe adds a value in the bucket's unit; unit is what is added to the sum.
func (h *histogram) observe(bounds []float64, v float64, unit uint64) {
	lo, hi := 0, len(bounds)
	for lo < hi {
		if mid := (lo + hi) / 2; v <= bounds[mid] {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	h.buckets[lo].Add(1)
	h.sum.Add(unit)
}

type httpSeries struct {
	age
	requests      atomic.Uint64
	duration      histogram
	reqSize, resp histogram
	messages      *messageSeries // of gRPC calls
	peer          *conf.Workload // that the labels name, if it named itself
}

// messageSeries is of gRPC messages. Istio counts them while a call goes on, when its outcome is not known: series of calls
// that ended in different ways share one.
type messageSeries struct {
	age
	in, out atomic.Uint64
	peer    *conf.Workload // as in httpSeries
}

type tcpSeries struct {
	age
	opened, closed, sent, received atomic.Uint64
}

// HTTP counts one finished exchange.
func (m *Metrics) HTTP(r *Record) {
	k := httpKey{direction: r.Direction, cluster: r.Cluster, peer: r.Peer, status: r.Status, flags: r.Flags, mtls: r.MTLS}
	if r.Endpoint != nil {
		k.endpoint = r.Endpoint.Workload
	}
	k.principal = r.principal()
	if k.isGRPC = r.GRPC; k.isGRPC {
		k.grpc = grpcStatus(r)
	}
	m.mu.RLock()
	defer m.mu.RUnlock() // no series expires while something is counted in it
	s := m.http.known[k]
	for s == nil {
		m.mu.RUnlock()
		m.addHTTP(k)
		m.mu.RLock()
		s = m.http.known[k]
	}
	s.touch()
	s.requests.Add(1)
	s.duration.observe(durationBounds, float64(r.Duration)/float64(time.Millisecond), uint64(r.Duration.Microseconds()))
	in, out := r.BytesIn+r.HeadIn, r.BytesOut+r.HeadOut
	s.reqSize.observe(sizeBounds, float64(in), uint64(in))
	s.resp.observe(sizeBounds, float64(out), uint64(out))
	if x := s.messages; x != nil {
		x.touch()
		x.in.Add(r.MessagesIn.Untold())
		x.out.Add(r.MessagesOut.Untold())
	}
}

// Messages counts messages of a gRPC call that goes on, which HTTP does not count again: the caller had their numbers of Untold.
// Of r it reads what the labels of both ends are made of, and no more.
func (m *Metrics) Messages(r *Record, in, out uint64) {
	var endpoint *conf.Workload
	if r.Direction != conf.Inbound && r.Endpoint != nil {
		endpoint = r.Endpoint.Workload
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	peer := m.known(r.Peer)
	x := m.messages(m.ends(r.Direction, r.Cluster, endpoint, peer, r.principal(), r.MTLS), peer)
	x.touch()
	x.in.Add(in)
	x.out.Add(out)
}

// messages returns the series of messages with the labels of both ends. The caller holds the lock.
func (m *Metrics) messages(ends string, peer *conf.Workload) *messageSeries {
	x := m.grpc[ends]
	if x == nil {
		x = &messageSeries{peer: peer}
		m.grpc[ends] = x
	}
	return x
}

// addHTTP makes the series of k known.
func (m *Metrics) addHTTP(k httpKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	peer := m.known(k.peer)
	ends := m.ends(k.direction, k.cluster, k.endpoint, peer, k.principal, k.mtls)
	s := m.http.add(k, httpLabels(k, ends))
	s.peer = peer
	if k.isGRPC {
		s.messages = m.messages(ends, peer)
	}
}

// grpcStatus is that of the trailers, or of a response that has nothing but a head. Codes are shared strings, and others
// than the known ones are not counted apart: their number is the peer's to choose.
func grpcStatus(r *Record) string {
	if r.Resp == nil {
		return ""
	}
	g := r.Resp.Trailers.Get("grpc-status")
	if g == nil {
		g = r.Resp.Get("grpc-status")
	}
	for _, c := range grpcCodes {
		if string(g) == c {
			return c
		}
	}
	return ""
}

var grpcCodes = []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"}

// TCPOpened counts a connection; TCPClosed counts its end and its bytes.
func (m *Metrics) TCPOpened(r *Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tcpSeries(r).opened.Add(1)
}

// TCPClosed counts the end of a connection.
func (m *Metrics) TCPClosed(r *Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.tcpSeries(r)
	s.closed.Add(1)
	s.sent.Add(uint64(r.BytesOut))
	s.received.Add(uint64(r.BytesIn))
}

// tcpSeries returns the series of r. The caller holds mu.
func (m *Metrics) tcpSeries(r *Record) *tcpSeries {
	k := tcpKey{direction: r.Direction, cluster: r.Cluster, flags: r.Flags, mtls: r.MTLS, principal: r.principal()}
	if r.Endpoint != nil {
		k.endpoint = r.Endpoint.Workload
	}
	s := m.tcp.known[k]
	if s == nil {
		s = m.tcp.add(k, m.ends(k.direction, k.cluster, k.endpoint, nil, k.principal, k.mtls)+
			`,request_protocol="tcp",response_flags="`+k.flags.String()+`",connection_security_policy="`+policy(k.direction, k.mtls)+`"`)
	}
	s.touch()
	return s
}

// httpLabels renders the labels of k, of which ends are a part, without braces.
func httpLabels(k httpKey, ends string) string {
	protocol := "http"
	if k.isGRPC {
		protocol = "grpc"
	}
	return ends + `,request_protocol="` + protocol + `",response_code="` + strconv.Itoa(k.status) + `",grpc_response_status="` + k.grpc +
		`",response_flags="` + k.flags.String() + `",connection_security_policy="` + policy(k.direction, k.mtls) + `"`
}

// known returns the peer if it may have labels, or nil. The caller holds mu.
func (m *Metrics) known(peer *conf.Workload) *conf.Workload {
	if peer == nil {
		return nil
	}
	if _, ok := m.peers[*peer]; ok {
		return peer
	}
	if len(m.peers) >= maxPeers {
		return nil
	}
	for _, s := range []string{peer.Name, peer.Namespace, peer.Canonical, peer.CanonicalRevision, peer.Cluster, peer.App, peer.Version} {
		if len(s) > maxName {
			return nil
		}
	}
	m.peers[*peer] = struct{}{}
	return peer
}

// label names of both ends in Istio's order.
var labelNames = []string{"reporter", "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "destination_workload", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_service", "destination_canonical_service",
	"destination_canonical_revision", "destination_service_name", "destination_service_namespace", "destination_cluster"}

var unknown = &conf.Workload{Name: "unknown", Namespace: "unknown", Canonical: "unknown", CanonicalRevision: "latest", Cluster: "unknown", App: "unknown", Version: "unknown"}

// ends renders the labels that every series of traffic has, who calls whom, without braces.
func (m *Metrics) ends(dir conf.Direction, cl *conf.Cluster, endpoint, peer *conf.Workload, principal string, mtls bool) string {
	src, dst := &m.self, endpoint
	srcPrincipal, dstPrincipal := "unknown", "unknown"
	reporter := "source"
	if dir == conf.Inbound {
		reporter = "destination"
		src, dst = peer, &m.self
	} else if peer != nil {
		dst = peer
	}
	if src == nil {
		src = unknown
	}
	if dst == nil {
		dst = unknown
	}
	if mtls {
		if dir == conf.Inbound {
			srcPrincipal, dstPrincipal = or(principal), or(m.self.Principal)
		} else {
			srcPrincipal, dstPrincipal = or(m.self.Principal), or(principal)
		}
	}
	svc := conf.Service{Name: "unknown", Namespace: "unknown", Host: "unknown"}
	switch {
	case cl != nil && len(cl.Services) > 0:
		svc = cl.Services[0]
	case cl != nil && !strings.Contains(cl.Name, "|"):
		svc = conf.Service{Name: cl.Name, Namespace: "unknown", Host: cl.Name}
	case dir == conf.Inbound:
		svc = conf.Service{Name: m.self.Canonical, Namespace: m.self.Namespace, Host: m.self.Canonical + "." + m.self.Namespace + ".svc.cluster.local"}
	}
	values := []string{reporter, src.Name, src.Canonical, src.CanonicalRevision, src.Namespace, srcPrincipal, src.App, src.Version, src.Cluster,
		dst.Name, dst.Namespace, dstPrincipal, dst.App, dst.Version, svc.Host, dst.Canonical, dst.CanonicalRevision, svc.Name, svc.Namespace, dst.Cluster}
	var b strings.Builder
	for i, n := range labelNames {
		if i > 0 {
			b.WriteByte(',')
		}
		label(&b, n, or(values[i]))
	}
	return b.String()
}

func or(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func label(b *strings.Builder, name, value string) {
	b.WriteString(name)
	b.WriteString(`="`)
	for _, c := range value {
		switch c {
		case '\\', '"':
			b.WriteByte('\\')
			b.WriteRune(c)
		case '\n':
			b.WriteString(`\n`)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
}

func policy(dir conf.Direction, mtls bool) string {
	switch {
	case dir != conf.Inbound:
		return "unknown"
	case mtls:
		return "mutual_tls"
	}
	return "none"
}

// WritePrometheus writes every counter, and the version, in Prometheus' text format.
func (m *Metrics) WritePrometheus(w io.Writer) {
	m.mu.RLock()
	https, tcps, grpcs := maps.Clone(m.http.all), maps.Clone(m.tcp.all), maps.Clone(m.grpc) // w may be slow
	m.mu.RUnlock()
	maps.DeleteFunc(grpcs, func(_ string, s *messageSeries) bool { return s.in.Load()+s.out.Load() == 0 })
	var tag strings.Builder
	label(&tag, "tag", or(m.version))
	fmt.Fprintf(w, "# TYPE istio_build gauge\nistio_build{component=\"proxy\",%s} 1\n", tag.String())
	writeCounter(w, "istio_requests_total", https, func(s *httpSeries) *atomic.Uint64 { return &s.requests })
	labels := slices.Sorted(maps.Keys(https))
	for _, h := range []struct {
		name   string
		pick   func(*httpSeries) *histogram
		bounds []float64
		unit   float64
	}{
		{"istio_request_duration_milliseconds", func(s *httpSeries) *histogram { return &s.duration }, durationBounds, 1e-3},
		{"istio_request_bytes", func(s *httpSeries) *histogram { return &s.reqSize }, sizeBounds, 1},
		{"istio_response_bytes", func(s *httpSeries) *histogram { return &s.resp }, sizeBounds, 1},
	} {
		for i, l := range labels {
			if i == 0 {
				fmt.Fprintf(w, "# TYPE %s histogram\n", h.name)
			}
			writeHistogram(w, h.name, l, h.pick(https[l]), h.bounds, h.unit)
		}
	}
	writeCounter(w, "istio_request_messages_total", grpcs, func(s *messageSeries) *atomic.Uint64 { return &s.in })
	writeCounter(w, "istio_response_messages_total", grpcs, func(s *messageSeries) *atomic.Uint64 { return &s.out })
	writeCounter(w, "istio_tcp_connections_opened_total", tcps, func(s *tcpSeries) *atomic.Uint64 { return &s.opened })
	writeCounter(w, "istio_tcp_connections_closed_total", tcps, func(s *tcpSeries) *atomic.Uint64 { return &s.closed })
	writeCounter(w, "istio_tcp_sent_bytes_total", tcps, func(s *tcpSeries) *atomic.Uint64 { return &s.sent })
	writeCounter(w, "istio_tcp_received_bytes_total", tcps, func(s *tcpSeries) *atomic.Uint64 { return &s.received })
}

func writeCounter[S any](w io.Writer, name string, all map[string]*S, pick func(*S) *atomic.Uint64) {
	for i, l := range slices.Sorted(maps.Keys(all)) {
		if i == 0 {
			fmt.Fprintf(w, "# TYPE %s counter\n", name)
		}
		fmt.Fprintf(w, "%s{%s} %d\n", name, l, pick(all[l]).Load())
	}
}

func writeHistogram(w io.Writer, name, labels string, h *histogram, bounds []float64, unit float64) {
	var c uint64
	for i := range h.buckets {
		c += h.buckets[i].Load()
		le := math.Inf(1)
		if i < len(bounds) {
			le = bounds[i]
		}
		text := "+Inf"
		if !math.IsInf(le, 1) {
			text = strconv.FormatFloat(le, 'g', -1, 64)
		}
		fmt.Fprintf(w, "%s_bucket{%s,le=%q} %d\n", name, labels, text, c)
	}
	fmt.Fprintf(w, "%s_sum{%s} %s\n%s_count{%s} %d\n", name, labels, strconv.FormatFloat(float64(h.sum.Load())*unit, 'g', -1, 64), name, labels, c)
}
