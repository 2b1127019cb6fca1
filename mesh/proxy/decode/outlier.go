package decode

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func outlierDetection(o *clusterv3.OutlierDetection) (*conf.Outlier, error) {
	if o == nil {
		return nil, nil
	}
	// successful_active_health_check_uneject_host has no effect: there are no active health checks.
	if err := only(o, "consecutive_5xx", "interval", "base_ejection_time", "max_ejection_percent", "enforcing_consecutive_5xx", "enforcing_success_rate",
		"success_rate_minimum_hosts", "success_rate_request_volume", "success_rate_stdev_factor", "consecutive_gateway_failure",
		"enforcing_consecutive_gateway_failure", "split_external_local_origin_errors", "consecutive_local_origin_failure",
		"enforcing_consecutive_local_origin_failure", "enforcing_local_origin_success_rate", "failure_percentage_threshold",
		"enforcing_failure_percentage", "enforcing_failure_percentage_local_origin", "failure_percentage_minimum_hosts",
		"failure_percentage_request_volume", "max_ejection_time", "max_ejection_time_jitter", "successful_active_health_check_uneject_host",
		"always_eject_one_host"); err != nil {
		return nil, err
	}
	out := conf.DefaultOutlier
	out.AlwaysOne, out.Split = o.AlwaysEjectOneHost.GetValue(), o.SplitExternalLocalOriginErrors
	for _, f := range []struct {
		name string
		v    *durationpb.Duration
		to   *time.Duration
	}{{"interval", o.Interval, &out.Interval}, {"base_ejection_time", o.BaseEjectionTime, &out.BaseEjection}, {"max_ejection_time", o.MaxEjectionTime, &out.MaxEjection},
		{"max_ejection_time_jitter", o.MaxEjectionTimeJitter, &out.MaxJitter}} {
		v, err := duration(f.v, *f.to)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if v == 0 && f.to != &out.MaxJitter {
			return nil, fmt.Errorf("%s: must be greater than 0", f.name)
		}
		*f.to = v
	}
	if o.MaxEjectionTime == nil {
		out.MaxEjection = max(out.MaxEjection, out.BaseEjection)
	}
	if out.MaxEjection < out.BaseEjection {
		return nil, fmt.Errorf("max_ejection_time %v cannot be smaller than base_ejection_time %v", out.MaxEjection, out.BaseEjection)
	}
	e := &out.Enforcing
	for _, f := range []struct {
		name    string
		v       *wrapperspb.UInt32Value
		to      *uint32
		percent bool
	}{
		{"consecutive_5xx", o.Consecutive_5Xx, &out.Consecutive5xx, false},
		{"consecutive_gateway_failure", o.ConsecutiveGatewayFailure, &out.ConsecutiveGateway, false},
		{"consecutive_local_origin_failure", o.ConsecutiveLocalOriginFailure, &out.ConsecutiveLocal, false},
		{"success_rate_minimum_hosts", o.SuccessRateMinimumHosts, &out.SuccessRateHosts, false},
		{"success_rate_request_volume", o.SuccessRateRequestVolume, &out.SuccessRateVolume, false},
		{"success_rate_stdev_factor", o.SuccessRateStdevFactor, &out.SuccessRateStdev, false},
		{"failure_percentage_minimum_hosts", o.FailurePercentageMinimumHosts, &out.FailureHosts, false},
		{"failure_percentage_request_volume", o.FailurePercentageRequestVolume, &out.FailureVolume, false},
		{"failure_percentage_threshold", o.FailurePercentageThreshold, &out.FailureThreshold, true},
		{"max_ejection_percent", o.MaxEjectionPercent, &out.MaxPercent, true},
		{"enforcing_consecutive_5xx", o.EnforcingConsecutive_5Xx, &e[conf.Eject5xx], true},
		{"enforcing_consecutive_gateway_failure", o.EnforcingConsecutiveGatewayFailure, &e[conf.EjectGateway], true},
		{"enforcing_consecutive_local_origin_failure", o.EnforcingConsecutiveLocalOriginFailure, &e[conf.EjectLocal], true},
		{"enforcing_success_rate", o.EnforcingSuccessRate, &e[conf.EjectSuccessRate], true},
		{"enforcing_local_origin_success_rate", o.EnforcingLocalOriginSuccessRate, &e[conf.EjectSuccessRateLocal], true},
		{"enforcing_failure_percentage", o.EnforcingFailurePercentage, &e[conf.EjectFailurePercentage], true},
		{"enforcing_failure_percentage_local_origin", o.EnforcingFailurePercentageLocalOrigin, &e[conf.EjectFailurePercentageLocal], true},
	} {
		*f.to = or(f.v, *f.to)
		if f.percent && *f.to > 100 {
			return nil, fmt.Errorf("%s: %d is over 100", f.name, *f.to)
		}
	}
	return &out, nil
}
