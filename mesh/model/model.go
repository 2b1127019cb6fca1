// Package model is the control plane's view of the mesh at one moment: an immutable Snapshot of services, endpoints,
// workloads and traffic objects, and the Builder that makes one Snapshot from the one before and what changed.
//
// Everything reachable from a Snapshot is read-only. Parts that did not change are shared between snapshots, so a pointer
// that is equal means content that is equal.
package model

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshproof/meshproof/mesh/objects"
)

// Mesh is what holds for the whole mesh and never changes while a control plane runs.
type Mesh struct {
	TrustDomain   string // "cluster.local"
	DomainSuffix  string // of Kubernetes service names, "cluster.local"
	ClusterID     string // "Kubernetes"
	MeshID        string
	Network       string
	RootNamespace string // "istio-system"
	AccessLogFile string // where proxies log each request and connection; empty for nowhere
}

// Key names an object of the API.
type Key struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Version tells versions of an object apart. Generations start again when one of the same name is made anew, with another UID.
type Version struct {
	UID        types.UID
	Generation int64
}

// Snapshot is the mesh at one moment.
type Snapshot struct {
	Sequence uint64 // from 1, grows by one with every snapshot
	BuiltAt  time.Time
	Mesh     Mesh

	Services         []*Service         // by Hostname
	VirtualServices  []*VirtualService  // oldest first, as Istio orders them
	DestinationRules []*DestinationRule // oldest first
	Gateways         []*Gateway         // oldest first
	Problems         []ObjectProblem    // by kind, namespace, name

	// NetworkGateways are the ways into a network from others, by network; sorted by address.
	NetworkGateways map[string][]NetworkGateway
	// NetworksAt is the sequence of the snapshot in which NetworkGateways last changed.
	NetworksAt uint64

	// SourceLabels are the label keys that rules ask of the callers, sorted.
	SourceLabels []string
	// ServicesAt is the sequence of the snapshot in which Services last changed.
	ServicesAt uint64

	// Objects holds the version of every Istio object that was read, also of those left out for their problems.
	Objects map[Key]Version

	own         []ObjectProblem // of objects by themselves
	byHost      map[string]*Service
	byNamespace map[string][]*Service // by host name
	endpoints   map[string]*Endpoints
	pods        map[string]map[string]*Pod     // by cluster, then "namespace/name"
	networks    map[string]string              // of clusters
	nodes       map[string]map[string]Locality // by cluster
	rules       map[string][]*DestinationRule  // by resolved host
	wildRules   bool                           // some rule is for a host with a wildcard
}

// ObjectProblem says why an object is not, or only partly, in force.
type ObjectProblem struct {
	Object     Key             `json:"object"`
	Generation int64           `json:"generation"`
	Problem    objects.Problem `json:"problem"`
	// InForce tells which version of the object traffic obeys: "this", "previous" or "none".
	InForce string `json:"inForce"`
}

// Service is a Kubernetes Service.
type Service struct {
	Name, Namespace string
	Hostname        string // reviews.default.svc.cluster.local
	// VIPs are the addresses in the control plane's own cluster, or in the first that has the service; empty for headless services.
	VIPs     []string
	Headless bool
	// ClusterVIPs are the addresses in each cluster that has the service, by cluster: it is one service wherever namespace and name
	// are the same.
	ClusterVIPs map[string][]string
	// ClusterLocal services are another service in each cluster: callers see the endpoints of their own cluster only.
	ClusterLocal bool
	Ports        []Port
	Labels       map[string]string
	Selector     map[string]string
	ExportTo     []string // "*", "." or namespaces; empty means "*"
}

// Port is a port of a Service.
type Port struct {
	Name       string
	Number     uint32
	TargetPort string // a number, or the name of a container port
	Protocol   Protocol
}

// Protocol is what a port speaks.
type Protocol string

// Protocols, as Istio reads them from appProtocol or a port's name. Auto means: look at the first bytes.
const (
	Auto  Protocol = "auto"
	HTTP  Protocol = "http"
	HTTP2 Protocol = "http2"
	GRPC  Protocol = "grpc"
	HTTPS Protocol = "https"
	TLS   Protocol = "tls"
	TCP   Protocol = "tcp"
	UDP   Protocol = "udp"
)

// IsHTTP tells whether the port carries HTTP in clear.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// IsHTTP2 tells whether the port carries HTTP/2 in clear.
func (p Protocol) IsHTTP2() bool { return p == HTTP2 || p == GRPC }

// IsTCP tells whether the port is passed through as bytes.
func (p Protocol) IsTCP() bool { return p == TCP || p == TLS || p == HTTPS }

// Endpoints are the endpoints of one service.
type Endpoints struct {
	Hostname string
	ByPort   map[string][]*Endpoint // by the service port's name, each sorted by address
	// Identities of all endpoints, sorted, without duplicates: who may answer for this service.
	Identities []string
}

// Endpoint is one address of a service port.
type Endpoint struct {
	Address string
	Port    uint32
	Pod     *Pod // nil when the address is not a pod's
	Region  string
	Zone    string
	SubZone string
	Cluster string // where it runs
	Network string // where its address can be reached
}

