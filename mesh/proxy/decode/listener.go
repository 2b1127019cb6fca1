package decode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Listener decodes one listener.
func Listener(l *listenerv3.Listener) (*conf.Listener, error) {
	out, err := listener(l)
	if err != nil {
		return nil, fmt.Errorf("listener %q: %w", l.GetName(), err)
	}
	return out, nil
}

func listener(l *listenerv3.Listener) (*conf.Listener, error) {
	// Harmless: how sockets are shared between threads, buffer sizes, statistics, and drain_type, since only what changed is drained.
	// A listener's own access log covers connections that no chain took; those are counted instead.
	if err := only(l, "name", "address", "additional_addresses", "stat_prefix", "filter_chains", "use_original_dst", "default_filter_chain",
		"per_connection_buffer_limit_bytes", "drain_type", "listener_filters", "listener_filters_timeout", "continue_on_listener_filters_timeout",
		"bind_to_port", "traffic_direction", "connection_balance_config", "enable_reuse_port", "access_log", "tcp_backlog_size", "ignore_global_conn_limit",
		"max_connections_to_accept_per_socket_event", "deprecated_v1", "metadata"); err != nil {
		return nil, err
	}
	if l.Name == "" {
		return nil, errors.New("name is empty")
	}
	out := &conf.Listener{Name: l.Name, Bind: true, UseOriginalDst: l.UseOriginalDst.GetValue(), ContinueOnTimeout: l.ContinueOnListenerFiltersTimeout}
	if l.BindToPort != nil {
		out.Bind = l.BindToPort.Value
	}
	if d := l.GetDeprecatedV1(); d.GetBindToPort() != nil {
		out.Bind = d.BindToPort.Value
	}
	switch l.TrafficDirection {
	case corev3.TrafficDirection_INBOUND:
		out.Direction = conf.Inbound
	case corev3.TrafficDirection_OUTBOUND:
		out.Direction = conf.Outbound
	}
	addrs := []*corev3.Address{l.Address}
	for _, a := range l.AdditionalAddresses {
		addrs = append(addrs, a.GetAddress())
	}
	for _, a := range addrs {
		ap, err := socketAddress(a)
		if err != nil {
			return nil, err
		}
		out.Addrs = append(out.Addrs, ap)
	}
	var err error
	if out.InspectTimeout, err = duration(l.ListenerFiltersTimeout, 15*time.Second); err != nil {
		return nil, fmt.Errorf("listener_filters_timeout: %w", err)
	}
	for _, f := range l.ListenerFilters {
		if err := listenerFilter(f, out); err != nil {
			return nil, fmt.Errorf("listener filter %q: %w", f.GetName(), err)
		}
	}
	for i, fc := range l.FilterChains {
		c, err := filterChain(fc)
		if err != nil {
			return nil, fmt.Errorf("filter chain %d %q: %w", i, fc.GetName(), err)
		}
		out.Chains = append(out.Chains, c)
	}
	if l.DefaultFilterChain != nil {
		if out.Default, err = filterChain(l.DefaultFilterChain); err != nil {
			return nil, fmt.Errorf("default filter chain: %w", err)
		}
	}
	if len(out.Chains) == 0 && out.Default == nil {
		return nil, errors.New("no filter chain")
	}
	return out, nil
}

func listenerFilter(f *listenerv3.ListenerFilter, out *conf.Listener) error {
	p := &conf.PortPredicate{}
	if f.FilterDisabled != nil {
		var err error
		if p.Disabled, err = portRanges(f.FilterDisabled); err != nil {
			return fmt.Errorf("filter_disabled: %w", err)
		}
	}
	switch typeName(f.GetTypedConfig()) {
	case "envoy.extensions.filters.listener.original_dst.v3.OriginalDst":
		out.OriginalDst = true
	case "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
		out.TLSInspector = p
	case "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector":
		out.HTTPInspector = p
	default:
		return fmt.Errorf("%q is not supported", typeName(f.GetTypedConfig()))
	}
	return nil
}

func portRanges(m *listenerv3.ListenerFilterChainMatchPredicate) ([]conf.PortRange, error) {
	switch r := m.GetRule().(type) {
	case *listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange:
		from, err := port(uint32(r.DestinationPortRange.GetStart()))
		if err != nil {
			return nil, err
		}
		// End is exclusive; 65536 wraps to 0, which PortRange reads as "to the last".
		return []conf.PortRange{{From: from, To: uint16(r.DestinationPortRange.GetEnd())}}, nil
	case *listenerv3.ListenerFilterChainMatchPredicate_OrMatch:
		var out []conf.PortRange
		for _, sub := range r.OrMatch.GetRules() {
			// One level is what Istio emits; deeper ones could make this recursive without end.
			d, ok := sub.GetRule().(*listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange)
			if !ok {
				return nil, errors.New("only destination port ranges are supported")
			}
			ranges, err := portRanges(&listenerv3.ListenerFilterChainMatchPredicate{Rule: d})
			if err != nil {
				return nil, err
			}
			out = append(out, ranges...)
		}
		return out, nil
	}
	return nil, errors.New("only destination port ranges are supported")
}

