package decode

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// breakers reads the thresholds of default priority; a field that is absent has Envoy's default.
func breakers(cb *clusterv3.CircuitBreakers) (conf.Breakers, error) {
	out := conf.DefaultBreakers
	if cb == nil {
		return out, nil
	}
	if err := only(cb, "thresholds"); err != nil {
		return out, err
	}
	seen := false
	for i, t := range cb.Thresholds {
		// track_remaining only adds gauges, which are there anyhow.
		if err := only(t, "priority", "max_connections", "max_pending_requests", "max_requests", "max_retries", "track_remaining"); err != nil {
			return out, fmt.Errorf("thresholds %d: %w", i, err)
		}
		if t.Priority != corev3.RoutingPriority_DEFAULT {
			return out, fmt.Errorf("thresholds %d: priority %s is not supported; use DEFAULT", i, t.Priority)
		}
		if seen {
			continue // as in Envoy, the first one of a priority counts
		}
		seen = true
		out = conf.Breakers{
			Connections: or(t.MaxConnections, out.Connections), Pending: or(t.MaxPendingRequests, out.Pending),
			Requests: or(t.MaxRequests, out.Requests), Retries: or(t.MaxRetries, out.Retries),
		}
	}
	return out, nil
}

func or(v *wrapperspb.UInt32Value, absent uint32) uint32 {
	if v == nil {
		return absent
	}
	return v.Value
}