// NetworkGateway is an address at which a network takes connections from others, by SNI and with mutual TLS.
type NetworkGateway struct {
	Address string // an IP address
	Port    uint32
	Cluster string
	Network string
}

// Pod is a workload instance.
type Pod struct {
	Name, Namespace string
	IP              string
	Labels          map[string]string
	ServiceAccount  string
	Workload        string // name of the Deployment or whatever owns it
	Node            string
	Cluster         string
	TLSMode         bool // takes Istio's mutual TLS
	Ports           map[string]uint32
}

// Identity is the pod's SPIFFE name.
func (p *Pod) Identity(trustDomain string) string {
	return "spiffe://" + trustDomain + "/ns/" + p.Namespace + "/sa/" + p.ServiceAccount
}

// Meta is what all traffic objects share.
type Meta struct {
	Key        Key
	Generation int64
	Created    time.Time
	ExportTo   []string
}

// VirtualService is a valid VirtualService with its hosts made fully qualified.
type VirtualService struct {
	Meta
	Hosts    []string // FQDN, wildcard or "*"
	Gateways []string // "mesh" or namespace/name
	Spec     *networking.VirtualService
}

// DestinationRule is a valid DestinationRule with its host made fully qualified.
type DestinationRule struct {
	Meta
	Host string
	Spec *networking.DestinationRule
}

// Gateway is a valid Gateway.
type Gateway struct {
	Meta
	Spec *networking.Gateway
}

// Name is namespace/name, as VirtualServices refer to it.
func (g *Gateway) Name() string { return g.Key.Namespace + "/" + g.Key.Name }

// Service returns the service of that host name, or nil.
func (s *Snapshot) Service(host string) *Service { return s.byHost[host] }

// Endpoints returns the endpoints of a service, or nil.
func (s *Snapshot) Endpoints(host string) *Endpoints { return s.endpoints[host] }

// Pod returns a pod of the control plane's own cluster, or nil.
func (s *Snapshot) Pod(namespace, name string) *Pod {
	return s.PodIn(s.Mesh.ClusterID, namespace, name)
}

// PodIn returns a pod of a cluster, or nil.
func (s *Snapshot) PodIn(cluster, namespace, name string) *Pod {
	return s.pods[cluster][namespace+"/"+name]
}

// PodOf returns the pod that a proxy is in, or nil. A proxy that does not name its cluster is in the control plane's own.
func (s *Snapshot) PodOf(v ProxyView) *Pod {
	return s.PodIn(cmp.Or(v.ClusterID, s.Mesh.ClusterID), v.Namespace, v.Pod)
}

// DestinationRule returns the rule that a client in namespace obeys for host: one of its own namespace, else of the
// service's, else of the root namespace; an exact host before a wildcard, the longest wildcard first.
func (s *Snapshot) DestinationRule(clientNamespace, host, serviceNamespace string) *DestinationRule {
	for _, ns := range [...]string{clientNamespace, serviceNamespace, s.Mesh.RootNamespace} {
		for h := host; ; {
			for _, r := range s.rules[h] {
				if r.Key.Namespace == ns && (ns == clientNamespace || Visible(r.ExportTo, ns, clientNamespace)) {
					return r
				}
			}
			h = strings.TrimPrefix(h, "*.")
			i := strings.IndexByte(h, '.')
			if i < 0 || !s.wildRules {
				break
			}
			h = "*" + h[i:]
		}
	}
	return nil
}

// Visible tells whether an object of namespace own with this exportTo may be seen from namespace from.
func Visible(exportTo []string, own, from string) bool {
	if len(exportTo) == 0 || own == from {
		return !slices.Contains(exportTo, "~")
	}
	for _, e := range exportTo {
		if e == "*" || e == from {
			return true
		}
	}
	return false
}

// Matches tells whether labels hold everything that selector asks for. An empty selector matches nothing.
func Matches(selector, labels map[string]string) bool {
	if len(selector) == 0 {
		return false
	}
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// ServicesOf returns the services of the pod's namespace that select it, by host name.
func (s *Snapshot) ServicesOf(namespace string, labels map[string]string) []*Service {
	var out []*Service
	for _, svc := range s.byNamespace[namespace] {
		if Matches(svc.Selector, labels) {
			out = append(out, svc)
		}
	}
	return out
}

// Hostname is the fully qualified name of a Kubernetes service.
func (m Mesh) Hostname(name, namespace string) string {
	return name + "." + namespace + ".svc." + m.DomainSuffix
}

// Resolve makes a host of an object in namespace fully qualified: a name without a dot is a service of that namespace. It is in
// lower case, for names in DNS are the same in either.
func (m Mesh) Resolve(host, namespace string) string {
	host = strings.ToLower(host)
	if host == "" || strings.ContainsAny(host, ".*") {
		return host
	}
	return m.Hostname(host, namespace)
}

func oldestFirst[T any](meta func(T) *Meta) func(a, b T) int {
	return func(a, b T) int {
		x, y := meta(a), meta(b)
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.Key.Name, y.Key.Name), cmp.Compare(x.Key.Namespace, y.Key.Namespace))
	}
}

// Keys lists the objects that were read, by kind, namespace and name.
func (s *Snapshot) Keys() []Key {
	return slices.SortedFunc(maps.Keys(s.Objects), func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
