package model

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/objects"
)

// Builder turns API objects into Snapshots. Set and Delete record what changed; Build makes the next Snapshot and does
// work only for what did. A Builder is not safe for concurrent use. It keeps the objects given to it, which must not
// change afterwards.
type Builder struct {
	mesh Mesh
	now  func() time.Time
	prev *Snapshot

	services map[string]*corev1.Service // "namespace/name"
	slices   map[string]map[string]*discoveryv1.EndpointSlice
	pods     map[string]*Pod
	podsByIP map[string]*Pod
	podUsers map[string]map[string]bool // pod -> services with an endpoint on it
	configs  map[Key]*configEntry

	dirtyServices  map[string]bool
	dirtyEndpoints map[string]bool
	dirtyPods      bool
	dirtyConfig    bool
}

// configEntry is an Istio object: the newest generation seen, and the one in force, which is the last valid one.
type configEntry struct {
	seen     int64
	problems []objects.Problem
	inForce  any // *VirtualService, *DestinationRule, *Gateway or nil
	current  bool
}

// NewBuilder returns an empty Builder; now stamps the snapshots.
func NewBuilder(mesh Mesh, now func() time.Time) *Builder {
	return &Builder{
		mesh: mesh, now: now,
		services: map[string]*corev1.Service{}, slices: map[string]map[string]*discoveryv1.EndpointSlice{},
		pods: map[string]*Pod{}, podsByIP: map[string]*Pod{}, podUsers: map[string]map[string]bool{},
		configs:       map[Key]*configEntry{},
		dirtyServices: map[string]bool{}, dirtyEndpoints: map[string]bool{},
	}
}

// Change says how far a recorded event reaches.
type Change int

// The reaches of an event, in rising order.
const (
	Nothing       Change = iota
	EndpointsOnly        // addresses came or went
	Config               // a service or a traffic object changed
)

// Set records that an object was added or changed. Kinds that the model does not hold are ignored.
func (b *Builder) Set(obj any) Change {
	switch o := obj.(type) {
	case *corev1.Service:
		k := o.Namespace + "/" + o.Name
		b.services[k] = o
		b.dirtyServices[k], b.dirtyEndpoints[k] = true, true
		return Config
	case *discoveryv1.EndpointSlice:
		name := o.Labels[discoveryv1.LabelServiceName]
		if name == "" {
			return Nothing
		}
		k := o.Namespace + "/" + name
		if b.slices[k] == nil {
			b.slices[k] = map[string]*discoveryv1.EndpointSlice{}
		}
		b.slices[k][o.Name] = o
		b.dirtyEndpoints[k] = true
		return EndpointsOnly
	case *corev1.Pod:
		return b.setPod(o)
	case *networking.VirtualService:
		return b.setConfig("VirtualService", o.ObjectMeta, o, func(m Meta) any {
			v := &VirtualService{Meta: m, Spec: o}
			v.ExportTo = o.Spec.ExportTo
			for _, h := range o.Spec.Hosts {
				v.Hosts = append(v.Hosts, b.mesh.Resolve(h, o.Namespace))
			}
			for _, g := range o.Spec.Gateways {
				v.Gateways = append(v.Gateways, ResolveGateway(g, o.Namespace))
			}
			if len(v.Gateways) == 0 {
				v.Gateways = []string{"mesh"}
			}
			return v
		})
	case *networking.DestinationRule:
		return b.setConfig("DestinationRule", o.ObjectMeta, o, func(m Meta) any {
			m.ExportTo = o.Spec.ExportTo
			return &DestinationRule{Meta: m, Spec: o, Host: b.mesh.Resolve(o.Spec.Host, o.Namespace)}
		})
	case *networking.Gateway:
		return b.setConfig("Gateway", o.ObjectMeta, o, func(m Meta) any { return &Gateway{Meta: m, Spec: o} })
	}
	return Nothing
}

// ResolveGateway makes the name of a gateway in a VirtualService of namespace into namespace/name, or "mesh".
func ResolveGateway(name, namespace string) string {
	if name == "mesh" || strings.Contains(name, "/") {
		return name
	}
	return namespace + "/" + name
}

