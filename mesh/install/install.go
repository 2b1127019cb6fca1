// Package install puts a mesh into a cluster and takes it out again: one driver a mesh.
package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/client-go/rest"
)

// Driver installs one kind of mesh. Implementations hold no state: everything is in the cluster.
type Driver interface {
	// Name is the word that people select the mesh with: bundled, none.
	Name() string
	// Install makes the mesh, or brings one that exists to opts, and returns when its control plane and gateway are Ready and
	// its injector answers. Calling it twice is harmless.
	Install(ctx context.Context, cfg *rest.Config, opts Options) error
	// Uninstall removes what Install made and what the mesh made for itself, and returns when all of it is gone. Custom
	// resource definitions stay, with people's objects in them, unless opts.Purge.
	Uninstall(ctx context.Context, cfg *rest.Config, opts Options) error
}

// Options say how a mesh is installed. Zero values mean the defaults of Default.
type Options struct {
	Tag         string // of the images meshd and meshproxy
	Hub         string // registry prefix of the images
	Namespace   string
	Revision    string // "default" is the revision without a name in Deployments and webhooks
	ClusterID   string
	TrustDomain string
	Profile     string    // default, demo, preview, minimal, empty, or remote: a cluster without a control plane of its own
	MeshID      string    // the same in every cluster of a mesh; the trust domain when empty
	Network     string    // of this cluster; empty where there is only one
	Gateways    []Gateway // nil is the profile's choice: one ingress gateway, in default and demo
	// RemotePilotAddress is where a remote cluster finds the primary's east-west gateway: an IP address.
	RemotePilotAddress string
	// DiscoveryAddress is where this revision's proxies find their control plane; istiod[-REVISION].NAMESPACE.svc:15012 when empty.
	DiscoveryAddress string
	AccessLogFile    *string  // where proxies log requests, "" for nowhere; nil is /dev/stdout
	Pilot            Workload // the control plane
	Owner            Owner    // the IstioOperator object that asks for this; zero for none
	// KeepGateways leaves a gateway alone that another revision has by now: it was taken over.
	KeepGateways bool
	Purge        bool // Uninstall: remove the CRDs too, and all objects of theirs
	Force        bool // Uninstall: also while proxies use the revision
	// Patience bounds the wait for the primary of a remote cluster without gateways, which may hear of the cluster later; 0 does not.
	Patience time.Duration
	Progress func(component, detail string) // hears what is done; may be nil
	Remark   func(component, detail string) // hears what is left to do; Progress when nil
}

// Gateway is one gateway Deployment with its Service.
type Gateway struct {
	Name      string             // istio-ingressgateway
	Namespace string             // the mesh's when empty
	Labels    map[string]string  // that Gateway objects select it by; istio=ingressgateway when empty
	Env       map[string]string  // ISTIO_META_*: what the proxy tells of itself
	Service   corev1.ServiceSpec // type, ports, policies; the usual ones where it has none
	Egress    bool               // at the way out: istio=egressgateway and no node ports unless it says otherwise

	ServiceAnnotations map[string]string
	Workload           Workload
}

// Owner names an IstioOperator object. What it does not ask for any more is removed when it is installed again.
type Owner struct{ Namespace, Name string }

// Workload is how the pods of a component run. Zero values are the component's own choice.
type Workload struct {
	Replicas      *int32
	Resources     *corev1.ResourceRequirements
	Env           []corev1.EnvVar // added to the container's, or in place of those of the same name
	NodeSelector  map[string]string
	Affinity      *corev1.Affinity
	Tolerations   []corev1.Toleration
	Annotations   map[string]string // of the pods
	PriorityClass string
	PullPolicy    corev1.PullPolicy
	Autoscale     *autoscalingv2.HorizontalPodAutoscalerSpec // without its target
	Disruption    *policyv1.PodDisruptionBudgetSpec          // without its selector
}

// Default fills what o leaves out.
func (o Options) Default() Options {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.Hub, "meshproof.dev"}, {&o.Namespace, "istio-system"}, {&o.Revision, "default"},
		{&o.ClusterID, "Kubernetes"}, {&o.TrustDomain, "cluster.local"}, {&o.Profile, "default"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.MeshID == "" {
		o.MeshID = o.TrustDomain
	}
	if o.DiscoveryAddress == "" {
		o.DiscoveryAddress = istiod(o) + "." + o.Namespace + ".svc:15012"
	}
	if o.Gateways == nil {
		o.Gateways = profileGateways(o.Profile)
	}
	gateways := make([]Gateway, len(o.Gateways)) // the caller's are not ours to change
	for i, g := range o.Gateways {
		gateways[i] = g.withDefaults(o)
	}
	o.Gateways = gateways
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	if o.Remark == nil {
		o.Remark = o.Progress
	}
	return o
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (o Options) validate() error {
	var errs []error
	if o.Tag == "" {
		errs = append(errs, errors.New("tag: the version of the images is needed"))
	}
	for _, f := range []struct{ name, value string }{{"namespace", o.Namespace}, {"revision", o.Revision}} {
		if !dnsLabel.MatchString(f.value) {
			errs = append(errs, fmt.Errorf("%s: %q is not a DNS label: use lower-case letters, digits and dashes (revision 1.20.1 is written 1-20-1)", f.name, f.value))
		}
	}
	if !slices.Contains(Profiles(), o.Profile) {
		errs = append(errs, fmt.Errorf("profile: there is no %q; there are %s", o.Profile, strings.Join(Profiles(), ", ")))
	}
	if o.Profile == "remote" && net.ParseIP(o.RemotePilotAddress) == nil {
		errs = append(errs, fmt.Errorf("remotePilotAddress: %q is not an IP address: give that of the primary's east-west gateway", o.RemotePilotAddress))
	}
	seen := map[string]bool{}
	for i, g := range o.Gateways {
		if !dnsLabel.MatchString(g.Name) || !dnsLabel.MatchString(g.Namespace) {
			errs = append(errs, fmt.Errorf("gateways[%d]: name %q and namespace %q must be DNS labels", i, g.Name, g.Namespace))
		}
		if seen[g.Namespace+"/"+g.Name] {
			errs = append(errs, fmt.Errorf("gateways[%d]: %s/%s is there twice", i, g.Namespace, g.Name))
		}
		seen[g.Namespace+"/"+g.Name] = true
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mesh options: %w", err)
	}
	return nil
}

// Drivers lists the meshes that can be installed.
func Drivers() []Driver { return []Driver{Bundled{}, None{}} }

// ByName returns the driver of that name, or an error that lists the names there are.
func ByName(name string) (Driver, error) {
	var names []string
	for _, d := range Drivers() {
		if d.Name() == name {
			return d, nil
		}
		names = append(names, d.Name())
	}
	return nil, fmt.Errorf("mesh %q is not known; there are %q", name, names)
}

// None is the negative control: a cluster without a mesh.
type None struct{}

// Name is "none".
func (None) Name() string { return "none" }

// Install does nothing.
func (None) Install(context.Context, *rest.Config, Options) error { return nil }

// Uninstall does nothing.
func (None) Uninstall(context.Context, *rest.Config, Options) error { return nil }

// IsName tells whether a word can name a revision, a tag or a gateway: a DNS label (RFC 1123).
func IsName(s string) bool { return dnsLabel.MatchString(s) }
