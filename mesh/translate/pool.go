package translate

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// applyPool sets how connections to a cluster are made, and how many there may be.
func applyPool(c *clusterv3.Cluster, cp *networking.ConnectionPoolSettings) {
	tcp, http := cp.GetTcp(), cp.GetHttp()
	if d := tcp.GetConnectTimeout(); d != nil {
		c.ConnectTimeout = d
	}
	if k := tcp.GetTcpKeepalive(); k != nil {
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
	}
	t := c.CircuitBreakers.Thresholds[0]
	for _, l := range []struct {
		n  int32
		at **wrapperspb.UInt32Value
	}{
		{tcp.GetMaxConnections(), &t.MaxConnections}, {http.GetHttp1MaxPendingRequests(), &t.MaxPendingRequests},
		{http.GetHttp2MaxRequests(), &t.MaxRequests}, {http.GetMaxRetries(), &t.MaxRetries},
	} {
		if l.n > 0 { // 0 is nothing said
			*l.at = wrapperspb.UInt32(uint32(l.n))
		}
	}
}

func keepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) *corev3.TcpKeepalive {
	out := &corev3.TcpKeepalive{}
	if k.Probes > 0 {
		out.KeepaliveProbes = wrapperspb.UInt32(k.Probes)
	}
	if k.Time != nil {
		out.KeepaliveTime = wrapperspb.UInt32(uint32(k.Time.Seconds))
	}
	if k.Interval != nil {
		out.KeepaliveInterval = wrapperspb.UInt32(uint32(k.Interval.Seconds))
	}
	return out
}

// unlimited are Istio's thresholds where a rule sets none: Envoy's own would be 1024.
func unlimited() *clusterv3.CircuitBreakers {
	limit := func() *wrapperspb.UInt32Value { return wrapperspb.UInt32(math.MaxUint32) }
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: limit(), MaxPendingRequests: limit(), MaxRequests: limit(), MaxRetries: limit(), TrackRemaining: true,
	}}}
}

// applyHTTP says what the cluster speaks, and for how long and how often on one connection. It tells whether that is HTTP/2
// for certain.
func applyHTTP(c *clusterv3.Cluster, p model.Protocol, cp *networking.ConnectionPoolSettings) bool {
	http := cp.GetHttp()
	common := &corev3.HttpProtocolOptions{IdleTimeout: http.GetIdleTimeout()}
	if common.IdleTimeout == nil {
		common.IdleTimeout = cp.GetTcp().GetIdleTimeout()
	}
	if n := http.GetMaxRequestsPerConnection(); n > 0 {
		common.MaxRequestsPerConnection = wrapperspb.UInt32(uint32(n))
	}
	opts := &httpv3.HttpProtocolOptions{}
	set := common.IdleTimeout != nil || common.MaxRequestsPerConnection != nil
	if set {
		opts.CommonHttpProtocolOptions = common
	}
	// Who asks for an upgrade is sure that the port speaks HTTP, whatever its name says.
	upgrade := http.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE
	h2 := false
	switch {
	case p == model.Auto && !upgrade, http.GetUseClientProtocol():
		opts.UpstreamProtocolOptions = downstreamProtocol()
	case p.IsHTTP2(), upgrade:
		o := &corev3.Http2ProtocolOptions{}
		if n := http.GetMaxConcurrentStreams(); n > 0 {
			o.MaxConcurrentStreams = wrapperspb.UInt32(uint32(n))
		}
		opts.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: o},
		}}
		h2 = true
	case set:
		opts.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}}
	default:
		return false
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: toAny(opts)}
	return h2
}

func downstreamProtocol() *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
		HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
	}}
}
