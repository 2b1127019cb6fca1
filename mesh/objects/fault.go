package objects

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// GRPCStatus is the number that the gRPC status of that name has, such as UNAVAILABLE. ok tells whether there is an error of it.
func GRPCStatus(name string) (status uint32, ok bool) {
	n, ok := code.Code_value[name]
	return uint32(n), ok && n > 0
}

func (v *validator) fault(at string, f *networkingv1alpha3.HTTPFaultInjection) {
	if f.Delay == nil && f.Abort == nil {
		v.err(at, "neither delay nor abort", "say what to do to requests")
	}
	if d := f.Delay; d != nil {
		v.faultDelay(at+".delay", d)
	}
	if a := f.Abort; a != nil {
		v.faultAbort(at+".abort", a)
	}
}

func (v *validator) faultDelay(at string, d *networkingv1alpha3.HTTPFaultInjection_Delay) {
	const field = ".fixedDelay"
	switch fixed := d.GetFixedDelay(); {
	case d.HttpDelayType == nil:
		v.err(at+field, "no delay", "say how long, such as 5s")
	case fixed == nil: // of a type that is not supported
	case fixed.CheckValid() != nil:
		v.err(at+field, "not a duration", "use one such as 5s")
	case fixed.AsDuration() < time.Millisecond:
		v.err(at+field, fmt.Sprintf("%v is below 1ms", fixed.AsDuration()), "use 1ms or more")
	}
	old := d.Percent // deprecated, and in people's objects
	switch {
	case old == 0:
		v.percentage(at, d.Percentage, "no request is delayed")
	case d.Percentage != nil:
		v.err(at+".percent", "both percent and percentage", "keep percentage")
	case old < 0 || old > 100:
		v.err(at+".percent", fmt.Sprintf("%d is not a percentage", old), "use 0 to 100")
	default:
		v.warn(at+".percent", "deprecated", fmt.Sprintf("write percentage: {value: %d}", old))
	}
}

func (v *validator) faultAbort(at string, a *networkingv1alpha3.HTTPFaultInjection_Abort) {
	switch e := a.ErrorType.(type) {
	case *networkingv1alpha3.HTTPFaultInjection_Abort_HttpStatus:
		if e.HttpStatus < 200 || e.HttpStatus > 599 {
			v.err(at+".httpStatus", fmt.Sprintf("%d is not a response status", e.HttpStatus), "use 200 to 599")
		}
	case *networkingv1alpha3.HTTPFaultInjection_Abort_GrpcStatus:
		if _, ok := GRPCStatus(e.GrpcStatus); !ok {
			v.err(at+".grpcStatus", fmt.Sprintf("%q is not the name of a gRPC error", e.GrpcStatus), didYouMean(strings.ToUpper(e.GrpcStatus), grpcErrors()))
		}
	case nil:
		v.err(at, "no status", "say httpStatus or grpcStatus")
	}
	v.percentage(at, a.Percentage, "no request is aborted")
}

// percentage checks a share of requests; consequence is that of none given.
func (v *validator) percentage(at string, p *networkingv1alpha3.Percent, consequence string) {
	switch {
	case p == nil:
		v.warn(at, "no percentage: "+consequence, "say percentage: {value: 100} for all of them")
	case !(p.Value >= 0 && p.Value <= 100): // NaN too
		v.err(at+".percentage.value", fmt.Sprintf("%v is not a percentage", p.Value), "use 0 to 100")
	}
}

func grpcErrors() []string {
	var out []string
	for name, n := range code.Code_value {
		if n > 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