func (b *Builder) setConfig(kind string, m metav1.ObjectMeta, obj any, convert func(Meta) any) Change {
	key := Key{kind, m.Namespace, m.Name}
	e := b.configs[key]
	if e == nil {
		e = &configEntry{}
		b.configs[key] = e
	} else if e.seen == m.Generation && m.Generation != 0 {
		return Nothing // metadata or status only
	}
	e.seen = m.Generation
	e.problems = objects.Validate(obj)
	e.current = !objects.HasErrors(e.problems)
	if e.current {
		e.inForce = convert(Meta{Key: key, Generation: m.Generation, Created: m.CreationTimestamp.Time})
	}
	b.dirtyConfig = true
	return Config
}

func (b *Builder) setPod(o *corev1.Pod) Change {
	k := o.Namespace + "/" + o.Name
	p := convertPod(o)
	old := b.pods[k]
	if old != nil && reflect.DeepEqual(old, p) {
		return Nothing
	}
	if old != nil && b.podsByIP[old.IP] == old {
		delete(b.podsByIP, old.IP)
	}
	b.pods[k] = p
	if p.IP != "" && !o.Spec.HostNetwork && o.Status.Phase != corev1.PodFailed && o.Status.Phase != corev1.PodSucceeded {
		b.podsByIP[p.IP] = p
	}
	b.dirtyPods = true
	for svc := range b.podUsers[k] {
		b.dirtyEndpoints[svc] = true
	}
	return EndpointsOnly
}

// Delete records that an object is gone.
func (b *Builder) Delete(obj any) Change {
	switch o := obj.(type) {
	case *corev1.Service:
		k := o.Namespace + "/" + o.Name
		delete(b.services, k)
		b.dirtyServices[k], b.dirtyEndpoints[k] = true, true
		return Config
	case *discoveryv1.EndpointSlice:
		name := o.Labels[discoveryv1.LabelServiceName]
		k := o.Namespace + "/" + name
		delete(b.slices[k], o.Name)
		b.dirtyEndpoints[k] = true
		return EndpointsOnly
	case *corev1.Pod:
		k := o.Namespace + "/" + o.Name
		if p := b.pods[k]; p != nil {
			if b.podsByIP[p.IP] == p {
				delete(b.podsByIP, p.IP)
			}
			delete(b.pods, k)
		}
		for svc := range b.podUsers[k] {
			b.dirtyEndpoints[svc] = true
		}
		delete(b.podUsers, k)
		b.dirtyPods = true
		return EndpointsOnly
	case *networking.VirtualService:
		return b.deleteConfig(Key{"VirtualService", o.Namespace, o.Name})
	case *networking.DestinationRule:
		return b.deleteConfig(Key{"DestinationRule", o.Namespace, o.Name})
	case *networking.Gateway:
		return b.deleteConfig(Key{"Gateway", o.Namespace, o.Name})
	}
	return Nothing
}

func (b *Builder) deleteConfig(k Key) Change {
	delete(b.configs, k)
	b.dirtyConfig = true
	return Config
}

// Build returns the Snapshot of everything recorded so far. Its sequence is one more than that of the one before.
func (b *Builder) Build() *Snapshot {
	prev := b.prev
	if prev == nil {
		prev = &Snapshot{}
		b.dirtyPods, b.dirtyConfig = true, true
	}
	s := *prev
	s.Sequence, s.BuiltAt, s.Mesh = prev.Sequence+1, b.now(), b.mesh
	if b.dirtyPods {
		s.pods, s.podsByIP = maps.Clone(b.pods), maps.Clone(b.podsByIP)
	}
	if len(b.dirtyServices) > 0 || s.byHost == nil {
		b.buildServices(&s)
	}
	if len(b.dirtyEndpoints) > 0 || s.endpoints == nil {
		b.buildEndpoints(&s)
	}
	if b.dirtyConfig {
		b.buildConfig(&s)
	}
	if b.dirtyConfig || len(b.dirtyServices) > 0 {
		s.Problems = append(slices.Clone(s.own), references(&s)...)
		slices.SortStableFunc(s.Problems, func(a, b ObjectProblem) int {
			return cmp.Or(cmp.Compare(a.Object.Kind, b.Object.Kind), cmp.Compare(a.Object.Namespace, b.Object.Namespace),
				cmp.Compare(a.Object.Name, b.Object.Name), cmp.Compare(a.Problem.Field, b.Problem.Field))
		})
	}
	b.dirtyPods, b.dirtyConfig = false, false
	clear(b.dirtyServices)
	clear(b.dirtyEndpoints)
	b.prev = &s
	return &s
}

