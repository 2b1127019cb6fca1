package decode

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Cluster decodes one cluster. Endpoints of an EDS cluster are left nil.
func Cluster(c *clusterv3.Cluster) (*conf.Cluster, error) {
	out, err := cluster(c)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", c.GetName(), err)
	}
	return out, nil
}

func cluster(c *clusterv3.Cluster) (*conf.Cluster, error) {
	// Harmless: alt_stat_name names statistics, per_connection_buffer_limit_bytes bounds memory that is bounded here anyhow,
	// ignore_health_on_host_removal and wait_for_warm_on_init follow from how configs are published.
	if err := only(c, "name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "lb_policy", "load_assignment", "transport_socket",
		"transport_socket_matches", "circuit_breakers", "upstream_bind_config", "metadata", "typed_extension_protocol_options", "dns_lookup_family",
		"respect_dns_ttl", "dns_refresh_rate", "dns_jitter", "dns_failure_refresh_rate", "common_lb_config", "least_request_lb_config", "round_robin_lb_config", "ring_hash_lb_config", "maglev_lb_config", "outlier_detection",
		"per_connection_buffer_limit_bytes", "upstream_connection_options", "original_dst_lb_config", "ignore_health_on_host_removal", "wait_for_warm_on_init",
		"close_connections_on_host_health_failure", "track_cluster_stats"); err != nil {
		return nil, err
	}
	if c.Name == "" {
		return nil, errors.New("name is empty")
	}
	out := &conf.Cluster{Name: c.Name, ChoiceCount: 2, IdleTimeout: time.Hour, DNSRefresh: 5 * time.Second}
	var err error
	if out.ConnectTimeout, err = duration(c.ConnectTimeout, 5*time.Second); err != nil {
		return nil, fmt.Errorf("connect_timeout: %w", err)
	}
	if out.DNSRefresh, err = duration(c.DnsRefreshRate, 5*time.Second); err != nil {
		return nil, fmt.Errorf("dns_refresh_rate: %w", err)
	}
	if err := balancing(c, out); err != nil {
		return nil, err
	}
	if err := discovery(c, out); err != nil {
		return nil, err
	}
	if out.TLS, err = upstreamTLS(c.TransportSocket); err != nil {
		return nil, err
	}
	for _, m := range c.TransportSocketMatches {
		t, err := upstreamTLS(m.GetTransportSocket())
		if err != nil {
			return nil, fmt.Errorf("transport_socket_matches %q: %w", m.GetName(), err)
		}
		for k, v := range m.GetMatch().GetFields() {
			if _, ok := v.GetKind().(*structpb.Value_StringValue); !ok {
				return nil, fmt.Errorf("transport_socket_matches %q: %s: only strings are supported", m.GetName(), k)
			}
		}
		out.TLSMatches = append(out.TLSMatches, conf.TLSMatch{Name: m.GetName(), Match: stringsOf(m.GetMatch().GetFields()), TLS: t})
	}
	if out.Breakers, err = breakers(c.CircuitBreakers); err != nil {
		return nil, fmt.Errorf("circuit_breakers: %w", err)
	}
	if out.Outlier, err = outlierDetection(c.OutlierDetection); err != nil {
		return nil, fmt.Errorf("outlier_detection: %w", err)
	}
	if err := connections(c, out); err != nil {
		return nil, err
	}
	for _, v := range metadata(c.Metadata, "istio")["services"].GetListValue().GetValues() {
		f := stringsOf(v.GetStructValue().GetFields())
		out.Services = append(out.Services, conf.Service{Name: f["name"], Namespace: f["namespace"], Host: f["host"]})
	}
	switch {
	case strings.HasPrefix(c.Name, "inbound|"):
		out.Direction = conf.Inbound
	case strings.HasPrefix(c.Name, "outbound|"):
		out.Direction = conf.Outbound
	}
	return out, nil
}

