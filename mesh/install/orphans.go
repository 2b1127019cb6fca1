package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// Orphans lists what a cluster still has of a revision, as "Kind namespace/name (why)". It looks at every kind that the API
// server can list, and goes by labels, by names, and by what leads to the revision's control plane, so it does not depend on
// what Install knows of itself. Namespaces and pods that merely ask for the revision are people's own.
func Orphans(ctx context.Context, cfg *rest.Config, revision string) ([]string, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = 200, 400
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	served, err := d.ServerPreferredResources()
	if err != nil {
		return nil, fmt.Errorf("kinds of the API server: %w", err)
	}
	out := []string{}
	for _, group := range served {
		gv, err := schema.ParseGroupVersion(group.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("kinds of the API server: %w", err)
		}
		for _, r := range group.APIResources {
			if r.Kind == "Event" || r.Kind == "Namespace" || r.Kind == "ComponentStatus" || !slices.Contains(r.Verbs, "list") {
				continue
			}
			list, err := c.dyn.Resource(gv.WithResource(r.Name)).List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue // went between the two calls
			}
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", r.Name, err)
			}
			for _, u := range list.Items {
				if why := belongs(u, r.Kind, revision); why != "" {
					name := u.GetName()
					if ns := u.GetNamespace(); ns != "" {
						name = ns + "/" + name
					}
					out = append(out, r.Kind+" "+name+" ("+why+")")
				}
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// belongs says why an object is of the revision; "" if it is not.
func belongs(u unstructured.Unstructured, kind, revision string) string {
	if kind == "ReplicaSet" && metav1.GetControllerOf(&u) != nil {
		if n, _, _ := unstructured.NestedInt64(u.Object, "spec", "replicas"); n == 0 {
			return "" // the history of a gateway that another revision has taken over
		}
	}
	if u.GetLabels()[revLabel] == revision {
		return "label " + revLabel
	}
	if kind == "IstioOperator" {
		rev, _, _ := unstructured.NestedString(u.Object, "spec", "revision")
		if rev == revision || rev == "" && revision == "default" {
			return "spec.revision"
		}
	}
	if s := suffix(revision); s != "" && strings.HasPrefix(u.GetName(), "isti") && strings.HasSuffix(strings.TrimSuffix(u.GetName(), "-istio-system"), s) {
		return "name"
	}
	service := "istiod" + suffix(revision)
	hooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
	for _, h := range hooks {
		m, _ := h.(map[string]any)
		if name, _, _ := unstructured.NestedString(m, "clientConfig", "service", "name"); name == service {
			return "leads to Service " + service
		}
	}
	subjects, _, _ := unstructured.NestedSlice(u.Object, "subjects")
	for _, s := range subjects {
		m, _ := s.(map[string]any)
		if m["kind"] == "ServiceAccount" && m["name"] == service {
			return "gives rights to ServiceAccount " + service
		}
	}
	return ""
}
