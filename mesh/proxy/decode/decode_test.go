package decode

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func read[M proto.Message](t testing.TB, m M, json string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(json), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRefusedByName(t *testing.T) {
	route := func(s string) error {
		_, err := Routes(read(t, &routev3.RouteConfiguration{}, `{"name":"r","virtualHosts":[{"name":"v","domains":["*"],"routes":[`+s+`]}]}`))
		return err
	}
	cluster := func(s string) error {
		_, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"EDS",`+s+`}`))
		return err
	}
	listener := func(s string) error {
		_, err := Listener(read(t, &listenerv3.Listener{}, `{"name":"l","address":{"socketAddress":{"address":"0.0.0.0","portValue":80}},`+s+`}`))
		return err
	}
	for want, err := range map[string]error{
		"request_mirror_policies is not supported":                                  route(`{"match":{"prefix":"/"},"route":{"cluster":"c","requestMirrorPolicies":[{"cluster":"d"}]}}`),
		`typed_per_filter_config: "x": "google.protobuf.Duration" is not supported`: route(`{"match":{"prefix":"/"},"route":{"cluster":"c"},"typedPerFilterConfig":{"x":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1s"}}}`),
		"dynamic_metadata is not supported":                                         route(`{"match":{"prefix":"/","dynamicMetadata":[{"filter":"f"}]},"route":{"cluster":"c"}}`),
		"regex \"(\"":                                                               route(`{"match":{"safeRegex":{"regex":"("}},"route":{"cluster":"c"}}`),
		"the weights add up to 0":                                                   route(`{"match":{"prefix":"/"},"route":{"weightedClusters":{"clusters":[{"name":"a","weight":0}]}}}`),
		"command %FOO% is not supported":                                            route(`{"match":{"prefix":"/"},"route":{"cluster":"c"},"requestHeadersToAdd":[{"header":{"key":"a","value":"%FOO%"}}]}`),
		"holds a control character":                                                 route(`{"match":{"prefix":"/"},"route":{"cluster":"c"},"requestHeadersToAdd":[{"header":{"key":"a","value":"x\r\nb: c"}}]}`),
		"outlier_detection: monitors is not supported":                              cluster(`"outlierDetection":{"monitors":[{}]}`),
		"priority HIGH is not supported":                                            cluster(`"circuitBreakers":{"thresholds":[{"priority":"HIGH"}]}`),
		"retry_budget is not supported":                                             cluster(`"circuitBreakers":{"thresholds":[{"retryBudget":{}}]}`),
		"health_checks is not supported":                                            cluster(`"healthChecks":[{"timeout":"1s"}]`),
		"no filter chain":                                                           listener(`"trafficDirection":"OUTBOUND"`),
		"api_listener is not supported":                                             listener(`"apiListener":{}`),
		"no terminal filter":                                                        listener(`"filterChains":[{}]`),
		"transport_protocol \"quic\" is not supported":                              listener(`"filterChains":[{"filterChainMatch":{"transportProtocol":"quic"}}]`),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestDomains(t *testing.T) {
	r, err := Routes(read(t, &routev3.RouteConfiguration{}, `{"name":"r","ignorePortInHostMatching":true,"virtualHosts":[
		{"name":"any","domains":["*"]},{"name":"exact","domains":["A.example.com"]},{"name":"suffix","domains":["*.example.com"]},
		{"name":"longer","domains":["*.b.example.com"]},{"name":"prefix","domains":["a.*"]},{"name":"v6","domains":["[::1]"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"a.example.com": "exact", "a.example.com:8080": "exact", "x.example.com": "suffix", "x.b.example.com:1": "longer", "a.other": "prefix",
		"other": "any", "example.com": "any", "[::1]:80": "v6", "[::1]": "v6",
	} {
		if got := r.HostIndex([]byte(host)); got == nil || got.Name != want {
			t.Errorf("%s: got %v, want %s", host, got, want)
		}
	}
	_, err = Routes(read(t, &routev3.RouteConfiguration{}, `{"name":"r","virtualHosts":[{"name":"a","domains":["X"]},{"name":"b","domains":["x"]}]}`))
	if err == nil || !strings.Contains(err.Error(), "two virtual hosts") {
		t.Errorf("a domain in two hosts: %v", err)
	}
}

func TestClusterDefaults(t *testing.T) {
	c, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"outbound|80||x","type":"EDS","connectTimeout":"10s","lbPolicy":"LEAST_REQUEST",
		"transportSocketMatches":[{"name":"tlsMode-istio","match":{"tlsMode":"istio"},"transportSocket":{"name":"tls","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","sni":"s","commonTlsContext":{"alpnProtocols":["istio"]}}}},
		{"name":"tlsMode-disabled","match":{},"transportSocket":{"name":"envoy.transport_sockets.raw_buffer"}}],
		"metadata":{"filterMetadata":{"istio":{"services":[{"name":"x","namespace":"n","host":"x.n"}]}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.ServiceName != c.Name || c.LB != conf.LeastRequest || c.ChoiceCount != 2 || c.Direction != conf.Outbound || len(c.TLSMatches) != 2 || c.TLSMatches[0].TLS.SNI != "s" || c.TLSMatches[1].TLS != nil || c.Services[0].Host != "x.n" {
		t.Errorf("%+v", c)
	}
}

// FuzzDecode: no bytes make a decoder panic, and what is accepted is complete enough to be looked at.
func FuzzDecode(f *testing.F) {
	seed := func(m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(read(f, &routev3.RouteConfiguration{}, `{"name":"r","virtualHosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/","headers":[{"name":"a","stringMatch":{"exact":"b"}}]},"route":{"weightedClusters":{"clusters":[{"name":"a","weight":1}]}}}]}]}`))
	seed(read(f, &clusterv3.Cluster{}, `{"name":"c","type":"STATIC","loadAssignment":{"clusterName":"c","endpoints":[{"lbEndpoints":[{"endpoint":{"address":{"socketAddress":{"address":"127.0.0.1","portValue":1}}}}]}]}}`))
	seed(&corev3.Node{Id: "x"})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r routev3.RouteConfiguration
		if proto.Unmarshal(b, &r) == nil {
			if rt, err := Routes(&r); err == nil {
				rt.HostIndex([]byte("a.b:80"))
			}
		}
		var c clusterv3.Cluster
		if proto.Unmarshal(b, &c) == nil {
			_, _ = Cluster(&c)
		}
		var e endpointv3.ClusterLoadAssignment
		if proto.Unmarshal(b, &e) == nil {
			_, _ = Endpoints(&e)
		}
		var l listenerv3.Listener
		if proto.Unmarshal(b, &l) == nil {
			_, _ = Listener(&l)
		}
	})
}
