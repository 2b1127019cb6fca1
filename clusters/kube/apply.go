package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
)

// kindBudget bounds the wait for a kind whose definition was applied a moment ago.
const kindBudget = 15 * time.Second

// Apply creates or changes every object of the manifests, in their order, by server-side apply. Objects of namespaced kinds
// that name no namespace go to namespace. Unknown fields are errors. All manifests are parsed before anything is sent; errors
// begin with file:line. It returns the objects as the API server has them now, also those applied before an error.
func (c *Client) Apply(ctx context.Context, namespace string, manifests ...Manifest) ([]*unstructured.Unstructured, error) {
	docs, err := parseAll(manifests)
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, d := range docs {
		obj, err := c.apply(ctx, namespace, d)
		if err != nil {
			return out, err
		}
		out = append(out, obj)
	}
	return out, nil
}

func parseAll(manifests []Manifest) ([]document, error) {
	var docs []document
	for _, m := range manifests {
		more, err := parse(m)
		if err != nil {
			return nil, err
		}
		docs = append(docs, more...)
	}
	return docs, nil
}

func (c *Client) apply(ctx context.Context, namespace string, d document) (*unstructured.Unstructured, error) {
	client, err := c.resource(ctx, namespace, d.object, true)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", d.at(""), d, err)
	}
	body, err := json.Marshal(d.object)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", d.at(""), d, err)
	}
	force := true
	obj, err := client.Patch(ctx, d.object.GetName(), types.ApplyPatchType, body, metav1.PatchOptions{
		FieldManager: FieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", d.at(faultyField(err)), d, err)
	}
	return obj, nil
}

var strictField = regexp.MustCompile(`(?:unknown field "([^"]+)"|(?:^|: )\.([A-Za-z][^:\s]*): field not declared)`)

// faultyField finds the path of the field that the API server complains about; empty if it names none.
func faultyField(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, cause := range status.Status().Details.Causes {
			if cause.Field != "" && cause.Field != "patch" {
				return cause.Field
			}
		}
	}
	if m := strictField.FindStringSubmatch(err.Error()); m != nil {
		return m[1] + m[2]
	}
	return ""
}

// resource finds the API of the object's kind, and settles its namespace. With wait it bears that the kind's definition is
// being established.
func (c *Client) resource(ctx context.Context, namespace string, obj *unstructured.Unstructured, wait bool) (dynamic.ResourceInterface, error) {
	gvk := obj.GroupVersionKind()
	mapping, err := c.mapping(gvk)
	if wait && meta.IsNoMatchError(err) && c.defined(ctx, gvk) {
		ctx, cancel := context.WithTimeout(ctx, kindBudget)
		defer cancel()
		err = poll(ctx, 50*time.Millisecond, func(context.Context) (err error) {
			mapping, err = c.mapping(gvk)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(mapping.Resource), nil
	}
	if obj.GetNamespace() == "" {
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		obj.SetNamespace(namespace)
	}
	return c.Dynamic.Resource(mapping.Resource).Namespace(obj.GetNamespace()), nil
}

func (c *Client) mapping(gvk schema.GroupVersionKind) (*meta.RESTMapping, error) {
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // what was cached may be older than the kind
		m, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	return m, err
}

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// defined tells whether some CustomResourceDefinition, established or not, has the kind: then it pays to wait.
func (c *Client) defined(ctx context.Context, gvk schema.GroupVersionKind) bool {
	list, err := c.Dynamic.Resource(crds).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false
	}
	return slices.ContainsFunc(list.Items, func(crd unstructured.Unstructured) bool {
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		return group == gvk.Group && kind == gvk.Kind
	})
}

// Delete removes the objects of the manifests, last first, and returns once they are gone. What does not exist, or is of a
// kind that does not exist, counts as gone.
func (c *Client) Delete(ctx context.Context, namespace string, manifests ...Manifest) error {
	docs, err := parseAll(manifests)
	if err != nil {
		return err
	}
	slices.Reverse(docs)
	var watch []func(context.Context) error
	for _, d := range docs {
		client, err := c.resource(ctx, namespace, d.object, false)
		if meta.IsNoMatchError(err) {
			continue
		}
		if err == nil {
			background := metav1.DeletePropagationBackground
			err = client.Delete(ctx, d.object.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
		}
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: delete %s: %w", d.at(""), d, err)
		}
		watch = append(watch, func(ctx context.Context) error {
			_, err := client.Get(ctx, d.object.GetName(), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err == nil {
				err = errors.New("is still there")
			}
			return fmt.Errorf("%s: delete %s: %w", d.at(""), d, err)
		})
	}
	for _, gone := range watch {
		if err := poll(ctx, 50*time.Millisecond, gone); err != nil {
			return err
		}
	}
	return nil
}

// poll tries probe until it succeeds or ctx ends; the error then carries the last answer.
func poll(ctx context.Context, every time.Duration, probe func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, every, true, func(ctx context.Context) (bool, error) {
		err := probe(ctx)
		if ctx.Err() == nil || last == nil { // an answer cut off by the end of ctx says less than the one before
			last = err
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}