func (b *Builder) buildServices(s *Snapshot) {
	byHost := maps.Clone(s.byHost)
	if byHost == nil {
		byHost = map[string]*Service{}
	}
	changed := false
	for k := range b.dirtyServices {
		ns, name, _ := strings.Cut(k, "/")
		host := b.mesh.Hostname(name, ns)
		old := byHost[host]
		var svc *Service
		if o := b.services[k]; o != nil {
			svc = convertService(b.mesh, o)
		}
		switch {
		case svc == nil && old == nil, old != nil && svc != nil && reflect.DeepEqual(old, svc):
			continue
		case svc == nil:
			delete(byHost, host)
		default:
			byHost[host] = svc
		}
		changed = true
	}
	if !changed && s.byHost != nil {
		return
	}
	s.byHost, s.ServicesAt = byHost, s.Sequence
	s.Services = slices.SortedFunc(maps.Values(byHost), func(a, b *Service) int { return cmp.Compare(a.Hostname, b.Hostname) })
	s.byNamespace = map[string][]*Service{}
	for _, svc := range s.Services {
		s.byNamespace[svc.Namespace] = append(s.byNamespace[svc.Namespace], svc)
	}
}

func (b *Builder) buildEndpoints(s *Snapshot) {
	eps := maps.Clone(s.endpoints)
	if eps == nil {
		eps = map[string]*Endpoints{}
	}
	for k := range b.dirtyEndpoints {
		ns, name, _ := strings.Cut(k, "/")
		host := b.mesh.Hostname(name, ns)
		if b.services[k] == nil {
			delete(eps, host)
			continue
		}
		e := b.endpointsOf(k, host, s)
		if old := eps[host]; old == nil || !reflect.DeepEqual(old, e) {
			eps[host] = e
		}
	}
	s.endpoints = eps
}

func (b *Builder) endpointsOf(key, host string, s *Snapshot) *Endpoints {
	out := &Endpoints{Hostname: host, ByPort: map[string][]*Endpoint{}}
	ids := map[string]bool{}
	for _, slice := range b.slices[key] {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, ep := range slice.Endpoints {
			ready := ep.Conditions.Ready == nil || *ep.Conditions.Ready
			if !ready || len(ep.Addresses) == 0 {
				continue
			}
			pod := s.podsByIP[ep.Addresses[0]]
			if ref := ep.TargetRef; ref != nil && ref.Kind == "Pod" {
				pk := ref.Namespace + "/" + ref.Name
				if b.podUsers[pk] == nil {
					b.podUsers[pk] = map[string]bool{}
				}
				b.podUsers[pk][key] = true
				pod = s.pods[pk]
			}
			if pod != nil {
				ids[pod.Identity(b.mesh.TrustDomain)] = true
			}
			for _, port := range slice.Ports {
				if port.Port == nil {
					continue
				}
				e := &Endpoint{Address: ep.Addresses[0], Port: uint32(*port.Port), Pod: pod}
				if ep.Zone != nil {
					e.Zone = *ep.Zone
				}
				name := ""
				if port.Name != nil {
					name = *port.Name
				}
				out.ByPort[name] = append(out.ByPort[name], e)
			}
		}
	}
	for name, l := range out.ByPort {
		slices.SortFunc(l, func(a, b *Endpoint) int {
			return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
		})
		out.ByPort[name] = slices.CompactFunc(l, func(a, b *Endpoint) bool { return a.Address == b.Address && a.Port == b.Port })
	}
	out.Identities = slices.Sorted(maps.Keys(ids))
	return out
}

func (b *Builder) buildConfig(s *Snapshot) {
	s.VirtualServices, s.DestinationRules, s.Gateways, s.own = nil, nil, nil, nil
	s.Objects = make(map[Key]int64, len(b.configs))
	s.rules = map[string][]*DestinationRule{}
	for k, e := range b.configs {
		s.Objects[k] = e.seen
		force := "this"
		switch o := e.inForce.(type) {
		case *VirtualService:
			s.VirtualServices = append(s.VirtualServices, o)
		case *DestinationRule:
			s.DestinationRules = append(s.DestinationRules, o)
		case *Gateway:
			s.Gateways = append(s.Gateways, o)
		case nil:
			force = "none"
		}
		if e.inForce != nil && !e.current {
			force = "previous"
		}
		for _, p := range e.problems {
			s.own = append(s.own, ObjectProblem{Object: k, Generation: e.seen, Problem: p, InForce: force})
		}
	}
	slices.SortFunc(s.VirtualServices, oldestFirst(func(v *VirtualService) *Meta { return &v.Meta }))
	slices.SortFunc(s.DestinationRules, oldestFirst(func(v *DestinationRule) *Meta { return &v.Meta }))
	slices.SortFunc(s.Gateways, oldestFirst(func(v *Gateway) *Meta { return &v.Meta }))
	keys := map[string]bool{}
	note := func(labels map[string]string) {
		for k := range labels {
			keys[k] = true
		}
	}
	for _, vs := range s.VirtualServices {
		for _, r := range vs.Spec.Spec.Http {
			for _, m := range r.Match {
				note(m.SourceLabels)
			}
		}
		for _, r := range vs.Spec.Spec.Tcp {
			for _, m := range r.Match {
				note(m.SourceLabels)
			}
		}
	}
	s.SourceLabels = slices.Sorted(maps.Keys(keys))
	for _, r := range s.DestinationRules {
		s.rules[r.Host] = append(s.rules[r.Host], r)
	}
}

