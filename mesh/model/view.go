package model

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
)

// ProxyType is the role of a proxy.
type ProxyType string

// The roles.
const (
	Sidecar ProxyType = "sidecar"
	Router  ProxyType = "router" // a gateway
)

// ProxyView is all that translation may know of a proxy.
type ProxyView struct {
	ID          string // pod.namespace
	Type        ProxyType
	Namespace   string
	Pod         string
	IP          string
	Labels      map[string]string
	ClusterID   string
	Network     string
	Version     string // ISTIO_VERSION
	Interceptor string // INTERCEPTION_MODE
	SNIDNAT     bool   // ISTIO_META_ROUTER_MODE sni-dnat: a gateway that passes mutual TLS on by SNI
	Region      string // of the proxy's own locality
	Zone        string
	SubZone     string
	// NetworkView are the networks whose endpoints this proxy wants to see (ISTIO_META_REQUESTED_NETWORK_VIEW); empty is all.
	NetworkView []string
}

// VIPs are the addresses of a service that a proxy of this view can call: those of its own cluster. Other clusters' addresses mean
// something else there, or nothing; so a service that the proxy's cluster does not have gives it none.
func (v ProxyView) VIPs(s *Service) []string {
	if v.ClusterID == "" || len(s.ClusterVIPs) == 0 {
		return s.VIPs
	}
	return s.ClusterVIPs[v.ClusterID]
}

// ParseNode reads an xDS node: "sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local" and Istio's metadata.
func ParseNode(id string, metadata *structpb.Struct) (ProxyView, error) {
	p := strings.Split(id, "~")
	if len(p) != 4 {
		return ProxyView{}, fmt.Errorf("node id %q: want type~ip~pod.namespace~domain", id)
	}
	v := ProxyView{Type: ProxyType(p[0]), IP: p[1], ID: p[2], Labels: map[string]string{}}
	if v.Type != Sidecar && v.Type != Router {
		return ProxyView{}, fmt.Errorf("node id %q: type %q is not sidecar or router", id, p[0])
	}
	i := strings.LastIndexByte(p[2], '.')
	if i <= 0 {
		return ProxyView{}, fmt.Errorf("node id %q: %q is not pod.namespace", id, p[2])
	}
	v.Pod, v.Namespace = p[2][:i], p[2][i+1:]
	f := metadata.GetFields()
	for k, l := range f["LABELS"].GetStructValue().GetFields() {
		v.Labels[k] = l.GetStringValue()
	}
	if ns := f["NAMESPACE"].GetStringValue(); ns != "" && ns != v.Namespace {
		return ProxyView{}, fmt.Errorf("node id %q: metadata NAMESPACE is %q", id, ns)
	}
	v.ClusterID = f["CLUSTER_ID"].GetStringValue()
	v.Network = f["NETWORK"].GetStringValue()
	v.Version = f["ISTIO_VERSION"].GetStringValue()
	v.Interceptor = f["INTERCEPTION_MODE"].GetStringValue()
	v.SNIDNAT = f["ROUTER_MODE"].GetStringValue() == "sni-dnat"
	for n := range strings.SplitSeq(f["REQUESTED_NETWORK_VIEW"].GetStringValue(), ",") {
		if n = strings.TrimSpace(n); n != "" {
			v.NetworkView = append(v.NetworkView, n)
		}
	}
	return v, nil
}