func balancing(c *clusterv3.Cluster, out *conf.Cluster) error {
	switch c.LbPolicy {
	case clusterv3.Cluster_ROUND_ROBIN:
		out.LB = conf.RoundRobin
	case clusterv3.Cluster_LEAST_REQUEST:
		out.LB = conf.LeastRequest
	case clusterv3.Cluster_RANDOM:
		out.LB = conf.Random
	case clusterv3.Cluster_RING_HASH:
		out.LB = conf.RingHash
	case clusterv3.Cluster_MAGLEV:
		out.LB = conf.Maglev
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		out.LB = conf.OriginalDst
		if c.GetType() != clusterv3.Cluster_ORIGINAL_DST {
			return fmt.Errorf("lb_policy CLUSTER_PROVIDED needs type ORIGINAL_DST, not %s", c.GetType())
		}
	default:
		return fmt.Errorf("lb_policy %s is not supported", c.LbPolicy)
	}
	if l := c.GetLeastRequestLbConfig(); l != nil {
		if err := only(l, "choice_count"); err != nil {
			return fmt.Errorf("least_request_lb_config: %w", err)
		}
		if n := l.ChoiceCount.GetValue(); n >= 2 && n < 1000 {
			out.ChoiceCount = int(n)
		}
	}
	if r := c.GetRoundRobinLbConfig(); r != nil {
		if err := only(r); err != nil {
			return fmt.Errorf("round_robin_lb_config: %w", err)
		}
	}
	if err := hashTable(c, &out.Hash); err != nil {
		return err
	}
	out.PanicThreshold = 50
	if l := c.CommonLbConfig; l != nil {
		// close_connections_on_host_set_change would only lose connections; update_merge_window batches what is cheap here.
		if err := only(l, "healthy_panic_threshold", "locality_weighted_lb_config", "update_merge_window", "consistent_hashing_lb_config"); err != nil {
			return fmt.Errorf("common_lb_config: %w", err)
		}
		if l.HealthyPanicThreshold != nil {
			out.PanicThreshold = math.Round(l.HealthyPanicThreshold.Value) // Envoy counts in whole percents
		}
		out.LocalityLB = l.GetLocalityWeightedLbConfig() != nil
	}
	return nil
}

func discovery(c *clusterv3.Cluster, out *conf.Cluster) error {
	if c.GetClusterType() != nil {
		return errors.New("cluster_type is not supported")
	}
	switch c.GetType() {
	case clusterv3.Cluster_STATIC:
		out.Discovery = conf.Static
	case clusterv3.Cluster_STRICT_DNS:
		out.Discovery = conf.StrictDNS
	case clusterv3.Cluster_LOGICAL_DNS:
		out.Discovery = conf.LogicalDNS
	case clusterv3.Cluster_ORIGINAL_DST:
		out.Discovery, out.LB = conf.OriginalDstDiscovery, conf.OriginalDst
		if d := c.GetOriginalDstLbConfig(); d != nil {
			if err := only(d); err != nil {
				return fmt.Errorf("original_dst_lb_config: %w", err)
			}
		}
		return nil
	case clusterv3.Cluster_EDS:
		out.Discovery, out.ServiceName = conf.EDS, c.Name
		if n := c.GetEdsClusterConfig().GetServiceName(); n != "" {
			out.ServiceName = n
		}
		return nil
	default:
		return fmt.Errorf("type %s is not supported", c.GetType())
	}
	la := c.LoadAssignment
	if la == nil {
		la = &endpointv3.ClusterLoadAssignment{ClusterName: c.Name}
	}
	eps, err := endpoints(la, out.Discovery != conf.Static)
	if err != nil {
		return fmt.Errorf("load_assignment: %w", err)
	}
	out.Endpoints = eps
	return nil
}