func convertPod(o *corev1.Pod) *Pod {
	p := &Pod{
		Name: o.Name, Namespace: o.Namespace, IP: o.Status.PodIP, Labels: o.Labels,
		ServiceAccount: cmp.Or(o.Spec.ServiceAccountName, "default"), Node: o.Spec.NodeName,
		TLSMode: o.Labels["security.istio.io/tlsMode"] == "istio", Ports: map[string]uint32{},
	}
	p.Workload = WorkloadName(o)
	for _, c := range o.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name != "" {
				p.Ports[port.Name] = uint32(port.ContainerPort)
			}
		}
	}
	return p
}

// WorkloadName is the name of what made the pod: its Deployment, or whatever controls it, or the pod itself.
func WorkloadName(o *corev1.Pod) string {
	ref := metav1.GetControllerOf(o)
	if ref == nil {
		return cmp.Or(o.Name, strings.TrimSuffix(o.GenerateName, "-"))
	}
	if hash := o.Labels["pod-template-hash"]; ref.Kind == "ReplicaSet" && hash != "" {
		return strings.TrimSuffix(ref.Name, "-"+hash)
	}
	return ref.Name
}

func convertService(m Mesh, o *corev1.Service) *Service {
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	s := &Service{Name: o.Name, Namespace: o.Namespace, Hostname: m.Hostname(o.Name, o.Namespace), Labels: o.Labels, Selector: o.Spec.Selector}
	for _, ip := range o.Spec.ClusterIPs {
		if ip != "" && ip != corev1.ClusterIPNone {
			s.VIPs = append(s.VIPs, ip)
		}
	}
	if len(s.VIPs) == 0 && o.Spec.ClusterIP != "" && o.Spec.ClusterIP != corev1.ClusterIPNone {
		s.VIPs = []string{o.Spec.ClusterIP}
	}
	s.Headless = len(s.VIPs) == 0
	if e := o.Annotations["networking.istio.io/exportTo"]; e != "" {
		for x := range strings.SplitSeq(e, ",") {
			s.ExportTo = append(s.ExportTo, strings.TrimSpace(x))
		}
	}
	for _, p := range o.Spec.Ports {
		target := p.TargetPort.String()
		if target == "" || target == "0" {
			target = strconv.Itoa(int(p.Port))
		}
		s.Ports = append(s.Ports, Port{Name: p.Name, Number: uint32(p.Port), TargetPort: target, Protocol: portProtocol(p)})
	}
	return s
}

// portProtocol is Istio's rule: UDP is UDP, then appProtocol, then the port's name up to its first dash.
func portProtocol(p corev1.ServicePort) Protocol {
	if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
		return UDP
	}
	name := p.Name
	if p.AppProtocol != nil {
		switch strings.ToLower(*p.AppProtocol) {
		case "kubernetes.io/h2c":
			return HTTP2
		case "kubernetes.io/ws":
			return HTTP
		case "kubernetes.io/wss":
			return HTTPS
		}
		name = strings.ToLower(*p.AppProtocol)
	}
	prefix, _, _ := strings.Cut(strings.ToLower(name), "-")
	switch prefix {
	case "http":
		return HTTP
	case "http2":
		return HTTP2
	case "grpc":
		return GRPC
	case "https":
		return HTTPS
	case "tls":
		return TLS
	case "tcp", "mongo", "mysql", "redis":
		return TCP
	}
	switch p.Port {
	case 25, 3306, 6379, 27017: // well known protocols in which the server speaks first
		return TCP
	}
	return Auto
}
