package decode

import (
	"reflect"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func faulty(t *testing.T, name, kind, fault string) (*conf.RouteTable, error) {
	t.Helper()
	return Routes(read(t, &routev3.RouteConfiguration{}, `{"name":"r","virtualHosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},
	  "directResponse":{"status":200},"typedPerFilterConfig":{"`+name+`":{"@type":"type.googleapis.com/`+kind+`"`+fault+`}}}]}]}`))
}

func TestFault(t *testing.T) {
	const kind = "envoy.extensions.filters.http.fault.v3.HTTPFault"
	for in, want := range map[string]conf.Fault{
		``: {},
		`,"abort":{"httpStatus":400,"percentage":{"numerator":50000,"denominator":"MILLION"}}`: {Abort: 400, AbortFraction: 50_000},
		`,"abort":{"grpcStatus":14,"percentage":{"numerator":100}}`:                            {Abort: 200, AbortGRPC: 14, AbortFraction: conf.Always},
		`,"abort":{"httpStatus":503}`:                                                          {Abort: 503}, // of no request
		`,"delay":{"fixedDelay":"7s","percentage":{"numerator":7,"denominator":"TEN_THOUSAND"}},"disableDownstreamClusterStats":true`: {
			Delay: 7 * time.Second, DelayFraction: 700,
		},
		`,"delay":{"fixedDelay":"0.001s","percentage":{"numerator":200}}`: {Delay: time.Millisecond, DelayFraction: conf.Always},
	} {
		rt, err := faulty(t, conf.FaultFilter, kind, in)
		if err != nil || !reflect.DeepEqual(rt.Any.Routes[0].Fault, &want) {
			t.Errorf("%s: %+v, %v", in, rt, err)
		}
	}
	for _, tt := range []struct{ name, kind, in, want string }{
		{conf.FaultFilter, kind, `,"abort":{}`, "neither http_status nor grpc_status"},
		{conf.FaultFilter, kind, `,"abort":{"httpStatus":199}`, "http_status 199 is out of range"},
		{conf.FaultFilter, kind, `,"abort":{"grpcStatus":0}`, "grpc_status 0 is no error"},
		{conf.FaultFilter, kind, `,"abort":{"grpcStatus":17}`, "grpc_status 17 is no error"},
		{conf.FaultFilter, kind, `,"abort":{"headerAbort":{}}`, "header_abort"},
		{conf.FaultFilter, kind, `,"delay":{}`, "fixed_delay must be above 0"},
		{conf.FaultFilter, kind, `,"delay":{"fixedDelay":"-1s"}`, "fixed_delay"},
		{conf.FaultFilter, kind, `,"delay":{"headerDelay":{}}`, "header_delay"},
		{conf.FaultFilter, kind, `,"maxActiveFaults":3`, "max_active_faults"},
		{conf.FaultFilter, kind, `,"responseRateLimit":{}`, "response_rate_limit"},
		{"fault", kind, ``, "a fault is supported under the name " + conf.FaultFilter},
		{"cors", "envoy.extensions.filters.http.cors.v3.CorsPolicy", ``, `"cors": "envoy.extensions.filters.http.cors.v3.CorsPolicy" is not supported`},
	} {
		if _, err := faulty(t, tt.name, tt.kind, tt.in); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "typed_per_filter_config") {
			t.Errorf("%s: %v, want %q", tt.in, err, tt.want)
		}
	}
}
