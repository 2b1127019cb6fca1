package model

import (
	"cmp"
	"maps"
	"slices"
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

	clusters map[string]*cluster
	order    []string // of clusters: the control plane's own, then by name
	configs  map[Key]*configEntry

	dirtyServices  map[string]bool // "namespace/name"
	dirtyEndpoints map[string]bool // likewise
	dirtyClusters  bool            // one came or went, or a network or a node changed
	dirtyConfig    bool
}

// configEntry is an Istio object: the newest version seen, and the one in force, which is the last valid one.
type configEntry struct {
	seen     Version
	problems []objects.Problem
	inForce  any // *VirtualService, *DestinationRule, *Gateway or nil
	current  bool
}

// NewBuilder returns an empty Builder; now stamps the snapshots.
func NewBuilder(mesh Mesh, now func() time.Time) *Builder {
	b := &Builder{
		mesh: mesh, now: now,
		clusters: map[string]*cluster{}, configs: map[Key]*configEntry{},
		dirtyServices: map[string]bool{}, dirtyEndpoints: map[string]bool{},
	}
	b.in(mesh.ClusterID)
	return b
}

// Change says how far a recorded event reaches.
type Change int

// The reaches of an event, in rising order.
const (
	Nothing       Change = iota
	EndpointsOnly        // addresses came or went
	Config               // a service or a traffic object changed
)

// Set records that an object of the control plane's own cluster was added or changed. Kinds that the model does not hold are
// ignored.
func (b *Builder) Set(obj any) Change {
	switch o := obj.(type) {
	case *corev1.Service, *discoveryv1.EndpointSlice, *corev1.Pod, *corev1.Node, *corev1.Namespace:
		return b.SetIn(b.mesh.ClusterID, o)
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

// SetIn records that an object of a cluster was added or changed: a service, its endpoints, a pod, a node or the root namespace.
// Traffic objects come from the control plane's own cluster only, as in Istio, and are ignored here.
func (b *Builder) SetIn(id string, obj any) Change {
	c := b.in(id)
	switch o := obj.(type) {
	case *corev1.Service:
		k := o.Namespace + "/" + o.Name
		c.services[k] = o
		b.dirtyServices[k], b.dirtyEndpoints[k] = true, true
		return Config
	case *discoveryv1.EndpointSlice:
		name := o.Labels[discoveryv1.LabelServiceName]
		if name == "" {
			return Nothing
		}
		k := o.Namespace + "/" + name
		if c.slices[k] == nil {
			c.slices[k] = map[string]*discoveryv1.EndpointSlice{}
		}
		c.slices[k][o.Name] = o
		b.dirtyEndpoints[k] = true
		return EndpointsOnly
	case *corev1.Pod:
		return b.setPod(c, o)
	case *corev1.Node:
		return b.setNode(c, o, false)
	case *corev1.Namespace:
		return b.setNamespace(c, o, false)
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
	e, seen := b.configs[key], Version{m.UID, m.Generation}
	if e == nil || e.seen.UID != seen.UID {
		e = &configEntry{} // also where one of the name went unnoticed: generations start again, and nothing of it stays in force
		b.configs[key] = e
	} else if e.seen == seen && m.Generation != 0 {
		return Nothing // metadata or status only
	}
	e.seen = seen
	e.problems = objects.Validate(obj)
	e.current = !objects.HasErrors(e.problems)
	if e.current {
		e.inForce = convert(Meta{Key: key, Generation: m.Generation, Created: m.CreationTimestamp.Time})
	}
	b.dirtyConfig = true
	return Config
}

// Delete records that an object of the control plane's own cluster is gone.
func (b *Builder) Delete(obj any) Change {
	switch o := obj.(type) {
	case *corev1.Service, *discoveryv1.EndpointSlice, *corev1.Pod, *corev1.Node, *corev1.Namespace:
		return b.DeleteIn(b.mesh.ClusterID, o)
	case *networking.VirtualService:
		return b.deleteConfig(Key{"VirtualService", o.Namespace, o.Name})
	case *networking.DestinationRule:
		return b.deleteConfig(Key{"DestinationRule", o.Namespace, o.Name})
	case *networking.Gateway:
		return b.deleteConfig(Key{"Gateway", o.Namespace, o.Name})
	}
	return Nothing
}

// DeleteIn records that an object of a cluster is gone.
func (b *Builder) DeleteIn(id string, obj any) Change {
	c := b.in(id)
	switch o := obj.(type) {
	case *corev1.Service:
		k := o.Namespace + "/" + o.Name
		delete(c.services, k)
		b.dirtyServices[k], b.dirtyEndpoints[k] = true, true
		return Config
	case *discoveryv1.EndpointSlice:
		k := o.Namespace + "/" + o.Labels[discoveryv1.LabelServiceName]
		delete(c.slices[k], o.Name)
		b.dirtyEndpoints[k] = true
		return EndpointsOnly
	case *corev1.Pod:
		return b.deletePod(c, o)
	case *corev1.Node:
		return b.setNode(c, o, true)
	case *corev1.Namespace:
		return b.setNamespace(c, o, true)
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
		b.dirtyClusters, b.dirtyConfig = true, true
	}
	s := *prev
	s.Sequence, s.BuiltAt, s.Mesh = prev.Sequence+1, b.now(), b.mesh
	b.buildPods(&s)
	if b.dirtyClusters {
		b.buildClusters(&s)
	}
	if len(b.dirtyServices) > 0 || s.byHost == nil {
		b.buildServices(&s)
		b.buildGateways(&s)
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
	b.dirtyClusters, b.dirtyConfig = false, false
	clear(b.dirtyServices)
	clear(b.dirtyEndpoints)
	b.prev = &s
	return &s
}

// buildPods copies the pods of those clusters whose pods changed.
func (b *Builder) buildPods(s *Snapshot) {
	copied := false
	for id, c := range b.clusters {
		if !c.dirtyPods {
			continue
		}
		if !copied {
			s.pods, copied = maps.Clone(s.pods), true
			if s.pods == nil {
				s.pods = map[string]map[string]*Pod{}
			}
		}
		s.pods[id] = maps.Clone(c.pods)
		c.dirtyPods = false
	}
}

func (b *Builder) buildConfig(s *Snapshot) {
	s.VirtualServices, s.DestinationRules, s.Gateways, s.own = nil, nil, nil, nil
	s.Objects = make(map[Key]Version, len(b.configs))
	s.rules, s.wildRules = map[string][]*DestinationRule{}, false
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
			s.own = append(s.own, ObjectProblem{Object: k, Generation: e.seen.Generation, Problem: p, InForce: force})
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
		for _, r := range vs.Spec.Spec.Tls {
			for _, m := range r.Match {
				note(m.SourceLabels)
			}
		}
	}
	s.SourceLabels = slices.Sorted(maps.Keys(keys))
	for _, r := range s.DestinationRules {
		s.rules[r.Host] = append(s.rules[r.Host], r)
		s.wildRules = s.wildRules || strings.HasPrefix(r.Host, "*")
	}
}
