package install

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/mesh/status"
)

// User is a proxy that needs a revision.
type User struct {
	Proxy     string // pod.namespace
	Version   string // of the proxy; empty when it is not connected
	Connected bool   // to a control plane of the revision, now
	Unasked   string // the control plane that did not say whether it is; empty if all did
}

func (u User) String() string {
	switch {
	case u.Connected:
		return u.Proxy + " (" + u.Version + ", connected)"
	case u.Unasked != "":
		return u.Proxy + " (made for it; " + u.Unasked + " does not say whether it is connected)"
	}
	return u.Proxy + " (made for it, not connected now)"
}

// InUseError says that a revision cannot be removed, and who uses it.
type InUseError struct {
	Revision string
	Proxies  []User
	Tags     []Tag
}

func (e *InUseError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision %s is in use", e.Revision)
	if n := len(e.Proxies); n > 0 {
		fmt.Fprintf(&b, " by %d proxies:", n)
		for _, p := range e.Proxies {
			b.WriteString("\n  " + p.String())
		}
	}
	for _, t := range e.Tags {
		fmt.Fprintf(&b, "\n  tag %s leads to it, for namespaces %s", t.Name, strings.Join(t.Namespaces, ", "))
	}
	b.WriteString("\nmove them to another revision (label istio.io/rev of the namespace, then restart the Deployments), or use --force; nothing was removed")
	return b.String()
}

// Users lists the proxies that need a revision: those connected to its control planes, and those of pods that were made for
// it. Pods that are on their way out do not count.
func Users(ctx context.Context, cfg *rest.Config, opts Options) ([]User, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	return c.users(ctx, opts.Default(), true)
}

// users leaves out the gateways of the revision, which go with it, unless asked not to.
func (c *client) users(ctx context.Context, o Options, withGateways bool) ([]User, error) {
	pods, err := c.core.Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	found, leaving := map[string]User{}, map[string]bool{}
	for _, p := range pods.Items {
		name := p.Name + "." + p.Namespace
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
			leaving[name] = true
		case isGateway(p) && !withGateways && p.Labels[revLabel] == o.Revision:
			leaving[name] = true
		case madeFor(p) == o.Revision:
			found[name] = User{Proxy: name}
		}
	}
	connected, silent, err := c.connected(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, p := range connected {
		if !leaving[p.Proxy] {
			version := p.ProxyVersion
			if version == "" {
				version = p.IstioVersion
			}
			found[p.Proxy] = User{Proxy: p.Proxy, Version: version, Connected: true}
		}
	}
	var out []User
	for _, name := range slices.Sorted(mapKeys(found)) {
		u := found[name]
		if !u.Connected {
			u.Unasked = silent
		}
		out = append(out, u)
	}
	return out, nil
}

func isGateway(p corev1.Pod) bool {
	return strings.HasSuffix(p.Spec.ServiceAccountName, "-service-account") && slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool {
		return c.Name == "istio-proxy" && slices.Equal(c.Args, []string{"gateway"})
	})
}

// madeFor is the revision whose injector gave a pod its sidecar, or whose gateway it is; empty for pods outside the mesh.
func madeFor(p corev1.Pod) string {
	if p.Annotations["sidecar.istio.io/status"] != "" {
		return p.Annotations[revLabel]
	}
	if isGateway(p) {
		return p.Labels[revLabel]
	}
	return ""
}

// askBudget bounds how long a control plane is asked who is connected.
const askBudget = 5 * time.Second

// connected asks every control plane of the revision who is connected, through the API server. silent names one that did not
// answer; the pods that were made for the revision count all the same.
func (c *client) connected(ctx context.Context, o Options) (out []status.Proxy, silent string, err error) {
	pods, err := c.core.Pods(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod," + revLabel + "=" + o.Revision})
	if err != nil {
		return nil, "", fmt.Errorf("control planes of revision %s: %w", o.Revision, err)
	}
	if len(pods.Items) == 0 {
		if address, err := c.primary(ctx); err != nil {
			return nil, "", fmt.Errorf("control planes of revision %s: %w", o.Revision, err)
		} else if address != "" {
			return nil, "the control plane of another cluster, at " + address + ",", nil
		}
	}
	for _, p := range pods.Items {
		if p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
			continue
		}
		var raw []byte
		asking, cancel := context.WithTimeout(ctx, askBudget)
		err := poll(asking, func() (_ bool, err error) {
			raw, err = c.core.Pods(o.Namespace).ProxyGet("http", p.Name, monitoringPort, strings.TrimPrefix(status.SynczPath, "/"), nil).DoRaw(asking)
			return err == nil, err
		})
		cancel()
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		if err != nil {
			silent = p.Name
			continue
		}
		var list []status.Proxy
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, "", fmt.Errorf("control plane %s: %w", p.Name, err)
		}
		out = append(out, list...)
	}
	return out, silent, nil
}
