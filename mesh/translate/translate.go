// Package translate turns a Snapshot into the configuration of one proxy: Istio's names and shapes, stock Envoy types.
//
// Translation is pure: the same Snapshot and ProxyView give the same bytes. A Translator remembers the pieces it made, keyed
// by everything they were made from, so that a change costs what it touches and not what the mesh holds.
package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// Ports of the sidecar, as Istio has them.
const (
	outboundPort = 15001
	inboundPort  = 15006
)

// Translate gives the whole configuration of one proxy. It remembers nothing.
func Translate(s *model.Snapshot, v model.ProxyView) (xds.Set, error) {
	t := New()
	shared, err := t.shared(s, t.scopeOf(s, v))
	if err != nil {
		return xds.Set{}, err
	}
	own, err := t.own(s, v)
	if err != nil {
		return xds.Set{}, err
	}
	out := xds.Set{
		Clusters:  append(slices.Clone(shared.Clusters), own.Clusters...),
		Endpoints: shared.Endpoints,
		Listeners: append(slices.Clone(shared.Listeners), own.Listeners...),
		Routes:    append(slices.Clone(shared.Routes), own.Routes...),
	}
	sortSet(&out)
	return out, nil
}

// Translator gives the encoded configuration of proxies. It is safe for concurrent use.
type Translator struct {
	clusters  memo[clusterKey, []*clusterv3.Cluster]
	endpoints memo[endpointKey, []*endpointv3.ClusterLoadAssignment]
	vhosts    memo[vhostKey, *routev3.VirtualHost]
	routes    memo[routeKey, *assembled]
	listeners memo[listenerKey, *listenerv3.Listener]
	encoded   memo[proto.Message, *xds.Resource]
	sharedBy  memo[scopeAt, *xds.Part]
	ports     memo[portsKey, string]
	ownBy     memo[ownKey, *xds.Part]
	needs     memo[*model.Snapshot, *needs]
	nets      memo[*model.Snapshot, *networks]
	latest    memo[any, *xds.Part] // the newest Part of a scope or proxy, kept while its content stays
}

// New returns a Translator that remembers nothing yet.
func New() *Translator { return &Translator{} }

// Parts gives a proxy's configuration as Parts: what it shares with others of its scope, and its own. A Part that did not
// change since the last call is the same pointer.
func (t *Translator) Parts(s *model.Snapshot, v model.ProxyView) ([]*xds.Part, error) {
	sc := t.scopeOf(s, v)
	shared, err := t.sharedBy.get(s.Sequence, scopeAt{sc, s}, func() (*xds.Part, error) {
		set, err := t.shared(s, sc)
		if err != nil {
			return nil, err
		}
		return t.part(s, sc, set)
	})
	if err != nil {
		return nil, err
	}
	k := t.ownKeyOf(s, v)
	own, err := t.ownBy.get(s.Sequence, k, func() (*xds.Part, error) {
		set, err := t.own(s, v)
		if err != nil {
			return nil, err
		}
		return t.part(s, k.view, set)
	})
	if err != nil {
		return nil, err
	}
	return []*xds.Part{shared, own}, nil
}

// part encodes a set, and returns the Part made before for the same owner if nothing in it changed.
func (t *Translator) part(s *model.Snapshot, owner any, set xds.Set) (*xds.Part, error) {
	var lists [len(xds.PushOrder)][]*xds.Resource
	add := func(typ, name string, m proto.Message) error {
		r, err := t.encoded.get(s.Sequence, m, func() (*xds.Resource, error) { return xds.Encode(name, m) })
		if err == nil {
			i := xds.TypeIndex(typ)
			lists[i] = append(lists[i], r)
		}
		return err
	}
	for _, c := range set.Clusters {
		if err := add(xds.ClusterType, c.Name, c); err != nil {
			return nil, err
		}
	}
	for _, e := range set.Endpoints {
		if err := add(xds.EndpointType, e.ClusterName, e); err != nil {
			return nil, err
		}
	}
	for _, l := range set.Listeners {
		if err := add(xds.ListenerType, l.Name, l); err != nil {
			return nil, err
		}
	}
	for _, r := range set.Routes {
		if err := add(xds.RouteType, r.Name, r); err != nil {
			return nil, err
		}
	}
	p := xds.NewPart(lists)
	return t.latest.update(s.Sequence, owner, func(old *xds.Part) *xds.Part {
		if p.Equal(old) {
			return old
		}
		return p
	}), nil
}

// scope is all of a proxy that its shared configuration may depend on. Translation of the shared part takes a scope and
// never a ProxyView, so that it cannot depend on anything else.
type scope struct {
	typ       model.ProxyType
	namespace string
	labels    string // only those that some rule asks for
	cluster   string
	network   string
	networks  string // that the proxy wants to see, as in place
	// The proxy's locality, where some rule orders endpoints by it.
	region, zone, subZone string
}

type scopeAt struct {
	scope
	snapshot *model.Snapshot
}

func (t *Translator) scopeOf(s *model.Snapshot, v model.ProxyView) scope {
	n := t.needsOf(s)
	sc := scope{typ: v.Type, namespace: v.Namespace, cluster: v.ClusterID, network: v.Network}
	if len(v.NetworkView) > 0 {
		sc.networks = "\n" + strings.Join(slices.Sorted(slices.Values(v.NetworkView)), "\n") + "\n"
	}
	if n.locality {
		sc.region, sc.zone, sc.subZone = v.Region, v.Zone, v.SubZone
	}
	if v.Type == model.Router {
		sc.labels = encodeLabels(v.Labels) // gateways are selected by labels
		return sc
	}
	used := map[string]string{}
	for _, keys := range [][]string{s.SourceLabels, n.labels} {
		for _, k := range keys {
			if l, ok := v.Labels[k]; ok {
				used[k] = l
			}
		}
	}
	sc.labels = encodeLabels(used)
	return sc
}

