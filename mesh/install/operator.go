package install

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

//go:embed istiooperator.yaml
var operatorDefinition string

const (
	// OperatorNamespace is where operators run.
	OperatorNamespace = "istio-operator"
	operatorComponent = "IstioOperator"
	// Finalizer keeps an IstioOperator object until its operator has removed what it asked for.
	Finalizer = "istio-finalizer.install.istio.io"
)

// OperatorResource is where the API server keeps IstioOperator objects.
var OperatorResource = schema.GroupVersionResource{Group: "install.istio.io", Version: "v1alpha1", Resource: "istiooperators"}

// InitOperator makes the operator of a revision, which carries IstioOperator objects of that revision out, and returns when it
// runs. The mesh's namespace is made where it is missing, since the objects go there. Calling it twice is harmless.
func InitOperator(ctx context.Context, cfg *rest.Config, opts Options) error {
	o := opts.Default()
	if err := o.validate(); err != nil {
		return err
	}
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	served, err := c.definitions(ctx)
	if err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	// The objects that it is for are made there before anything else is.
	if err := c.ensureNamespace(ctx, o.Namespace); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	if err := c.applyAll(ctx, operatorObjects(o)); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	if err := served(ctx); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	o.Progress("definitions", "custom resource definitions")
	name := operatorName(o)
	if err := c.until(ctx, deploymentResource, OperatorNamespace, name, "available", available); err != nil {
		return fmt.Errorf("operator: %w", c.explain(ctx, OperatorNamespace, name, err))
	}
	o.Progress("operator", name+", version "+o.Tag)
	return nil
}

// RemoveOperator removes the operator of a revision. What it installed stays, and so do IstioOperator objects, which lose
// their finalizer: without an operator nobody else would take it off.
func RemoveOperator(ctx context.Context, cfg *rest.Config, opts Options) error {
	o := opts.Default()
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	there, err := c.removeOperatorObjects(ctx, o)
	if err != nil {
		return fmt.Errorf("remove operator: %w", err)
	}
	list, err := c.operators(ctx, o.Revision)
	if err != nil {
		return err
	}
	for _, u := range list {
		if err := c.release(ctx, &u); err != nil {
			return fmt.Errorf("remove operator: %w", err)
		}
	}
	if !there {
		o.Progress("gone", operatorName(o)+" was not there")
		return nil
	}
	o.Progress("gone", operatorName(o))
	return nil
}

func operatorName(o Options) string { return "istio-operator" + suffix(o.Revision) }

// operatorObjects are the operator's account, rights and Deployment. It may do what installing takes, which includes giving
// away the rights of a control plane.
func operatorObjects(o Options) []runtime.Object {
	name := operatorName(o)
	m := meta(o, name, operatorComponent, true, "name", "istio-operator")
	m.Namespace = OperatorNamespace
	cluster := meta(o, name, operatorComponent, false, "name", "istio-operator")
	selector := map[string]string{"name": "istio-operator", revLabel: o.Revision}
	labels := map[string]string{"name": "istio-operator", revLabel: o.Revision, "sidecar.istio.io/inject": "false"}
	d := deployment(m, selector, labels, corev1.PodSpec{
		ServiceAccountName: name,
		Containers: []corev1.Container{{
			Name: "istio-operator", Image: o.Hub + "/meshd:" + o.Tag, ImagePullPolicy: corev1.PullIfNotPresent,
			Args:            []string{"operator", "--revision=" + o.Revision, "--hub=" + o.Hub, "--tag=" + o.Tag},
			Ports:           []corev1.ContainerPort{containerPort("http-monitoring", 8383)},
			ReadinessProbe:  probe("/ready", 8383),
			Resources:       resources("10m", "32Mi", "256Mi"),
			SecurityContext: restricted(proxyUser),
		}},
	})
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType} // one operator a revision at a time
	return []runtime.Object{
		namespace(OperatorNamespace),
		&corev1.ServiceAccount{ObjectMeta: m},
		&rbacv1.ClusterRole{ObjectMeta: cluster, Rules: operatorRules()},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: cluster, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: OperatorNamespace}},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		},
		d,
	}
}

