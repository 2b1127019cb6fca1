package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/mesh/ca"
)

// removable are the kinds that an installation leaves objects of, in the order in which they go: webhooks first, since no pod
// may wait for an injector that is going; then whatever would make a Deployment anew; accounts and rights last.
var removable = []schema.GroupVersionKind{
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration"},
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"},
	{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"},
	{Group: "apps", Version: "v1", Kind: "Deployment"},
	{Version: "v1", Kind: "Service"},
	{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"},
	{Version: "v1", Kind: "ConfigMap"},
	{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
	{Version: "v1", Kind: "ServiceAccount"},
}

// NotInstalledError says that a revision is not there, and which are. Nothing was removed.
type NotInstalledError struct {
	Revision  string
	Installed []string
}

func (e *NotInstalledError) Error() string {
	return fmt.Sprintf("revision %s is not installed; there are: %s; nothing was removed", e.Revision, strings.Join(e.Installed, ", "))
}

// Uninstall removes the revision; what all revisions share goes with the last one. While proxies use the revision it refuses
// with an *InUseError, unless opts.Force. Where other revisions are and this one is not, it changes nothing and returns a
// *NotInstalledError; where there is no mesh at all, it is harmless. The mesh's namespace stays if it holds what is not the
// mesh's own, as a plugged CA or an add-on, unless opts.Purge.
func (Bundled) Uninstall(ctx context.Context, cfg *rest.Config, opts Options) error {
	o := opts.Default()
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	installed, err := c.revisions(ctx)
	if err != nil {
		return err
	}
	last := len(slices.DeleteFunc(slices.Clone(installed), func(r string) bool { return r == o.Revision })) == 0
	if !last && !slices.Contains(installed, o.Revision) {
		return &NotInstalledError{Revision: o.Revision, Installed: installed}
	}
	if !o.Force {
		// The gateways of the last revision go with it; those of another serve people.
		if err := c.unused(ctx, o, !last); err != nil {
			return err
		}
	}
	operated, err := c.removeOperators(ctx, o)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	gone, err := c.remove(ctx, revLabel+"="+o.Revision+","+ownerLabel+"="+owner, nil)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	if last {
		if err := c.removeShared(ctx, o); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	for _, kind := range slices.Sorted(mapKeys(gone)) {
		o.Progress(kind, strings.Join(gone[kind], ", "))
	}
	if len(gone) == 0 && !operated {
		o.Progress("gone", "revision "+o.Revision+" was not there")
		return nil
	}
	o.Progress("gone", "revision "+o.Revision)
	return nil
}

// removeShared removes what all revisions have together.
func (c *client) removeShared(ctx context.Context, o Options) error {
	if err := c.deleteRootCerts(ctx); err != nil {
		return err
	}
	if o.Purge {
		crds, err := definitions()
		if err != nil {
			return err
		}
		for _, d := range crds {
			if err := c.delete(ctx, d); err != nil {
				return err
			}
		}
	}
	// What the control plane made for itself, and what other clusters read this one by.
	for _, obj := range append(reader(o), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: ca.SelfSignedSecret, Namespace: o.Namespace}}) {
		if err := c.deleteTyped(ctx, obj); err != nil {
			return err
		}
	}
	for _, name := range []string{OperatorNamespace, o.Namespace} {
		others, err := c.foreign(ctx, name)
		if err != nil {
			return err
		}
		if len(others) > 0 && !o.Purge {
			o.Progress("kept", fmt.Sprintf("namespace %s, which has %s; --purge removes it with them", name, strings.Join(others, ", ")))
			// What the mesh said in it of its cluster goes: a primary would go on to look after that.
			if err := c.applyTyped(ctx, namespace(name)); err != nil {
				return err
			}
			continue
		}
		if err := c.deleteTyped(ctx, namespace(name)); err != nil {
			return err
		}
		ns, err := toUnstructured(namespace(name))
		if err != nil {
			return err
		}
		if err := c.untilGone(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

// foreign lists what a namespace holds that the mesh did not make, as "Kind name".
func (c *client) foreign(ctx context.Context, name string) ([]string, error) {
	var out []string
	for _, r := range []struct{ group, version, resource, kind string }{
		{"", "v1", "secrets", "Secret"}, {"", "v1", "configmaps", "ConfigMap"}, {"", "v1", "services", "Service"},
		{"", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"},
		{"apps", "v1", "deployments", "Deployment"}, {"apps", "v1", "statefulsets", "StatefulSet"}, {"apps", "v1", "daemonsets", "DaemonSet"},
	} {
		gvr := schema.GroupVersionResource{Group: r.group, Version: r.version, Resource: r.resource}
		list, err := c.dyn.Resource(gvr).Namespace(name).List(ctx, metav1.ListOptions{LabelSelector: ownerLabel + "!=" + owner})
		if err != nil {
			return nil, fmt.Errorf("list %s of %s: %w", r.resource, name, err)
		}
		for _, u := range list.Items {
			switch u.GetName() {
			case rootCertMap, "kube-root-ca.crt", ca.SelfSignedSecret:
				continue
			}
			if u.GetDeletionTimestamp() == nil && metav1.GetControllerOf(&u) == nil {
				out = append(out, r.kind+" "+u.GetName())
			}
		}
	}
	return out, nil
}

// unused returns an *InUseError if proxies or namespaces need the revision.
func (c *client) unused(ctx context.Context, o Options, withGateways bool) error {
	proxies, err := c.users(ctx, o, withGateways)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	all, err := c.tags(ctx)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	tags := slices.DeleteFunc(all, func(t Tag) bool { return t.Revision != o.Revision || len(t.Namespaces) == 0 })
	if len(proxies)+len(tags) == 0 {
		return nil
	}
	return &InUseError{Revision: o.Revision, Proxies: proxies, Tags: tags}
}

// revisions lists those that the cluster has anything of: a control plane, an injector, a gateway, an operator.
func (c *client) revisions(ctx context.Context) ([]string, error) {
	seen := map[string]bool{}
	for _, gvk := range removable {
		list, err := c.dyn.Resource(resourceOf(gvk)).List(ctx, metav1.ListOptions{LabelSelector: revLabel + "," + ownerLabel + "=" + owner})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kinds[gvk.Kind], err)
		}
		for _, u := range list.Items {
			seen[u.GetLabels()[revLabel]] = true
		}
	}
	return slices.Sorted(mapKeys(seen)), nil
}

// prune removes what o's owner had of this revision and does not ask for now; of gateways too, if told so.
func (c *client) prune(ctx context.Context, o Options, withGateways bool) error {
	selector := revLabel + "=" + o.Revision + "," + ownerLabel + "=" + owner + ",!" + tagLabel + "," + componentLabel + "!=" + operatorComponent
	if o.Owner.Name == "" {
		selector += ",!" + owningName
	} else {
		selector += "," + owningName + "=" + o.Owner.Name + "," + owningSpace + "=" + o.Owner.Namespace
	}
	if !withGateways {
		selector += "," + componentLabel + " notin (" + ingressComponent + "," + egressComponent + ")"
	}
	wanted := map[string]bool{}
	for _, obj := range append(controlPlane(o), gateways(o)...) {
		u, err := toUnstructured(obj)
		if err != nil {
			return err
		}
		wanted[identity(u)] = true
	}
	_, err := c.remove(ctx, selector, func(u *unstructured.Unstructured) bool { return wanted[identity(u)] })
	return err
}

func identity(u *unstructured.Unstructured) string {
	return u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
}

// remove deletes every object that the selector picks and keep does not want, waits until all of them are gone, and returns
// their names by kind.
func (c *client) remove(ctx context.Context, selector string, keep func(*unstructured.Unstructured) bool) (map[string][]string, error) {
	var going []*unstructured.Unstructured
	for _, gvk := range removable {
		list, err := c.dyn.Resource(resourceOf(gvk)).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kinds[gvk.Kind], err)
		}
		for _, u := range list.Items {
			u.SetGroupVersionKind(gvk)
			if metav1.GetControllerOf(&u) != nil || keep != nil && keep(&u) {
				continue // goes, or stays, with what made it
			}
			if err := c.delete(ctx, &u); err != nil {
				return nil, err
			}
			going = append(going, &u)
		}
	}
	gone := map[string][]string{}
	for _, u := range going {
		if err := c.untilGone(ctx, u); err != nil {
			return nil, err
		}
		name := u.GetName()
		if ns := u.GetNamespace(); ns != "" {
			name = ns + "/" + name
		}
		gone[u.GetKind()] = append(gone[u.GetKind()], name)
	}
	return gone, nil
}

func resourceOf(gvk schema.GroupVersionKind) schema.GroupVersionResource {
	return gvk.GroupVersion().WithResource(kinds[gvk.Kind])
}

// deleteRootCerts removes what istiod wrote into every namespace.
func (c *client) deleteRootCerts(ctx context.Context) error {
	list, err := c.dyn.Resource(configMapResource).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + rootCertMap})
	if err != nil {
		return fmt.Errorf("list ConfigMaps %s: %w", rootCertMap, err)
	}
	var errs []error
	for _, cm := range list.Items {
		err := c.dyn.Resource(configMapResource).Namespace(cm.GetNamespace()).Delete(ctx, rootCertMap, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete ConfigMap %s/%s: %w", cm.GetNamespace(), rootCertMap, err))
		}
	}
	return errors.Join(errs...)
}
