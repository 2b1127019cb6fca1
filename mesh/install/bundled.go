package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/mesh/objects"
)

// Bundled is the mesh that comes with Meshproof: meshd and meshproxy.
type Bundled struct{}

// Name is "bundled".
func (Bundled) Name() string { return "bundled" }

// Install makes CRDs, control plane, injector and ingress gateway.
func (Bundled) Install(ctx context.Context, cfg *rest.Config, opts Options) error {
	o := opts.Default()
	if err := o.validate(); err != nil {
		return err
	}
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	crds, err := definitions()
	if err != nil {
		return err
	}

	o.Progress("base", "custom resource definitions")
	var g errgroup.Group
	g.SetLimit(8)
	for _, d := range crds {
		g.Go(func() error { return c.apply(ctx, d) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("install base: %w", err)
	}
	// istiod is made while the API server establishes the definitions: its image start takes longer.
	o.Progress("istiod", "revision "+o.Revision)
	for _, obj := range controlPlane(o) {
		if err := c.applyTyped(ctx, obj); err != nil {
			return fmt.Errorf("install istiod: %w", err)
		}
	}
	for _, d := range crds {
		if err := c.until(ctx, crdResource, "", d.GetName(), "established", established); err != nil {
			return fmt.Errorf("install base: %w", err)
		}
	}

	// A gateway pod that starts before its root certificate is there waits for kubelet's next try.
	if err := c.until(ctx, configMapResource, o.Namespace, rootCertMap, "written by istiod", func(u *unstructured.Unstructured) (bool, string) {
		return true, ""
	}); err != nil {
		return fmt.Errorf("install ingress gateway: %w", c.explain(ctx, o, istiod(o), err))
	}
	o.Progress("ingress gateway", gatewayName)
	for _, obj := range gateway(o) {
		if err := c.applyTyped(ctx, obj); err != nil {
			return fmt.Errorf("install ingress gateway: %w", err)
		}
	}
	for _, name := range []string{istiod(o), gatewayName} {
		if err := c.until(ctx, deploymentResource, o.Namespace, name, "available", available); err != nil {
			return fmt.Errorf("install: %w", c.explain(ctx, o, name, err))
		}
	}
	if err := c.until(ctx, webhookResource, "", webhookName(o), "trusted (caBundle set by istiod)", trusted); err != nil {
		return fmt.Errorf("install injector: %w", c.explain(ctx, o, istiod(o), err))
	}
	o.Progress("ready", "control plane and ingress gateway")
	return nil
}

// Uninstall removes the revision; what all revisions share goes with the last one.
func (Bundled) Uninstall(ctx context.Context, cfg *rest.Config, opts Options) error {
	o := opts.Default()
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	list := controlPlane(o)
	shared := []runtime.Object{list[0]} // the namespace
	list = list[1:]
	others, err := c.otherRevisions(ctx, o)
	if err != nil {
		return err
	}
	if len(others) == 0 {
		list = append(list, gateway(o)...)
		if err := c.deleteRootCerts(ctx); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		if opts.Purge {
			crds, err := definitions()
			if err != nil {
				return err
			}
			for _, d := range crds {
				if err := c.delete(ctx, d); err != nil {
					return fmt.Errorf("uninstall base: %w", err)
				}
			}
		}
		list = append(list, shared...)
	}
	// The webhook first: no pod may wait for an injector that is going.
	for i := len(list) - 1; i >= 0; i-- {
		if _, ok := list[i].(*admissionv1.MutatingWebhookConfiguration); ok {
			if err := c.deleteTyped(ctx, list[i]); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
		}
	}
	for _, obj := range list {
		if err := c.deleteTyped(ctx, obj); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	for _, obj := range list {
		if err := c.untilGone(ctx, obj); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	o.Progress("gone", "revision "+o.Revision)
	return nil
}

// definitions decodes the embedded CRDs.
func definitions() ([]*unstructured.Unstructured, error) {
	dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(string(objects.CRDs())), 1<<16)
	var out []*unstructured.Unstructured
	for {
		u := &unstructured.Unstructured{}
		switch err := dec.Decode(&u.Object); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("embedded custom resource definitions: %w", err)
		case len(u.Object) > 0:
			out = append(out, u)
		}
	}
}

func established(u *unstructured.Unstructured) (bool, string) {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, crd); err != nil {
		return false, err.Error()
	}
	for _, c := range crd.Status.Conditions {
		if c.Type == apiextensionsv1.Established {
			return c.Status == apiextensionsv1.ConditionTrue, c.Message
		}
	}
	return false, "no condition yet"
}

func available(u *unstructured.Unstructured) (bool, string) {
	field := func(path ...string) int64 {
		n, _, _ := unstructured.NestedInt64(u.Object, path...)
		return n
	}
	if field("status", "observedGeneration") < u.GetGeneration() {
		return false, "not looked at yet"
	}
	want, updated, ready, all := field("spec", "replicas"), field("status", "updatedReplicas"), field("status", "availableReplicas"), field("status", "replicas")
	return updated == want && ready >= want && all == want, fmt.Sprintf("%d of %d pods available", ready, want)
}

func trusted(u *unstructured.Unstructured) (bool, string) {
	hooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
	for _, h := range hooks {
		m, _ := h.(map[string]any)
		if bundle, _, _ := unstructured.NestedString(m, "clientConfig", "caBundle"); bundle == "" {
			return false, "caBundle is empty"
		}
	}
	return len(hooks) > 0, ""
}

// otherRevisions names the control planes beside o's.
func (c *client) otherRevisions(ctx context.Context, o Options) ([]string, error) {
	list, err := c.dyn.Resource(deploymentResource).Namespace(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod," + revLabel + "!=" + o.Revision})
	if err != nil {
		return nil, fmt.Errorf("list control planes: %w", err)
	}
	var out []string
	for _, d := range list.Items {
		out = append(out, d.GetName())
	}
	return out, nil
}

// deleteRootCerts removes what istiod wrote into every namespace.
func (c *client) deleteRootCerts(ctx context.Context) error {
	list, err := c.dyn.Resource(configMapResource).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + rootCertMap})
	if err != nil {
		return fmt.Errorf("list ConfigMaps %s: %w", rootCertMap, err)
	}
	for _, cm := range list.Items {
		err := c.dyn.Resource(configMapResource).Namespace(cm.GetNamespace()).Delete(ctx, rootCertMap, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete ConfigMap %s/%s: %w", cm.GetNamespace(), rootCertMap, err)
		}
	}
	return nil
}