func connections(c *clusterv3.Cluster, out *conf.Cluster) error {
	if b := c.UpstreamBindConfig; b != nil {
		if err := only(b, "source_address"); err != nil {
			return fmt.Errorf("upstream_bind_config: %w", err)
		}
		a, err := netip.ParseAddr(b.GetSourceAddress().GetAddress())
		if err != nil {
			return fmt.Errorf("upstream_bind_config: %w", err)
		}
		out.BindSource = a
	}
	if o := c.UpstreamConnectionOptions; o != nil {
		if err := only(o, "tcp_keepalive"); err != nil {
			return fmt.Errorf("upstream_connection_options: %w", err)
		}
		if k := o.TcpKeepalive; k != nil {
			out.Keepalive = conf.Keepalive{On: true, Idle: time.Duration(k.KeepaliveTime.GetValue()) * time.Second,
				Interval: time.Duration(k.KeepaliveInterval.GetValue()) * time.Second, Probes: int(k.KeepaliveProbes.GetValue() & 0xffff)}
		}
	}
	for name, a := range c.TypedExtensionProtocolOptions {
		var o httpv3.HttpProtocolOptions
		if name != "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" {
			return fmt.Errorf("typed_extension_protocol_options %q is not supported", name)
		}
		if err := open(a, &o); err != nil {
			return fmt.Errorf("typed_extension_protocol_options: %w", err)
		}
		if err := httpOptions(&o, out); err != nil {
			return fmt.Errorf("HttpProtocolOptions: %w", err)
		}
	}
	return nil
}

func httpOptions(o *httpv3.HttpProtocolOptions, out *conf.Cluster) error {
	if err := only(o, "common_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config"); err != nil {
		return err
	}
	if err := commonOptions(o.CommonHttpProtocolOptions, out); err != nil {
		return err
	}
	if e := o.GetExplicitHttpConfig(); e != nil {
		if err := only(e, "http_protocol_options", "http2_protocol_options"); err != nil {
			return err
		}
		if h := e.GetHttp2ProtocolOptions(); h != nil {
			out.Protocol = conf.HTTP2Only
			return http2Options(h, &out.HTTP2)
		}
	}
	if d := o.GetUseDownstreamProtocolConfig(); d != nil {
		if err := only(d, "http_protocol_options", "http2_protocol_options"); err != nil {
			return fmt.Errorf("use_downstream_protocol_config: %w", err)
		}
		if h := d.GetHttp2ProtocolOptions(); h != nil {
			out.Protocol = conf.SameAsDownstream
			return http2Options(h, &out.HTTP2)
		}
	}
	return nil
}

// http2Options reads what HTTP/2 connections of either side may be told.
func http2Options(o *corev3.Http2ProtocolOptions, out *conf.HTTP2) (err error) {
	if o == nil {
		return nil
	}
	// Harmless: hpack_table_size is at most the default, limits of floods are the codec's own, stream errors never cost the
	// connection beyond what RFC 9113 says, allow_metadata is a private extension.
	if err := only(o, "hpack_table_size", "max_concurrent_streams", "initial_stream_window_size", "initial_connection_window_size", "connection_keepalive",
		"max_outbound_frames", "max_outbound_control_frames", "max_consecutive_inbound_frames_with_empty_payload", "max_inbound_priority_frames_per_stream",
		"max_inbound_window_update_frames_per_data_frame_sent", "override_stream_error_on_invalid_http_message", "stream_error_on_invalid_http_messaging"); err != nil {
		return fmt.Errorf("http2_protocol_options: %w", err)
	}
	if m := o.MaxConcurrentStreams; m != nil {
		if out.MaxStreams = m.Value; m.Value == 0 {
			return fmt.Errorf("http2_protocol_options: max_concurrent_streams is 0")
		}
	}
	for name, w := range map[string]struct {
		v  uint32
		to *int32
	}{"initial_stream_window_size": {o.InitialStreamWindowSize.GetValue(), &out.Window}, "initial_connection_window_size": {o.InitialConnectionWindowSize.GetValue(), &out.ConnWindow}} {
		if w.v != 0 && (w.v < 65535 || w.v > 1<<31-1) {
			return fmt.Errorf("http2_protocol_options: %s %d is not in 65535..2147483647", name, w.v)
		}
		*w.to = int32(w.v)
	}
	if k := o.ConnectionKeepalive; k != nil {
		// interval_jitter spreads pings that are not synchronised here anyhow.
		if err := only(k, "interval", "timeout", "interval_jitter"); err != nil {
			return fmt.Errorf("connection_keepalive: %w", err)
		}
		if out.KeepAlive, err = duration(k.Interval, 0); err != nil {
			return fmt.Errorf("connection_keepalive: interval: %w", err)
		}
		if out.KeepAliveTimeout, err = duration(k.Timeout, 0); err != nil {
			return fmt.Errorf("connection_keepalive: timeout: %w", err)
		}
	}
	return nil
}

