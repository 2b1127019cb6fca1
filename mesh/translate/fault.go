package translate

import (
	"math"

	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/objects"
)

// faultFilterName is what routes call the filter by.
const faultFilterName = "envoy.filters.http.fault"

// faultFilter does what a route tells it, and nothing for the others.
func faultFilter() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:       faultFilterName,
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: toAny(&faultv3.HTTPFault{})},
	}
}

// fault is what a rule injects; nil for nothing. Where no percentage is given nothing is, as Istio's API says.
func fault(f *networking.HTTPFaultInjection) *faultv3.HTTPFault {
	if f == nil {
		return nil
	}
	out := &faultv3.HTTPFault{}
	if d := f.Delay; d != nil {
		share := d.Percentage
		if share == nil {
			share = &networking.Percent{Value: float64(d.Percent)}
		}
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()},
			Percentage:         millionths(share),
		}
	}
	if a := f.Abort; a != nil {
		out.Abort = &faultv3.FaultAbort{Percentage: millionths(a.Percentage)}
		if name := a.GetGrpcStatus(); name != "" {
			n, _ := objects.GRPCStatus(name) // validation refuses other names
			out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: n}
		} else {
			out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(a.GetHttpStatus())}
		}
	}
	return out
}

// millionths is a percentage as Istio gives it to Envoy.
func millionths(p *networking.Percent) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(math.Round(p.GetValue() * 10_000)), Denominator: typev3.FractionalPercent_MILLION}
}