// explain adds to err why the pods of a Deployment are not there.
func (c *client) explain(ctx context.Context, o Options, app string, err error) error {
	// ctx is most likely over: that is why we are here.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), explainBudget)
	defer cancel()
	var why []string
	pods, lerr := c.core.Pods(o.Namespace).List(ctx, metav1.ListOptions{})
	if lerr != nil {
		return errors.Join(err, fmt.Errorf("list pods: %w", lerr))
	}
	for _, p := range pods.Items {
		if !strings.HasPrefix(p.Name, app+"-") {
			continue
		}
		for _, cond := range p.Status.Conditions {
			if cond.Status == corev1.ConditionFalse && cond.Message != "" {
				why = append(why, fmt.Sprintf("pod %s: %s: %s", p.Name, cond.Type, cond.Message))
			}
		}
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil {
				why = append(why, fmt.Sprintf("pod %s: container %s: %s %s", p.Name, s.Name, w.Reason, w.Message))
			}
			if t := s.LastTerminationState.Terminated; t != nil {
				why = append(why, fmt.Sprintf("pod %s: container %s ended: %s, exit code %d", p.Name, s.Name, t.Reason, t.ExitCode))
			}
			log, gerr := c.core.Pods(o.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: s.Name, TailLines: new(int64(5))}).DoRaw(ctx)
			if gerr == nil && len(log) > 0 {
				why = append(why, "last lines of "+p.Name+":\n"+strings.TrimSpace(string(log)))
			}
		}
	}
	if len(why) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, strings.Join(why, "\n"))
}
