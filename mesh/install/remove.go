package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
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

// Uninstall removes the revision; what all revisions share goes with the last one. While proxies use the revision it refuses
// with an *InUseError, unless opts.Force.
func (Bundled) Uninstall(ctx context.Context, cfg *rest.Config, opts Options) error {
	o := opts.Default()
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	last, err := c.isLast(ctx, o)
	if err != nil {
		return err
	}
	if !o.Force {
		// The gateways of the last revision go with it; those of another serve people.
		if err := c.unused(ctx, o, !last); err != nil {
			return err
		}
	}
	if err := c.removeOperators(ctx, o); err != nil {
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
	if len(gone) == 0 {
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
	if err := c.removeReader(ctx, o); err != nil {
		return err
	}
	if err := c.deleteTyped(ctx, namespace(o.Namespace)); err != nil {
		return err
	}
	ns, err := toUnstructured(namespace(o.Namespace))
	if err != nil {
		return err
	}
	return c.untilGone(ctx, ns)
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

// isLast tells whether no control plane but o's is left.
func (c *client) isLast(ctx context.Context, o Options) (bool, error) {
	list, err := c.dyn.Resource(deploymentResource).Namespace(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod," + revLabel + "!=" + o.Revision})
	if err != nil {
		return false, fmt.Errorf("list control planes: %w", err)
	}
	return len(list.Items) == 0, nil
}

// prune removes what o's owner had of this revision and does not ask for now.
func (c *client) prune(ctx context.Context, o Options) error {
	selector := revLabel + "=" + o.Revision + "," + ownerLabel + "=" + owner + ",!" + tagLabel + "," + componentLabel + "!=" + operatorComponent
	if o.Owner.Name == "" {
		selector += ",!" + owningName
	} else {
		selector += "," + owningName + "=" + o.Owner.Name + "," + owningSpace + "=" + o.Owner.Namespace
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