func filterChain(fc *listenerv3.FilterChain) (*conf.FilterChain, error) {
	if err := only(fc, "name", "filter_chain_match", "filters", "transport_socket", "transport_socket_connect_timeout", "metadata"); err != nil {
		return nil, err
	}
	out := &conf.FilterChain{Name: fc.Name}
	var err error
	if out.Match, err = chainMatch(fc.FilterChainMatch); err != nil {
		return nil, fmt.Errorf("filter_chain_match: %w", err)
	}
	if out.TLS, err = downstreamTLS(fc.TransportSocket); err != nil {
		return nil, err
	}
	if out.HandshakeTimeout, err = duration(fc.TransportSocketConnectTimeout, 15*time.Second); err != nil {
		return nil, fmt.Errorf("transport_socket_connect_timeout: %w", err)
	}
	for i, f := range fc.Filters {
		if out.HTTP != nil || out.TCP != nil {
			return nil, fmt.Errorf("filter %q: nothing may follow a terminal filter", f.GetName())
		}
		switch n := typeName(f.GetTypedConfig()); n {
		case "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":
			var h hcmv3.HttpConnectionManager
			if err = open(f.GetTypedConfig(), &h); err == nil {
				out.HTTP, err = manager(&h)
			}
		case "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":
			var t tcpv3.TcpProxy
			if err = open(f.GetTypedConfig(), &t); err == nil {
				out.TCP, err = tcpProxy(&t)
			}
		default:
			err = fmt.Errorf("network filter %q is not supported", n)
		}
		if err != nil {
			return nil, fmt.Errorf("filter %d %q: %w", i, f.GetName(), err)
		}
	}
	if out.HTTP == nil && out.TCP == nil {
		return nil, errors.New("no terminal filter")
	}
	return out, nil
}

func chainMatch(m *listenerv3.FilterChainMatch) (out conf.ChainMatch, err error) {
	if m == nil {
		return out, nil
	}
	if err := only(m, "destination_port", "prefix_ranges", "direct_source_prefix_ranges", "source_type", "source_prefix_ranges", "source_ports", "server_names", "transport_protocol", "application_protocols"); err != nil {
		return out, err
	}
	if out.DestPort, err = port(m.DestinationPort.GetValue()); err != nil {
		return out, err
	}
	if out.DestPrefixes, err = prefixes(m.PrefixRanges); err != nil {
		return out, err
	}
	if out.DirectSources, err = prefixes(m.DirectSourcePrefixRanges); err != nil {
		return out, err
	}
	if out.Sources, err = prefixes(m.SourcePrefixRanges); err != nil {
		return out, err
	}
	for _, n := range m.SourcePorts {
		p, err := port(n)
		if err != nil {
			return out, err
		}
		out.SourcePorts = append(out.SourcePorts, p)
	}
	for _, n := range m.ServerNames {
		n = strings.ToLower(n)
		if strings.Contains(strings.TrimPrefix(n, "*."), "*") {
			return out, fmt.Errorf("server name %q: only a leading *. is supported", n)
		}
		out.ServerNames = append(out.ServerNames, n)
	}
	switch m.TransportProtocol {
	case "", "tls", "raw_buffer":
		out.Transport = m.TransportProtocol
	default:
		return out, fmt.Errorf("transport_protocol %q is not supported", m.TransportProtocol)
	}
	out.ALPN = slices.Clone(m.ApplicationProtocols)
	switch m.SourceType {
	case listenerv3.FilterChainMatch_SAME_IP_OR_LOOPBACK:
		out.SourceType = conf.SourceLocal
	case listenerv3.FilterChainMatch_EXTERNAL:
		out.SourceType = conf.SourceExternal
	}
	return out, nil
}

func tcpProxy(t *tcpv3.TcpProxy) (out *conf.TCP, err error) {
	if err := only(t, "stat_prefix", "cluster", "weighted_clusters", "idle_timeout", "access_log", "max_connect_attempts", "hash_policy"); err != nil {
		return nil, err
	}
	out = &conf.TCP{StatPrefix: t.StatPrefix, MaxConnect: int(min(max(t.MaxConnectAttempts.GetValue(), 1), 100))}
	switch {
	case t.GetCluster() != "":
		out.Clusters, out.TotalWeight = []conf.WeightedCluster{{Name: t.GetCluster(), Weight: 1}}, 1
	case t.GetWeightedClusters() != nil:
		for _, c := range t.GetWeightedClusters().GetClusters() {
			if err := only(c, "name", "weight"); err != nil {
				return nil, fmt.Errorf("weighted_clusters: %w", err)
			}
			if err := addWeight(&out.Clusters, &out.TotalWeight, conf.WeightedCluster{Name: c.Name, Weight: c.Weight}); err != nil {
				return nil, err
			}
		}
	}
	if out.TotalWeight == 0 {
		return nil, errors.New("no cluster with a weight")
	}
	if out.IdleTimeout, err = duration(t.IdleTimeout, time.Hour); err != nil {
		return nil, fmt.Errorf("idle_timeout: %w", err)
	}
	for _, h := range t.HashPolicy {
		if h.GetSourceIp() == nil {
			return nil, errors.New("hash_policy: only source_ip is supported")
		}
		out.HashSource = true
	}
	out.AccessLog, err = accessLogs(t.AccessLog)
	return out, err
}

func addWeight(list *[]conf.WeightedCluster, total *uint32, w conf.WeightedCluster) error {
	if *total+w.Weight < *total {
		return errors.New("weighted_clusters: the weights add up to more than 2^32-1")
	}
	if w.Weight == 0 {
		return nil // takes no requests
	}
	*total += w.Weight
	*list = append(*list, w)
	return nil
}