func encodeLabels(l map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(l)) {
		fmt.Fprintf(&b, "%s=%s\n", k, l[k])
	}
	return b.String()
}

func (s scope) decodeLabels() map[string]string {
	out := map[string]string{}
	for l := range strings.Lines(s.labels) {
		k, v, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "=")
		out[k] = v
	}
	return out
}

// shared is what every proxy of a scope has: the outbound side of sidecars, everything of gateways.
func (t *Translator) shared(s *model.Snapshot, sc scope) (xds.Set, error) {
	o := &outbound{t: t, s: s, scope: sc, labels: sc.decodeLabels(), needs: t.needsOf(s), nets: t.networksOf(s)}
	o.collect()
	set := xds.Set{}
	o.addClusters(&set)
	var err error
	if sc.typ == model.Router {
		err = o.addGateways(&set)
	} else {
		err = o.addListeners(&set)
	}
	if err != nil {
		return xds.Set{}, err
	}
	sortSet(&set)
	return set, nil
}

// own is what a proxy has for itself: the inbound side of a sidecar.
func (t *Translator) own(s *model.Snapshot, v model.ProxyView) (xds.Set, error) {
	if v.Type == model.Router {
		return xds.Set{}, nil
	}
	return inbound(s, v)
}

// ownKey is all that a proxy's own part depends on, beside the mesh's constants.
type ownKey struct {
	view  string
	ports string
}

// portsKey is all that the ports of a proxy's own workload depend on.
type portsKey struct {
	view  string
	world uint64 // ServicesAt
	pod   *model.Pod
}

func (t *Translator) ownKeyOf(s *model.Snapshot, v model.ProxyView) ownKey {
	k := ownKey{view: strings.Join([]string{string(v.Type), v.ID, v.IP, encodeLabels(v.Labels)}, "~")}
	if v.Type == model.Router {
		return k
	}
	k.ports, _ = t.ports.get(s.Sequence, portsKey{k.view, s.ServicesAt, s.PodOf(v)}, func() (string, error) {
		return fmt.Sprint(inboundPorts(s, v)), nil
	})
	return k
}

// outbound is one translation of a shared part.
type outbound struct {
	t        *Translator
	s        *model.Snapshot
	scope    scope
	labels   map[string]string
	needs    *needs
	nets     *networks
	services []*model.Service        // visible to the scope
	virtual  []*model.VirtualService // likewise, oldest first
	// HTTP rules of sidecars by exact host, and those with a wildcard.
	exact map[string]*model.VirtualService
	wild  []*model.VirtualService
	l4    []*model.VirtualService // with rules for connections, of sidecars

	servers []gatewayServer // of a gateway proxy
	dnat    bool            // some server passes mutual TLS on by the cluster's name in SNI
}

func (o *outbound) collect() {
	for _, svc := range o.s.Services {
		if model.Visible(svc.ExportTo, svc.Namespace, o.scope.namespace) {
			o.services = append(o.services, svc)
		}
	}
	for _, vs := range o.s.VirtualServices {
		if model.Visible(vs.ExportTo, vs.Key.Namespace, o.scope.namespace) {
			o.virtual = append(o.virtual, vs)
		}
	}
	if o.scope.typ == model.Router {
		o.collectServers()
		return
	}
	o.exact = map[string]*model.VirtualService{}
	for _, vs := range o.virtual {
		if len(vs.Spec.Spec.Tcp)+len(vs.Spec.Spec.Tls) > 0 && slices.Contains(vs.Gateways, "mesh") {
			o.l4 = append(o.l4, vs)
		}
		if len(vs.Spec.Spec.Http) == 0 || !slices.Contains(vs.Gateways, "mesh") {
			continue
		}
		wild := false
		for _, h := range vs.Hosts {
			if strings.HasPrefix(h, "*") {
				wild = true
			} else if o.exact[h] == nil {
				o.exact[h] = vs // the oldest decides
			}
		}
		if wild {
			o.wild = append(o.wild, vs)
		}
	}
}

// service returns a service that the scope may see, or nil.
func (o *outbound) service(host string) *model.Service {
	svc := o.s.Service(host)
	if svc == nil || !model.Visible(svc.ExportTo, svc.Namespace, o.scope.namespace) {
		return nil
	}
	return svc
}

// vips are the addresses under which the scope's proxies call a service.
func (o *outbound) vips(svc *model.Service) []string {
	return model.ProxyView{ClusterID: o.scope.cluster}.VIPs(svc)
}

func sortSet(s *xds.Set) {
	slices.SortFunc(s.Clusters, func(a, b *clusterv3.Cluster) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Endpoints, func(a, b *endpointv3.ClusterLoadAssignment) int {
		return cmp.Compare(a.ClusterName, b.ClusterName)
	})
	slices.SortFunc(s.Listeners, func(a, b *listenerv3.Listener) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Routes, func(a, b *routev3.RouteConfiguration) int { return cmp.Compare(a.Name, b.Name) })
}
