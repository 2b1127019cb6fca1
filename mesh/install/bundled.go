package install

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/mesh/multicluster"
	"github.com/meshproof/meshproof/mesh/objects"
)

// Bundled is the mesh that comes with Meshproof: meshd and meshproxy.
type Bundled struct{}

// Name is "bundled".
func (Bundled) Name() string { return "bundled" }

// Install makes CRDs, control plane, injector and gateways, as far as the profile has them, and removes what the same owner
// asked for before and does not now; gateways only where opts or an IstioOperator object says which to have. Which mesh, cluster and network this is,
// where opts does not say it, is what a control plane that is there already was told.
func (Bundled) Install(ctx context.Context, cfg *rest.Config, opts Options) error {
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	if opts, err = c.inherit(ctx, opts); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	o := opts.Default()
	if err := o.validate(); err != nil {
		return err
	}
	established, err := c.definitions(ctx)
	if err != nil {
		return fmt.Errorf("install base: %w", err)
	}
	// istiod is made while the API server establishes the definitions: its image start takes longer.
	objs := append([]runtime.Object{rootNamespace(o)}, controlPlane(o)...)
	if o.Profile == "empty" { // what the namespace says is its control plane's to say
		if err := c.ensureNamespace(ctx, o.Namespace); err != nil {
			return fmt.Errorf("install: %w", err)
		}
		objs = nil
	}
	if o.Profile == "remote" {
		// What the namespace says lets the primary begin; by then it must have the rights that it needs.
		if err := c.ensureNamespace(ctx, o.Namespace); err != nil {
			return fmt.Errorf("install istiod-remote: %w", err)
		}
		ns := rootNamespace(o)
		by, err := c.controlledBy(ctx, o.Namespace)
		if err != nil {
			return fmt.Errorf("install istiod-remote: %w", err)
		}
		if by != "" {
			ns.Annotations[multicluster.ControlledAnnotation] = by
		}
		objs = append(controlPlane(o), ns)
	}
	if o.Profile != "empty" {
		if err := c.remarkNetwork(ctx, o); err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	if err := c.applyAll(ctx, objs); err != nil {
		return fmt.Errorf("install istiod: %w", err)
	}
	if err := established(ctx); err != nil {
		return fmt.Errorf("install base: %w", err)
	}
	o.Progress("base", "custom resource definitions")
	if o.KeepGateways {
		if o.Gateways, err = c.stillOurs(ctx, o); err != nil {
			return fmt.Errorf("install gateways: %w", err)
		}
	}
	if o.Profile == "remote" { // gateways need what the primary writes
		taken, err := c.takenIn(ctx, o)
		if err != nil {
			return fmt.Errorf("install istiod-remote: %w", err)
		}
		o.Progress("istiod-remote", "control plane at "+o.RemotePilotAddress)
		if !taken {
			o.Remark("primary", "has not taken the cluster in yet: give it what mesh create-remote-secret --name "+o.ClusterID+" prints; until then new pods wait")
		}
	}
	if err := c.startGateways(ctx, o); err != nil {
		return fmt.Errorf("install gateways: %w", err)
	}
	if controls(o.Profile) {
		if err := c.until(ctx, deploymentResource, o.Namespace, istiod(o), "available", available); err != nil {
			return fmt.Errorf("install istiod: %w", c.explain(ctx, o.Namespace, istiod(o), err))
		}
		if err := c.until(ctx, webhookResource, "", webhookName(o), "trusted (caBundle set by istiod)", trusted); err != nil {
			return fmt.Errorf("install injector: %w", c.explain(ctx, o.Namespace, istiod(o), err))
		}
		o.Progress("istiod", fmt.Sprintf("revision %s, version %s", o.Revision, o.Tag))
	}
	for _, g := range o.Gateways {
		if err := c.until(ctx, deploymentResource, g.Namespace, g.Name, "available", available); err != nil {
			return fmt.Errorf("install gateway %s: %w", g.Name, c.explain(ctx, g.Namespace, g.Name, err))
		}
		what := "ingress gateway"
		if g.Egress {
			what = "egress gateway"
		}
		o.Progress(what, g.Name)
	}
	if err := c.prune(ctx, o, opts.Gateways != nil || opts.Owner.Name != ""); err != nil {
		return fmt.Errorf("install: remove what is not asked for any more: %w", err)
	}
	if o.autoscaled() && !c.measured(ctx) {
		o.Remark("autoscalers", "keep their minimum: this cluster has no metrics server")
	}
	o.Progress("complete", "revision "+o.Revision)
	return nil
}

// inherit fills in what opts leaves out of the cluster's identity, from the control plane of its revision, or else from any.
func (c *client) inherit(ctx context.Context, opts Options) (Options, error) {
	o := opts.Default()
	list, err := c.dyn.Resource(deploymentResource).Namespace(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod," + ownerLabel + "=" + owner})
	if err != nil {
		return opts, fmt.Errorf("control planes that are there: %w", err)
	}
	there := list.Items
	if i := slices.IndexFunc(there, func(u unstructured.Unstructured) bool { return u.GetLabels()[revLabel] == o.Revision }); i > 0 {
		there = there[i:]
	}
	if len(there) == 0 {
		return opts, nil
	}
	d := &appsv1.Deployment{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(there[0].Object, d); err != nil {
		return opts, fmt.Errorf("control planes that are there: %w", err)
	}
	return opts.inherit(d), nil
}

// inherit fills in what the arguments of a control plane say.
func (o Options) inherit(istiod *appsv1.Deployment) Options {
	for _, c := range istiod.Spec.Template.Spec.Containers {
		for _, arg := range c.Args {
			name, value, _ := strings.Cut(arg, "=")
			field := map[string]*string{"--cluster-id": &o.ClusterID, "--mesh-id": &o.MeshID, "--network": &o.Network, "--trust-domain": &o.TrustDomain}[name]
			if field != nil && *field == "" {
				*field = value
			}
		}
	}
	return o
}

// autoscaled tells whether any component has an autoscaler.
func (o Options) autoscaled() bool {
	return o.Pilot.Autoscale != nil && controls(o.Profile) || slices.ContainsFunc(o.Gateways, func(g Gateway) bool { return g.Workload.Autoscale != nil })
}

// measured tells whether somebody in the cluster serves what autoscalers go by. An API server that does not say counts as yes:
// nothing hangs on it but a remark.
func (c *client) measured(ctx context.Context) bool {
	_, err := c.core.RESTClient().Get().AbsPath("/apis/metrics.k8s.io").DoRaw(ctx)
	return !apierrors.IsNotFound(err)
}

// startGateways makes the gateways. A gateway pod that starts before its root certificate is there waits for kubelet's next
// try, so that comes first.
func (c *client) startGateways(ctx context.Context, o Options) error {
	spaces := map[string]bool{}
	for _, g := range o.Gateways {
		if spaces[g.Namespace] {
			continue
		}
		spaces[g.Namespace] = true
		if g.Namespace != o.Namespace {
			if err := c.applyTyped(ctx, namespace(g.Namespace)); err != nil {
				return err
			}
		}
		err := c.until(ctx, configMapResource, g.Namespace, rootCertMap, "written by istiod", func(*unstructured.Unstructured) (bool, string) {
			return true, ""
		})
		if err != nil {
			return c.explain(ctx, o.Namespace, istiod(o), err)
		}
	}
	return c.applyAll(ctx, gateways(o))
}

// stillOurs are the gateways of o that no other revision and no other owner has taken over.
func (c *client) stillOurs(ctx context.Context, o Options) ([]Gateway, error) {
	ours := []Gateway{}
	for _, g := range o.Gateways {
		d, err := c.dyn.Resource(deploymentResource).Namespace(g.Namespace).Get(ctx, g.Name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		if err == nil {
			if rev := d.GetLabels()[revLabel]; rev != o.Revision {
				o.Progress("gateway "+g.Name, "left to revision "+rev)
				continue
			}
		}
		ours = append(ours, g)
	}
	return ours, nil
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// applyAll applies objects in their order. A Deployment that an autoscaler has set keeps its size.
func (c *client) applyAll(ctx context.Context, objs []runtime.Object) error {
	scalers := map[string]autoscalingv2.HorizontalPodAutoscalerSpec{}
	for _, obj := range objs {
		if h, ok := obj.(*autoscalingv2.HorizontalPodAutoscaler); ok {
			scalers[h.Namespace+"/"+h.Name] = h.Spec
		}
	}
	for _, obj := range objs {
		if d, ok := obj.(*appsv1.Deployment); ok {
			if h, ok := scalers[d.Namespace+"/"+d.Name]; ok {
				now, err := c.replicas(ctx, d.Namespace, d.Name)
				if err != nil {
					return err
				}
				d.Spec.Replicas = new(min(max(now, *h.MinReplicas), h.MaxReplicas))
			}
		}
		if err := c.applyTyped(ctx, obj); err != nil {
			return err
		}
	}
	return nil
}

// replicas is how many pods a Deployment is set to, 0 if there is none.
func (c *client) replicas(ctx context.Context, namespace, name string) (int32, error) {
	u, err := c.dyn.Resource(deploymentResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("get Deployment %s/%s: %w", namespace, name, err)
	}
	n, _, err := unstructured.NestedInt64(u.Object, "spec", "replicas")
	return int32(n), err
}

// definitions applies the CRDs and returns how to wait until the API server serves them.
func (c *client) definitions(ctx context.Context) (wait func(context.Context) error, err error) {
	crds, err := definitions()
	if err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, d := range crds {
		g.Go(func() error { return c.define(ctx, d) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		for _, d := range crds {
			if err := c.until(ctx, crdResource, "", d.GetName(), "established", established); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// digestAnnotation tells which text a definition was made from.
const digestAnnotation = "meshproof.dev/definition"

// define applies a CRD, unless it is there as it should be: the API server compares these large schemas for seconds of
// processor time, which a second revision in a mesh that serves must not cost.
func (c *client) define(ctx context.Context, d *unstructured.Unstructured) error {
	text, err := json.Marshal(d.Object)
	if err != nil {
		return err
	}
	digest := fmt.Sprintf("%x", sha256.Sum256(text))
	now, err := c.dyn.Resource(crdResource).Get(ctx, d.GetName(), metav1.GetOptions{})
	if err == nil && now.GetAnnotations()[digestAnnotation] == digest {
		return nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("definition %s: %w", d.GetName(), err)
	}
	annotations := d.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[digestAnnotation] = digest
	d.SetAnnotations(annotations)
	return c.apply(ctx, d)
}

// definitions decodes the embedded CRDs.
func definitions() ([]*unstructured.Unstructured, error) {
	text := string(objects.CRDs()) + "---\n" + operatorDefinition
	dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 1<<16)
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

// explain adds to err why the pods of a Deployment are not there.
func (c *client) explain(ctx context.Context, namespace, app string, err error) error {
	// ctx is most likely over: that is why we are here.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), explainBudget)
	defer cancel()
	var why []string
	pods, lerr := c.core.Pods(namespace).List(ctx, metav1.ListOptions{})
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
			log, gerr := c.core.Pods(namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: s.Name, TailLines: new(int64(5))}).DoRaw(ctx)
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
