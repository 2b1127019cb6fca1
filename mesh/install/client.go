package install

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

const (
	fieldManager = "meshproof"
	// monitoringPort is where a control plane tells about itself.
	monitoringPort = "15014"
	explainBudget  = 5 * time.Second
	pollEvery      = 50 * time.Millisecond
)

var (
	crdResource           = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	configMapResource     = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	deploymentResource    = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	endpointSliceResource = schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	webhookResource       = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
)

// kinds maps the kinds that a mesh is made of to where the API server keeps them.
var kinds = map[string]string{
	"Namespace": "namespaces", "ServiceAccount": "serviceaccounts", "Service": "services", "ConfigMap": "configmaps",
	"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "Role": "roles", "RoleBinding": "rolebindings",
	"Deployment": "deployments", "MutatingWebhookConfiguration": "mutatingwebhookconfigurations",
	"ValidatingWebhookConfiguration": "validatingwebhookconfigurations",
	"CustomResourceDefinition":       "customresourcedefinitions", "HorizontalPodAutoscaler": "horizontalpodautoscalers",
	"PodDisruptionBudget": "poddisruptionbudgets", "EndpointSlice": "endpointslices", "Secret": "secrets", "Lease": "leases",
	"IstioOperator": "istiooperators",
}

type client struct {
	dyn  dynamic.Interface
	core corev1client.CoreV1Interface
}

func newClient(cfg *rest.Config) (*client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = 200, 400 // an install is a burst of a few dozen calls
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	core, err := corev1client.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	return &client{dyn: dyn, core: core}, nil
}

// toUnstructured gives a typed object its kind and drops what only a server sets.
func toUnstructured(obj runtime.Object) (*unstructured.Unstructured, error) {
	gvks, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		return nil, err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(gvks[0])
	unstructured.RemoveNestedField(content, "status")
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(content, "spec", "template", "metadata", "creationTimestamp")
	return u, nil
}

func (c *client) resource(u *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := u.GroupVersionKind()
	plural, ok := kinds[gvk.Kind]
	if !ok {
		return nil, fmt.Errorf("kind %s is not part of a mesh", gvk.Kind)
	}
	r := c.dyn.Resource(gvk.GroupVersion().WithResource(plural))
	if ns := u.GetNamespace(); ns != "" {
		return r.Namespace(ns), nil
	}
	return r, nil
}

func (c *client) applyTyped(ctx context.Context, obj runtime.Object) error {
	u, err := toUnstructured(obj)
	if err != nil {
		return err
	}
	return c.apply(ctx, u)
}

func (c *client) apply(ctx context.Context, u *unstructured.Unstructured) error {
	r, err := c.resource(u)
	if err != nil {
		return err
	}
	if _, err := r.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
		return fmt.Errorf("apply %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return nil
}

func (c *client) deleteTyped(ctx context.Context, obj runtime.Object) error {
	u, err := toUnstructured(obj)
	if err != nil {
		return err
	}
	return c.delete(ctx, u)
}

func (c *client) delete(ctx context.Context, u *unstructured.Unstructured) error {
	r, err := c.resource(u)
	if err != nil {
		return err
	}
	err = r.Delete(ctx, u.GetName(), metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return nil
}

// until waits for an object to be as ok says; the error of a wait that ends early says how it was last.
func (c *client) until(ctx context.Context, r schema.GroupVersionResource, namespace, name, what string, ok func(*unstructured.Unstructured) (bool, string)) error {
	last := "never seen"
	err := poll(ctx, func() (bool, error) {
		u, err := c.dyn.Resource(r).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			last = "not there"
			return false, nil
		case err != nil:
			return false, err
		}
		done, state := ok(u)
		last = state
		return done, nil
	})
	if err != nil {
		return fmt.Errorf("%s %s is not %s (%s): %w", r.Resource, name, what, last, err)
	}
	return nil
}

// untilGone waits until an object, of which kind and name count, is gone.
func (c *client) untilGone(ctx context.Context, u *unstructured.Unstructured) error {
	r, err := c.resource(u)
	if err != nil {
		return err
	}
	finalizers := "none"
	err = poll(ctx, func() (bool, error) {
		got, err := r.Get(ctx, u.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err == nil {
			finalizers = fmt.Sprint(got.GetFinalizers())
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("%s %s is still there (finalizers %s): %w", u.GetKind(), u.GetName(), finalizers, err)
	}
	return nil
}

// poll calls f until it says done or ctx ends. An error of the API server is one answer of many, unless asking again cannot
// help; the last one is part of the error at the end.
func poll(ctx context.Context, f func() (bool, error)) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(context.Context) (bool, error) {
		done, err := f()
		if final(err) {
			return false, err
		}
		if ctx.Err() == nil { // what a call says that the end of ctx cut off tells nothing
			last = err
		}
		return done && err == nil, nil
	})
	if err != nil && ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), last)
	}
	return err
}

// final tells errors that stay as they are.
func final(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err) || apierrors.IsMethodNotSupported(err)
}
