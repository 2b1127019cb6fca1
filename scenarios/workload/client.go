// Package workload deploys the fixture apps into a cluster and tells what became of them. It asserts nothing.
package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// fieldManager owns the fields that scenarios apply.
const fieldManager = "meshproof"

// Client works on one cluster. It is safe for concurrent use.
type Client struct {
	Config  *rest.Config
	Kube    kubernetes.Interface
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// NewClient returns a client with a rate limit that bring-up does not feel.
func NewClient(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = 200, 400
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("dynamic client: %w", err)
	}
	return &Client{
		Config: cfg, Kube: k, dynamic: d,
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(k.Discovery())),
	}, nil
}

// Object names an object as it was stored.
type Object struct {
	Kind, Namespace, Name string
	Generation            int64
}

func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// Apply server-side applies every document of a manifest, in order, and returns the objects as stored. It stops at the first
// error, which names the object.
func (c *Client) Apply(ctx context.Context, manifest []byte) ([]Object, error) {
	var out []Object
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var u unstructured.Unstructured
		if err := dec.Decode(&u.Object); err != nil {
			if errors.Is(err, io.EOF) {
				return out, nil
			}
			return out, fmt.Errorf("manifest: %w", err)
		}
		if len(u.Object) == 0 {
			continue
		}
		o, err := c.apply(ctx, &u)
		if err != nil {
			return out, fmt.Errorf("apply %s: %w", Object{Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()}, err)
		}
		out = append(out, o)
	}
}

func (c *Client) apply(ctx context.Context, u *unstructured.Unstructured) (Object, error) {
	gvk := u.GroupVersionKind()
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // its CRD may be younger than what was discovered
		m, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	if err != nil {
		return Object{}, err
	}
	var at dynamic.ResourceInterface = c.dynamic.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		if u.GetNamespace() == "" {
			u.SetNamespace("default")
		}
		at = c.dynamic.Resource(m.Resource).Namespace(u.GetNamespace())
	}
	data, err := json.Marshal(u)
	if err != nil {
		return Object{}, err
	}
	force := true
	got, err := at.Patch(ctx, u.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
	if err != nil {
		return Object{}, err
	}
	return Object{Kind: got.GetKind(), Namespace: got.GetNamespace(), Name: got.GetName(), Generation: got.GetGeneration()}, nil
}

// Namespace makes a namespace with these labels, or sets them on the one there is.
func (c *Client) Namespace(ctx context.Context, name string, labels map[string]string) error {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
	u.SetName(name)
	u.SetLabels(labels)
	_, err := c.apply(ctx, u)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

// Deployments says how far the Deployments of a namespace are.
type Deployments struct {
	Ready, Want int      // pods
	Waiting     []string // names of those that are not complete
}

// Deployments counts the pods of the Deployments of a namespace.
func (c *Client) Deployments(ctx context.Context, namespace string) (Deployments, error) {
	list, err := c.Kube.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return Deployments{}, fmt.Errorf("list Deployments of %s: %w", namespace, err)
	}
	var d Deployments
	for _, dep := range list.Items {
		want := 1
		if dep.Spec.Replicas != nil {
			want = int(*dep.Spec.Replicas)
		}
		ready := int(min(dep.Status.ReadyReplicas, dep.Status.UpdatedReplicas))
		d.Want += want
		d.Ready += min(ready, want)
		if ready < want || dep.Status.ObservedGeneration < dep.Generation {
			d.Waiting = append(d.Waiting, dep.Name)
		}
	}
	return d, nil
}

// Restarts is the number of container restarts of each pod of the namespaces, by "namespace/pod".
func (c *Client) Restarts(ctx context.Context, namespaces ...string) (map[string]int, error) {
	out := map[string]int{}
	for _, ns := range namespaces {
		pods, err := c.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("list pods of %s: %w", ns, err)
		}
		if err != nil {
			continue
		}
		for _, p := range pods.Items {
			n := 0
			for _, s := range p.Status.ContainerStatuses {
				n += int(s.RestartCount)
			}
			for _, s := range p.Status.InitContainerStatuses {
				n += int(s.RestartCount)
			}
			out[ns+"/"+p.Name] = n
		}
	}
	return out, nil
}

// Established tells whether the API server serves a CustomResourceDefinition.
func (c *Client) Established(ctx context.Context, name string) (bool, error) {
	u, err := c.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("CustomResourceDefinition %s: %w", name, err)
	}
	conditions, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
	if err != nil {
		return false, fmt.Errorf("CustomResourceDefinition %s: %w", name, err)
	}
	for _, x := range conditions {
		if m, ok := x.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return true, nil
		}
	}
	return false, nil
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Proxies names the pods that have a sidecar and are not on their way out, as "pod.namespace".
func (c *Client) Proxies(ctx context.Context) ([]string, error) {
	pods, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var out []string
	for _, p := range pods.Items {
		if p.DeletionTimestamp != nil {
			continue
		}
		for _, ct := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			if ct.Name == "istio-proxy" {
				out = append(out, p.Name+"."+p.Namespace)
			}
		}
	}
	return out, nil
}
