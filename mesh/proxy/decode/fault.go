package decode

import (
	"errors"
	"fmt"

	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// routeFilters takes what a route says to the filters of its chain; there is one that can be told something.
func routeFilters(m map[string]*anypb.Any) (*conf.Fault, error) {
	var out *conf.Fault
	for name, a := range m {
		n := typeName(a)
		if n != "envoy.extensions.filters.http.fault.v3.HTTPFault" {
			return nil, fmt.Errorf("%q: %q is not supported", name, n)
		}
		if name != conf.FaultFilter {
			return nil, fmt.Errorf("%q: a fault is supported under the name %s", name, conf.FaultFilter)
		}
		var f faultv3.HTTPFault
		err := open(a, &f)
		if err == nil {
			out, err = fault(&f)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
	}
	return out, nil
}

func fault(f *faultv3.HTTPFault) (*conf.Fault, error) {
	// Statistics of the caller's cluster are kept nowhere, so that turning them off changes nothing.
	if err := only(f, "delay", "abort", "disable_downstream_cluster_stats"); err != nil {
		return nil, err
	}
	out := &conf.Fault{}
	if d := f.Delay; d != nil {
		if err := faultDelay(d, out); err != nil {
			return nil, fmt.Errorf("delay: %w", err)
		}
	}
	if a := f.Abort; a != nil {
		if err := faultAbort(a, out); err != nil {
			return nil, fmt.Errorf("abort: %w", err)
		}
	}
	return out, nil
}

func faultDelay(d *commonfaultv3.FaultDelay, out *conf.Fault) (err error) {
	if err := only(d, "fixed_delay", "percentage"); err != nil {
		return err
	}
	if out.Delay, err = duration(d.GetFixedDelay(), 0); err != nil {
		return fmt.Errorf("fixed_delay: %w", err)
	}
	if out.Delay <= 0 {
		return errors.New("fixed_delay must be above 0")
	}
	out.DelayFraction = fraction(d.Percentage)
	return nil
}

func faultAbort(a *faultv3.FaultAbort, out *conf.Fault) error {
	if err := only(a, "http_status", "grpc_status", "percentage"); err != nil {
		return err
	}
	switch e := a.ErrorType.(type) {
	case *faultv3.FaultAbort_HttpStatus:
		if e.HttpStatus < 200 || e.HttpStatus > 599 {
			return fmt.Errorf("http_status %d is out of range", e.HttpStatus)
		}
		out.Abort = int(e.HttpStatus)
	case *faultv3.FaultAbort_GrpcStatus:
		if e.GrpcStatus == 0 || e.GrpcStatus > 16 {
			return fmt.Errorf("grpc_status %d is no error", e.GrpcStatus)
		}
		out.Abort, out.AbortGRPC = 200, int(e.GrpcStatus)
	default:
		return errors.New("neither http_status nor grpc_status")
	}
	out.AbortFraction = fraction(a.Percentage)
	return nil
}

// fraction is a share out of a million; what is not set is none.
func fraction(p *typev3.FractionalPercent) uint32 {
	n := uint64(p.GetNumerator())
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		n *= 10_000
	case typev3.FractionalPercent_TEN_THOUSAND:
		n *= 100
	}
	return uint32(min(n, uint64(conf.Always)))
}