func commonOptions(o *corev3.HttpProtocolOptions, out *conf.Cluster) (err error) {
	if o == nil {
		return nil
	}
	if err := only(o, "idle_timeout", "max_requests_per_connection"); err != nil {
		return err
	}
	if out.IdleTimeout, err = duration(o.IdleTimeout, time.Hour); err != nil {
		return fmt.Errorf("idle_timeout: %w", err)
	}
	out.MaxRequests = o.MaxRequestsPerConnection.GetValue()
	return nil
}

// Endpoints decodes the endpoints of an EDS cluster.
func Endpoints(a *endpointv3.ClusterLoadAssignment) (*conf.Endpoints, error) {
	out, err := endpoints(a, false)
	if err != nil {
		return nil, fmt.Errorf("endpoints %q: %w", a.GetClusterName(), err)
	}
	return out, nil
}

func endpoints(a *endpointv3.ClusterLoadAssignment, names bool) (*conf.Endpoints, error) {
	if err := only(a, "cluster_name", "endpoints", "policy"); err != nil {
		return nil, err
	}
	if p := a.Policy; p != nil {
		if p.OverprovisioningFactor != nil && p.OverprovisioningFactor.Value != 140 {
			return nil, errors.New("policy.overprovisioning_factor: only 140 is supported")
		}
		if err := only(p, "overprovisioning_factor"); err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
	}
	out := &conf.Endpoints{Name: a.ClusterName}
	for _, l := range a.Endpoints {
		if err := only(l, "locality", "lb_endpoints", "load_balancing_weight", "priority", "proximity", "metadata"); err != nil {
			return nil, err
		}
		if l.Priority > 128 {
			return nil, fmt.Errorf("priority %d is over 128", l.Priority)
		}
		loc := conf.Locality{Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone(), SubZone: l.GetLocality().GetSubZone(),
			Priority: l.Priority, Weight: l.LoadBalancingWeight.GetValue()}
		for _, e := range l.LbEndpoints {
			ep, err := endpoint(e, names)
			if err != nil {
				return nil, err
			}
			loc.Endpoints = append(loc.Endpoints, ep)
		}
		out.Localities = append(out.Localities, loc)
	}
	return out, nil
}

func endpoint(e *endpointv3.LbEndpoint, names bool) (out conf.Endpoint, err error) {
	if err := only(e, "endpoint", "health_status", "metadata", "load_balancing_weight"); err != nil {
		return out, fmt.Errorf("lb_endpoint: %w", err)
	}
	if err := only(e.GetEndpoint(), "address", "hostname"); err != nil {
		return out, fmt.Errorf("endpoint: %w", err)
	}
	host, p, err := hostPort(e.GetEndpoint().GetAddress())
	if err != nil {
		return out, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		out.Addr = netip.AddrPortFrom(ip.Unmap(), p)
	} else if names {
		out.Host, out.Port = host, p
	} else {
		return out, fmt.Errorf("socket_address: %w", err)
	}
	out.Weight = 1
	if e.LoadBalancingWeight != nil {
		if out.Weight = e.LoadBalancingWeight.Value; out.Weight == 0 {
			return out, errors.New("load_balancing_weight is 0")
		}
	}
	switch e.HealthStatus {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY, corev3.HealthStatus_DEGRADED:
	case corev3.HealthStatus_DRAINING:
		out.Draining = true
	default:
		out.Unhealthy = true
	}
	out.Hostname = e.GetEndpoint().GetHostname()
	out.HashKey = metadata(e.Metadata, "envoy.lb")["hash_key"].GetStringValue()
	out.TLSMode = stringsOf(metadata(e.Metadata, "envoy.transport_socket_match"))
	if w := metadata(e.Metadata, "istio")["workload"].GetStringValue(); w != "" {
		f := append(strings.Split(w, ";"), "", "", "", "", "")
		out.Workload = &conf.Workload{Name: f[0], Namespace: f[1], Canonical: f[2], CanonicalRevision: f[3], Cluster: f[4], App: f[2], Version: f[3]}
	}
	return out, nil
}
