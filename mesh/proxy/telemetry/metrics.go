package telemetry

import (
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Metrics counts Istio's standard metrics. One exchange costs one map look-up and a few atomic additions.
type Metrics struct {
	self conf.Workload

	mu   sync.RWMutex
	http map[httpKey]*httpSeries
	tcp  map[tcpKey]*tcpSeries
}

// NewMetrics returns counters for a proxy of the given workload. self must not change.
func NewMetrics(self conf.Workload) *Metrics {
	return &Metrics{self: self, http: map[httpKey]*httpSeries{}, tcp: map[tcpKey]*tcpSeries{}}
}

// httpKey is everything that labels are made of. Pointers are of shared values, so equal labels have equal keys, or at
// worst two keys after a push: WritePrometheus adds those up.
type httpKey struct {
	direction conf.Direction
	cluster   *conf.Cluster
	endpoint  *conf.Workload
	peer      *conf.Workload
	principal string // of the peer, by its certificate
	host      string // for clusters without a service
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
	requests      atomic.Uint64
	duration      histogram
	reqSize, resp histogram
}

type tcpSeries struct{ opened, closed, sent, received atomic.Uint64 }

// HTTP counts one finished exchange.
func (m *Metrics) HTTP(r *Record) {
	k := httpKey{direction: r.Direction, cluster: r.Cluster, peer: r.Peer, status: r.Status, flags: r.Flags, mtls: r.MTLS}
	if r.Endpoint != nil {
		k.endpoint = r.Endpoint.Workload
	}
	if r.Direction == conf.Inbound {
		k.principal = r.PeerURI
	} else {
		k.principal = r.UpstreamURI
	}
	if (r.Cluster == nil || len(r.Cluster.Services) == 0) && r.Direction != conf.Inbound {
		k.host = "unknown"
	} else if r.Direction == conf.Inbound && r.Req != nil {
		k.host = m.inboundHost(r)
	}
	if k.isGRPC = r.GRPC; k.isGRPC {
		k.grpc = grpcStatus(r)
	}
	m.mu.RLock()
	s := m.http[k]
	m.mu.RUnlock()
	if s == nil {
		m.mu.Lock()
		if s = m.http[k]; s == nil {
			s = &httpSeries{}
			m.http[k] = s
		}
		m.mu.Unlock()
	}
	s.requests.Add(1)
	s.duration.observe(durationBounds, float64(r.Duration)/float64(time.Millisecond), uint64(r.Duration.Microseconds()))
	in, out := r.BytesIn+r.HeadIn, r.BytesOut+r.HeadOut
	s.reqSize.observe(sizeBounds, float64(in), uint64(in))
	s.resp.observe(sizeBounds, float64(out), uint64(out))
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

// inboundHost is the service that the client named: the workload's own canonical service unless the authority says more.
func (m *Metrics) inboundHost(*Record) string { return "" }

// TCPOpened counts a connection; TCPClosed counts its end and its bytes.
func (m *Metrics) TCPOpened(r *Record) { m.tcpSeries(r).opened.Add(1) }

// TCPClosed counts the end of a connection.
func (m *Metrics) TCPClosed(r *Record) {
	s := m.tcpSeries(r)
	s.closed.Add(1)
	s.sent.Add(uint64(r.BytesOut))
	s.received.Add(uint64(r.BytesIn))
}

func (m *Metrics) tcpSeries(r *Record) *tcpSeries {
	k := tcpKey{direction: r.Direction, cluster: r.Cluster, mtls: r.MTLS, principal: r.UpstreamURI}
	if r.Direction == conf.Inbound {
		k.principal = r.PeerURI
	}
	if r.Endpoint != nil {
		k.endpoint = r.Endpoint.Workload
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.tcp[k]
	if s == nil {
		s = &tcpSeries{}
		m.tcp[k] = s
	}
	return s
}

// label names in Istio's order.
var labelNames = []string{"reporter", "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "destination_workload", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_service", "destination_canonical_service",
	"destination_canonical_revision", "destination_service_name", "destination_service_namespace", "destination_cluster", "request_protocol"}

var unknown = &conf.Workload{Name: "unknown", Namespace: "unknown", Canonical: "unknown", CanonicalRevision: "latest", Cluster: "unknown", App: "unknown", Version: "unknown"}

// common renders the labels that HTTP and TCP share, without braces.
func (m *Metrics) common(dir conf.Direction, cl *conf.Cluster, endpoint, peer *conf.Workload, principal string, mtls bool, protocol string) string {
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
		dst.Name, dst.Namespace, dstPrincipal, dst.App, dst.Version, svc.Host, dst.Canonical, dst.CanonicalRevision, svc.Name, svc.Namespace, dst.Cluster, protocol}
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

type summed struct {
	count, sum uint64
	buckets    [20]uint64
}

func (s *summed) add(h *histogram) {
	for i := range h.buckets {
		n := h.buckets[i].Load()
		s.buckets[i] += n
		s.count += n
	}
	s.sum += h.sum.Load()
}

type httpSum struct {
	requests       uint64
	dur, req, resp summed
}

// WritePrometheus writes every counter in Prometheus' text format.
func (m *Metrics) WritePrometheus(w io.Writer) {
	sums := map[string]*httpSum{}
	m.mu.RLock()
	for k, s := range m.http {
		code := strconv.Itoa(k.status)
		protocol := "http"
		if k.isGRPC {
			protocol = "grpc"
		}
		l := m.common(k.direction, k.cluster, k.endpoint, k.peer, k.principal, k.mtls, protocol) +
			`,response_code="` + code + `",grpc_response_status="` + k.grpc + `",response_flags="` + k.flags.String() +
			`",connection_security_policy="` + policy(k.direction, k.mtls) + `"`
		t := sums[l]
		if t == nil {
			t = &httpSum{}
			sums[l] = t
		}
		t.requests += s.requests.Load()
		t.dur.add(&s.duration)
		t.req.add(&s.reqSize)
		t.resp.add(&s.resp)
	}
	tcp := map[string]*[4]uint64{}
	for k, s := range m.tcp {
		l := m.common(k.direction, k.cluster, k.endpoint, nil, k.principal, k.mtls, "tcp") +
			`,response_flags="` + k.flags.String() + `",connection_security_policy="` + policy(k.direction, k.mtls) + `"`
		t := tcp[l]
		if t == nil {
			t = &[4]uint64{}
			tcp[l] = t
		}
		for i, v := range []uint64{s.opened.Load(), s.closed.Load(), s.sent.Load(), s.received.Load()} {
			t[i] += v
		}
	}
	m.mu.RUnlock()
	labels := sorted(sums)
	if len(labels) > 0 {
		fmt.Fprintf(w, "# TYPE istio_requests_total counter\n")
		for _, l := range labels {
			fmt.Fprintf(w, "istio_requests_total{%s} %d\n", l, sums[l].requests)
		}
		for _, h := range []struct {
			name   string
			pick   func(*httpSum) *summed
			bounds []float64
			unit   float64
		}{
			{"istio_request_duration_milliseconds", func(s *httpSum) *summed { return &s.dur }, durationBounds, 1e-3},
			{"istio_request_bytes", func(s *httpSum) *summed { return &s.req }, sizeBounds, 1},
			{"istio_response_bytes", func(s *httpSum) *summed { return &s.resp }, sizeBounds, 1},
		} {
			fmt.Fprintf(w, "# TYPE %s histogram\n", h.name)
			for _, l := range labels {
				writeHistogram(w, h.name, l, h.pick(sums[l]), h.bounds, h.unit)
			}
		}
	}
	names := []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"}
	for i, n := range names {
		for j, l := range sorted(tcp) {
			if j == 0 {
				fmt.Fprintf(w, "# TYPE %s counter\n", n)
			}
			fmt.Fprintf(w, "%s{%s} %d\n", n, l, tcp[l][i])
		}
	}
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func writeHistogram(w io.Writer, name, labels string, s *summed, bounds []float64, unit float64) {
	var c uint64
	for i := range s.buckets {
		c += s.buckets[i]
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
	fmt.Fprintf(w, "%s_sum{%s} %s\n%s_count{%s} %d\n", name, labels, strconv.FormatFloat(float64(s.sum)*unit, 'g', -1, 64), name, labels, s.count)
}
