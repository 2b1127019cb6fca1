// Package clusters is the contract between a lab and whatever makes its Kubernetes clusters: the embedded default, kind,
// k3s, or a kubeconfig that somebody brings.
package clusters

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"k8s.io/client-go/rest"
)

// Spec is what a lab asks of a provider. The zero value of a field means the provider's default.
type Spec struct {
	Lab      string        // name of the lab, a DNS label; unique on this host
	Clusters []ClusterSpec // at least one, names unique; at most MaxClusters, with at most MaxNodes together
}

// Limits of a lab, with any provider.
const (
	MaxClusters = 32
	MaxNodes    = 200
)

// ClusterSpec is one cluster of a lab.
type ClusterSpec struct {
	Name  string // DNS label, unique in the lab
	Nodes int    // at least 1; the first node carries the control plane and pods too
	// Network names the network that the cluster's nodes and pods are on; "" is DefaultNetwork. Clusters of one network reach each
	// other's nodes and pods. From another network only the cluster's load balancer addresses and its API server can be reached.
	Network string
}

// DefaultNetwork is the network of a cluster that names none.
const DefaultNetwork = "network1"

// Provider makes, finds and removes labs of one kind. Methods may be called from several goroutines.
type Provider interface {
	// Name is the word that people select the provider with: local, kind, k3s, existing.
	Name() string
	// Up makes the lab, or finishes one that is half made; it returns once every node is Ready and cluster DNS answers.
	// Calling it for a lab that is up is harmless; made says whether this call made the lab, also in place of a broken one, so that
	// it is the caller's to take down. On error everything that it made has been removed again.
	Up(ctx context.Context, spec Spec, progress Progress) (lab Lab, made bool, err error)
	// Open attaches to a lab that is up. ErrNotFound if there is none of that name.
	Open(ctx context.Context, lab string) (Lab, error)
	// List names the labs of this provider, whatever their state.
	List(ctx context.Context) ([]Status, error)
	// Down removes the lab and all it left, also after a crash, and is harmless when there is nothing. What it could not
	// remove is named in a *LeftoverError.
	Down(ctx context.Context, lab string) error
	// Check says what this host lacks to run labs of this kind.
	Check(ctx context.Context) []Check
}

// Measured is a Provider that knows what its labs take of this host.
type Measured interface {
	Provider
	// Memory is the proportional set size of all processes of a lab in bytes: each page counts once, divided by who shares it.
	Memory(ctx context.Context, lab string) (uint64, error)
}

// Lab is a set of clusters that share a network.
type Lab interface {
	Name() string
	// Clusters in the order of the Spec.
	Clusters() []Cluster
	// DialContext dials as a host beside the nodes does: it reaches node, pod and service addresses where routes exist. It
	// never reaches anything outside the lab.
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	// Link is the way between two clusters of the lab, in both directions. An error names clusters that do not exist.
	Link(a, b string) (Link, error)
}

// Supervised is a Lab whose own parts, the components of Kubernetes and what holds them, are watched and logged.
type Supervised interface {
	Lab
	// Broken says which part ended although it should not, with the last lines of its log; nil while all run.
	Broken() error
	// Logs copies what the parts logged into dir, which is made if needed; of a broken lab too. Down removes the originals.
	Logs(dir string) error
}

// Link is the network path between two clusters: everything that goes from a node or pod of one to the other's, load balancer
// addresses and API server included. What a Link does holds until Heal, also after this process has ended.
type Link interface {
	// Cut drops every packet between the two; connections hang as they do when a cable is pulled.
	Cut(ctx context.Context) error
	// Slow delays, loses or throttles, the same in each direction. It replaces what was set before.
	Slow(ctx context.Context, how Impairment) error
	// Heal undoes Cut and Slow, and is harmless when there is nothing to undo.
	Heal(ctx context.Context) error
	// Capture writes every packet on the link to w as a pcap stream, from when it returns until ctx ends or the Closer is closed.
	// Close returns when the last packet is written.
	Capture(ctx context.Context, w io.Writer) (io.Closer, error)
}

// Impairment is how a link is slowed. Zero fields change nothing.
type Impairment struct {
	Delay  time.Duration `json:"delay,omitempty"`  // added to each packet; JSON has nanoseconds
	Jitter time.Duration `json:"jitter,omitempty"` // up to this much more or less
	Loss   float64       `json:"loss,omitempty"`   // share of packets, 0 to 1
	Rate   uint64        `json:"rate,omitempty"`   // bytes per second
}

