package decode

import (
	"reflect"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func hashRoute(t *testing.T, policies string) ([]conf.HashPolicy, error) {
	r, err := Routes(read(t, &routev3.RouteConfiguration{}, `{"name":"r","virtualHosts":[{"name":"v","domains":["*"],"routes":[
		{"match":{"prefix":"/"},"route":{"cluster":"c","hashPolicy":[`+policies+`]}}]}]}`))
	if err != nil {
		return nil, err
	}
	return r.Hosts[0].Routes[0].Forward.Hash, nil
}

func TestHashPolicies(t *testing.T) {
	for in, want := range map[string][]conf.HashPolicy{
		``: nil,
		`{"header":{"headerName":"X-User"},"terminal":true}`: {{Source: conf.HashHeader, Name: []byte("x-user"), Terminal: true}},
		`{"queryParameter":{"name":"User"}}`:                 {{Source: conf.HashQuery, Name: []byte("User")}},
		`{"connectionProperties":{"sourceIp":true}}`:         {{Source: conf.HashSourceIP}},
		`{"connectionProperties":{}}`:                        nil,
		`{"cookie":{"name":"user"}}`:                         {{Source: conf.HashCookie, Name: []byte("user")}},
		`{"cookie":{"name":"user","ttl":"0s"}}`:              {{Source: conf.HashCookie, Name: []byte("user"), Make: true}},
		`{"cookie":{"name":"user","ttl":"0.9s"}}`:            {{Source: conf.HashCookie, Name: []byte("user"), Make: true}},
		`{"cookie":{"name":"user","ttl":"1800s","path":"/a","attributes":[{"name":"SameSite","value":"Strict"},{"name":"Secure"}]}}`: {
			{Source: conf.HashCookie, Name: []byte("user"), Make: true, TTL: 30 * time.Minute, Attributes: "; Max-Age=1800; Path=/a; SameSite=Strict; Secure"}},
	} {
		if got, err := hashRoute(t, in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		`{}`:                                              "only header, cookie",
		`{"filterState":{"key":"a"}}`:                     "only header, cookie",
		`{"header":{"headerName":""}}`:                    "name is empty",
		`{"header":{"headerName":":path"}}`:               "pseudo headers",
		`{"cookie":{"name":"a b"}}`:                       `cookie "a b"`,
		`{"cookie":{"name":"a","ttl":"-1s"}}`:             "negative",
		`{"cookie":{"name":"a","ttl":"1s","path":"/;x"}}`: "cannot hold",
		`{"cookie":{"name":"a","ttl":"1s","attributes":[{"name":"a","value":"b;c"}]}}`: `attribute "a"`,
	} {
		if _, err := hashRoute(t, in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func TestHashSplit(t *testing.T) {
	for in, want := range map[string]bool{``: false, `"useHashPolicy":false,`: false, `"useHashPolicy":true,`: true} {
		r, err := Routes(read(t, &routev3.RouteConfiguration{}, `{"name":"r","virtualHosts":[{"name":"v","domains":["*"],"routes":[
			{"match":{"prefix":"/"},"route":{"weightedClusters":{`+in+`"clusters":[{"name":"a","weight":1}]}}}]}]}`))
		if err != nil || r.Hosts[0].Routes[0].Forward.HashSplit != want {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestHashTables(t *testing.T) {
	def := conf.HashTable{MinRing: 1024, MaxRing: 8 << 20, MaglevSize: 65537}
	with := func(f func(*conf.HashTable)) conf.HashTable { t := def; f(&t); return t }
	for in, want := range map[string]conf.HashTable{
		`"lbPolicy":"RING_HASH"`: def,
		`"lbPolicy":"RING_HASH","ringHashLbConfig":{"minimumRingSize":"6","maximumRingSize":"12"}`:          with(func(h *conf.HashTable) { h.MinRing, h.MaxRing = 6, 12 }),
		`"lbPolicy":"MAGLEV","maglevLbConfig":{"tableSize":"7"}`:                                            with(func(h *conf.HashTable) { h.MaglevSize = 7 }),
		`"lbPolicy":"MAGLEV","commonLbConfig":{"consistentHashingLbConfig":{"useHostnameForHashing":true}}`: with(func(h *conf.HashTable) { h.UseHostname = true }),
	} {
		c, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"EDS",`+in+`}`))
		if err != nil || c.Hash != want || c.LB != conf.RingHash && c.LB != conf.Maglev {
			t.Errorf("%s: %+v, %v", in, c, err)
		}
	}
	for in, want := range map[string]string{
		`"ringHashLbConfig":{"hashFunction":"MURMUR_HASH_2"}`:                      "MURMUR_HASH_2 is not supported",
		`"ringHashLbConfig":{"minimumRingSize":"13","maximumRingSize":"12"}`:       "minimum_ring_size (13)",
		`"ringHashLbConfig":{"minimumRingSize":"0"}`:                               "minimum_ring_size (0)",
		`"maglevLbConfig":{"tableSize":"8"}`:                                       "must be a prime",
		`"maglevLbConfig":{"tableSize":"5000077"}`:                                 "at most 5000011",
		`"commonLbConfig":{"consistentHashingLbConfig":{"hashBalanceFactor":150}}`: "hash_balance_factor is not supported",
		`"loadBalancingPolicy":{}`:                                                 "load_balancing_policy is not supported",
	} {
		if _, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"EDS",`+in+`}`)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func TestEndpointNames(t *testing.T) {
	c, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"STATIC","loadAssignment":{"clusterName":"c","endpoints":[{"lbEndpoints":[
		{"endpoint":{"hostname":"h","address":{"socketAddress":{"address":"127.0.0.1","portValue":1}}},"metadata":{"filterMetadata":{"envoy.lb":{"hash_key":"k"}}}}]}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if e := c.Endpoints.Localities[0].Endpoints[0]; e.Hostname != "h" || e.HashKey != "k" {
		t.Errorf("%+v", e)
	}
}

func TestTCPHashSource(t *testing.T) {
	tcp := func(policy string) (*conf.Listener, error) {
		return Listener(read(t, &listenerv3.Listener{}, `{"name":"l","address":{"socketAddress":{"address":"0.0.0.0","portValue":80}},"filterChains":[{"filters":[{"name":"t",
			"typedConfig":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","statPrefix":"t","cluster":"c","hashPolicy":[`+policy+`]}}]}]}`))
	}
	l, err := tcp(`{"sourceIp":{}}`)
	if err != nil || !l.Chains[0].TCP.HashSource {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := tcp(`{"filterState":{"key":"a"}}`); err == nil || !strings.Contains(err.Error(), "only source_ip") {
		t.Errorf("%v", err)
	}
}
