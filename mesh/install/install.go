// Package install puts a mesh into a cluster and takes it out again: one driver a mesh.
package install

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	corev1 "k8s.io/api/core/v1"
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
	Profile     string    // default, minimal, empty, demo or remote: a cluster without a control plane of its own
	MeshID      string    // the same in every cluster of a mesh; the trust domain when empty
	Network     string    // of this cluster; empty where there is only one
	Gateways    []Gateway // nil is the profile's choice: one ingress gateway, in default and demo
	// RemotePilotAddress is where a remote cluster finds the primary's east-west gateway: an IP address.
	RemotePilotAddress string
	Purge              bool                           // Uninstall: remove the CRDs too, and all objects of theirs
	Progress           func(component, detail string) // hears what is done; may be nil
}

// Gateway is one gateway Deployment with its Service.
type Gateway struct {
	Name      string             // istio-ingressgateway
	Namespace string             // the mesh's when empty
	Labels    map[string]string  // that Gateway objects select it by; istio=ingressgateway when empty
	Env       map[string]string  // ISTIO_META_*: what the proxy tells of itself
	Service   corev1.ServiceSpec // type and ports; the usual ones when it has none
}

// Default fills what o leaves out.
func (o Options) Default() Options {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.Hub, "meshproof.dev"}, {&o.Namespace, "istio-system"}, {&o.Revision, "default"},
		{&o.ClusterID, "Kubernetes"}, {&o.TrustDomain, "cluster.local"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.Progress == nil {
		o.Progress = func(string, string) {}
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