// Linked is a Lab that remembers what was done to its links.
type Linked interface {
	Lab
	// Links lists those that are cut or slowed.
	Links(ctx context.Context) ([]LinkState, error)
}

// LinkState is how a link differs from a whole one.
type LinkState struct {
	A    string      `json:"a"` // clusters, in the order of the lab
	B    string      `json:"b"`
	Cut  bool        `json:"cut,omitempty"`
	Slow *Impairment `json:"slow,omitempty"`
}

// Cluster is one Kubernetes cluster of a lab.
type Cluster interface {
	Name() string
	// Network is the network that the cluster is on.
	Network() string
	// LoadBalancerIPs is the range that Services of type LoadBalancer get their addresses from, in CIDR notation: reachable from
	// the whole lab, whatever network a client is on.
	LoadBalancerIPs() string
	// RESTConfig returns a fresh admin configuration that works from this process.
	RESTConfig() (*rest.Config, error)
	// Kubeconfig is the path of an admin kubeconfig that plain kubectl on this host can use.
	Kubeconfig() string
	// NodeIPs are the addresses of the nodes as DialContext reaches them, control plane first.
	NodeIPs() []string
	// LoadImages puts OCI archives (docker-archive tar, one image each) on every node.
	LoadImages(ctx context.Context, archives ...string) error
	// Forward listens on a free port of 127.0.0.1 and carries connections to addr as DialContext would, until ctx ends
	// or the closer is closed. It returns the address it listens on.
	Forward(ctx context.Context, addr string) (local string, stop io.Closer, err error)
}

// Balanced is a Cluster that has load balancers of its own and a port of 127.0.0.1 for each of their TCP ports.
type Balanced interface {
	Cluster
	// LoadBalancers lists the Services of type LoadBalancer that have an address, by name.
	LoadBalancers() ([]LoadBalancer, error)
}

// LoadBalancer is a Service of type LoadBalancer that has an address.
type LoadBalancer struct {
	Namespace string             `json:"namespace"`
	Service   string             `json:"service"`
	IP        string             `json:"ip"` // reachable from the whole lab
	Ports     []LoadBalancerPort `json:"ports"`
}

// LoadBalancerPort is one port of a LoadBalancer.
type LoadBalancerPort struct {
	Name     string `json:"name,omitempty"`
	Port     int32  `json:"port"`
	Protocol string `json:"protocol"`
	// Local is the address on this host that leads here, the same as long as the lab lives. Empty where the protocol is not TCP.
	Local string `json:"local,omitempty"`
}

// Status is a row of `meshproof status`.
type Status struct {
	Lab      string    `json:"lab"`
	Provider string    `json:"provider"`
	State    string    `json:"state"` // running | changing (somebody makes it or takes it down) | broken
	Detail   string    `json:"detail,omitempty"`
	Clusters []string  `json:"clusters"`
	Created  time.Time `json:"created"`
}

// Check is one row of `meshproof doctor`.
type Check struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok | missing | warning
	Found string `json:"found,omitempty"`
	Cure  string `json:"cure,omitempty"` // one line to run, empty when ok
}

// Progress hears what a long operation does. Implementations are safe for concurrent use; nil means nobody listens.
type Progress func(Event)

// Event is one step of a long operation.
type Event struct {
	Phase  string // build | cluster | images | mesh | apps ...
	Detail string // what is being done or was reached, one line
	Done   bool   // the phase is over
	Count  bool   // Detail is a count that moves often: where nothing is redrawn, one in a while is enough
}

// ErrNotFound means that no lab has that name.
var ErrNotFound = errors.New("lab not found")

// LeftoverError names what Down could not remove.
type LeftoverError struct {
	Lab  string
	Left []string // one line a thing: "mount /x", "netns y", "process 12 (kubelet)"
	Err  error    // why, may be nil
}

func (e *LeftoverError) Error() string {
	s := "lab " + e.Lab + ": left behind:"
	for _, l := range e.Left {
		s += "\n  " + l
	}
	if e.Err != nil {
		s += "\n" + e.Err.Error()
	}
	return s
}

func (e *LeftoverError) Unwrap() error { return e.Err }
