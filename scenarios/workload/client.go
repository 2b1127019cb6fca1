// Package workload deploys the fixture apps into a cluster and tells what became of them. It asserts nothing.
package workload

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/clusters/kube"
)

// Client works on one cluster. It is safe for concurrent use.
type Client struct {
	*kube.Client
}

// NewClient returns a client with a rate limit that bring-up does not feel.
func NewClient(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = 200, 400
	c, err := kube.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
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

// Apply server-side applies every document of a manifest, in order, and returns the objects as stored. name is what errors
// call the manifest.
func (c *Client) Apply(ctx context.Context, name string, manifest []byte) ([]Object, error) {
	stored, err := c.Client.Apply(ctx, "default", kube.Manifest{Name: name, YAML: manifest})
	var out []Object
	for _, u := range stored {
		out = append(out, Object{Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName(), Generation: u.GetGeneration()})
	}
	if err != nil {
		return out, fmt.Errorf("apply %w", err)
	}
	return out, nil
}

// Namespace makes a namespace with these labels, or sets them on the one there is.
func (c *Client) Namespace(ctx context.Context, name string, labels map[string]string) error {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
	u.SetName(name)
	u.SetLabels(labels)
	manifest, err := yaml.Marshal(u.Object)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	_, err = c.Apply(ctx, "namespace "+name, manifest)
	return err
}

// Deployments says how far the Deployments of a namespace are.
type Deployments struct {
	Ready, Want int      // pods
	Waiting     []string // names of those that are not complete
}

// Deployments counts the pods of the Deployments of a namespace.
func (c *Client) Deployments(ctx context.Context, namespace string) (Deployments, error) {
	list, err := c.Typed.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
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

// Pod is what scenarios watch of a pod they do not disturb.
type Pod struct {
	Restarts int       // of all its containers
	Ready    bool      // now
	Since    time.Time // it is, or is not, Ready; to the second
}

// Pods returns the pods of the namespaces by "namespace/name", without those that are on their way out.
func (c *Client) Pods(ctx context.Context, namespaces ...string) (map[string]Pod, error) {
	out := map[string]Pod{}
	for _, ns := range namespaces {
		pods, err := c.Typed.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list pods of %s: %w", ns, err)
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp != nil {
				continue
			}
			var pod Pod
			for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
				pod.Restarts += int(s.RestartCount)
			}
			for _, cond := range p.Status.Conditions {
				if cond.Type == corev1.PodReady {
					pod.Ready, pod.Since = cond.Status == corev1.ConditionTrue, cond.LastTransitionTime.Time
				}
			}
			out[ns+"/"+p.Name] = pod
		}
	}
	return out, nil
}

// Established tells whether the API server serves a CustomResourceDefinition.
func (c *Client) Established(ctx context.Context, name string) (bool, error) {
	u, err := c.Dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
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
	pods, err := c.Typed.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
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