func operatorRules() []rbacv1.PolicyRule {
	all := []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
	return append([]rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces", "serviceaccounts", "services", "configmaps", "secrets", "events"}, Verbs: all},
		{APIGroups: []string{""}, Resources: []string{"pods/log", "pods/proxy"}, Verbs: []string{"get"}},
		{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, Verbs: all},
		{APIGroups: []string{"autoscaling"}, Resources: []string{"horizontalpodautoscalers"}, Verbs: all},
		{APIGroups: []string{"policy"}, Resources: []string{"poddisruptionbudgets"}, Verbs: all},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: all},
		{APIGroups: []string{"rbac.authorization.k8s.io"}, Resources: []string{"roles", "rolebindings", "clusterroles", "clusterrolebindings"}, Verbs: all},
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, Verbs: all},
		{APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}, Verbs: all},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: all},
		{APIGroups: []string{"install.istio.io"}, Resources: []string{"istiooperators", "istiooperators/status", "istiooperators/finalizers"}, Verbs: all},
	}, clusterRules()...)
}

// removeOperators removes the revision's operator and then its IstioOperator objects: in the other order it would make anew
// what goes.
func (c *client) removeOperators(ctx context.Context, o Options) (there bool, err error) {
	if there, err = c.removeOperatorObjects(ctx, o); err != nil {
		return false, err
	}
	if there {
		o.Progress("operator", operatorName(o))
	}
	list, err := c.operators(ctx, o.Revision)
	if err != nil {
		return false, err
	}
	for _, u := range list {
		if err := c.delete(ctx, &u); err != nil {
			return false, err
		}
		if err := c.release(ctx, &u); err != nil {
			return false, err
		}
		if err := c.untilGone(ctx, &u); err != nil {
			return false, err
		}
		o.Progress("IstioOperator", u.GetNamespace()+"/"+u.GetName())
	}
	return there || len(list) > 0, nil
}

func (c *client) removeOperatorObjects(ctx context.Context, o Options) (there bool, err error) {
	gone, err := c.remove(ctx, revLabel+"="+o.Revision+","+componentLabel+"="+operatorComponent, nil)
	return len(gone) > 0, err
}

// operators lists the IstioOperator objects of a revision.
func (c *client) operators(ctx context.Context, revision string) ([]unstructured.Unstructured, error) {
	list, err := c.dyn.Resource(OperatorResource).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil // a cluster that never had the definition
	}
	if err != nil {
		return nil, fmt.Errorf("list IstioOperators: %w", err)
	}
	var out []unstructured.Unstructured
	for _, u := range list.Items {
		rev, _, _ := unstructured.NestedString(u.Object, "spec", "revision")
		if rev == "" {
			rev = "default"
		}
		if rev == revision {
			out = append(out, u)
		}
	}
	return out, nil
}

// release takes our finalizer off.
func (c *client) release(ctx context.Context, u *unstructured.Unstructured) error {
	others := slices.DeleteFunc(slices.Clone(u.GetFinalizers()), func(f string) bool { return f == Finalizer })
	if len(others) == len(u.GetFinalizers()) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"finalizers": others}})
	if err != nil {
		return err
	}
	_, err = c.dyn.Resource(OperatorResource).Namespace(u.GetNamespace()).Patch(ctx, u.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("finalizer of IstioOperator %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return nil
}

// RemoveOwned removes what an IstioOperator object asked for, but not what another revision or object has taken over, and
// returns when it is gone.
func RemoveOwned(ctx context.Context, cfg *rest.Config, o Owner) error {
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	_, err = c.remove(ctx, owningName+"="+o.Name+","+owningSpace+"="+o.Namespace, nil)
	return err
}
