package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/objects"
)

// The states of an object and of its components, Istio's.
const (
	Reconciling = "RECONCILING"
	Healthy     = "HEALTHY"
	Failed      = "ERROR"
)

// Status is what the operator writes into an object.
type Status struct {
	Status             string                     `json:"status"`
	Message            string                     `json:"message,omitempty"`
	ObservedGeneration int64                      `json:"observedGeneration"`
	ComponentStatus    map[string]ComponentStatus `json:"componentStatus,omitempty"`
}

// ComponentStatus is the state of one component.
type ComponentStatus struct {
	Status  string `json:"status"`
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"`
}

// steps are what carrying out takes.
type steps interface {
	install(ctx context.Context, o install.Options) error
	remove(ctx context.Context, o install.Owner) error
}

type reconciler struct {
	Config
	objects dynamic.NamespaceableResourceInterface
	steps   steps
	flight  flight
}

func (r *reconciler) get(ctx context.Context, namespace, name string) (*unstructured.Unstructured, error) {
	return r.objects.Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

// reconcile brings the cluster to what an object asks for. A generation that was carried out before is only mended: gateways
// that another revision has taken over since are left to it.
func (r *reconciler) reconcile(ctx context.Context, u *unstructured.Unstructured) error {
	if !slices.Contains(u.GetFinalizers(), install.Finalizer) {
		if err := r.patch(ctx, u, "", map[string]any{"metadata": map[string]any{
			"finalizers": append(slices.Clone(u.GetFinalizers()), install.Finalizer), "resourceVersion": u.GetResourceVersion(),
		}}); err != nil {
			return err
		}
	}
	last := statusOf(u)
	plan, problems := FromObject(u.Object)
	if objects.HasErrors(problems) {
		// Nothing of it is carried out; another try would end alike, so only a new generation is one.
		s := Status{Status: Failed, Message: texts(problems), ObservedGeneration: u.GetGeneration(), ComponentStatus: last.ComponentStatus}
		return r.write(ctx, u, last, s)
	}
	for _, p := range problems {
		r.Log.Warn("object problem", "object", u.GetNamespace()+"/"+u.GetName(), "field", p.Field, "problem", p.Message, "fix", p.Fix)
	}
	o := plan.Options
	if o.Tag == "" {
		o.Tag = r.Tag
	}
	if o.Hub == "" {
		o.Hub = r.Hub
	}
	done := last.ObservedGeneration == u.GetGeneration() && last.Status == Healthy
	o.KeepGateways = done
	now := Status{Status: Healthy, Message: warnings(problems), ObservedGeneration: u.GetGeneration(), ComponentStatus: map[string]ComponentStatus{}}
	for _, c := range componentsOf(o) {
		now.ComponentStatus[c] = ComponentStatus{Status: Reconciling}
	}
	if !done {
		begun := now
		begun.Status = Reconciling
		if err := r.write(ctx, u, last, begun); err != nil {
			return err
		}
		last = begun
	}
	o.Progress = func(component, detail string) {
		r.Log.Info("component ready", "object", u.GetName(), "component", component, "detail", detail)
		if name := componentName(component); name != "" {
			now.ComponentStatus[name] = ComponentStatus{Status: Healthy, Version: o.Tag}
		}
	}
	wanted, end := r.flight.begin(ctx, u)
	defer end()
	bounded, cancel := context.WithTimeoutCause(wanted, installBudget, fmt.Errorf("not within %s", installBudget))
	defer cancel()
	err := r.steps.install(bounded, o)
	if err != nil && errors.Is(context.Cause(bounded), errSuperseded) {
		r.Log.Info("given up for a newer generation", "object", u.GetNamespace()+"/"+u.GetName(), "generation", u.GetGeneration())
		return nil
	}
	for name, c := range now.ComponentStatus {
		switch {
		case err != nil && c.Status == Reconciling:
			now.ComponentStatus[name] = ComponentStatus{Status: Failed, Error: err.Error()}
		case err == nil:
			now.ComponentStatus[name] = ComponentStatus{Status: Healthy, Version: o.Tag}
		}
	}
	if err != nil {
		now.Status, now.Message = Failed, err.Error()
	}
	if ctx.Err() != nil {
		return ctx.Err() // the next operator carries on
	}
	return errors.Join(err, r.write(ctx, u, last, now))
}

// componentsOf are the components of an installation, with Istio's names.
func componentsOf(o install.Options) []string {
	out := []string{"Base"}
	if o.Profile != "empty" && o.Profile != "remote" {
		out = append(out, "Pilot")
	}
	for _, g := range o.Gateways {
		name := "IngressGateways"
		if g.Egress {
			name = "EgressGateways"
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// componentName is Istio's name of what an installation tells of.
func componentName(progress string) string {
	return map[string]string{"base": "Base", "istiod": "Pilot", "ingress gateway": "IngressGateways", "egress gateway": "EgressGateways"}[progress]
}

// remove takes away what an object asked for, and its finalizer. When that does not come to an end, the finalizer goes all the
// same: an object that cannot be deleted helps nobody, and what is left is named.
func (r *reconciler) remove(ctx context.Context, u *unstructured.Unstructured) error {
	if !slices.Contains(u.GetFinalizers(), install.Finalizer) {
		return nil
	}
	bounded, cancel := context.WithTimeoutCause(ctx, removeBudget, fmt.Errorf("not within %s", removeBudget))
	defer cancel()
	err := r.steps.remove(bounded, install.Owner{Namespace: u.GetNamespace(), Name: u.GetName()})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.Log.Error("not all of it is gone; the object is let go", "object", u.GetNamespace()+"/"+u.GetName(), "error", err)
	} else {
		r.Log.Info("removed", "object", u.GetNamespace()+"/"+u.GetName())
	}
	others := slices.DeleteFunc(slices.Clone(u.GetFinalizers()), func(f string) bool { return f == install.Finalizer })
	err = r.patch(ctx, u, "", map[string]any{"metadata": map[string]any{"finalizers": others}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// write brings the object's status to s, unless it says so already.
func (r *reconciler) write(ctx context.Context, u *unstructured.Unstructured, last, s Status) error {
	a, errA := json.Marshal(last)
	b, errB := json.Marshal(s)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	if string(a) == string(b) {
		return nil
	}
	return r.patch(ctx, u, "status", map[string]any{"status": s.over(last)})
}

// over is s as a merge patch (RFC 7386) on what was there before: what s does not say goes.
func (s Status) over(last Status) map[string]any {
	text := func(v string) any {
		if v == "" {
			return nil
		}
		return v
	}
	components := map[string]any{}
	for name := range last.ComponentStatus {
		components[name] = nil
	}
	for name, c := range s.ComponentStatus {
		components[name] = map[string]any{"status": c.Status, "version": text(c.Version), "error": text(c.Error)}
	}
	return map[string]any{
		"status": s.Status, "message": text(s.Message), "observedGeneration": s.ObservedGeneration, "componentStatus": components,
	}
}

func (r *reconciler) patch(ctx context.Context, u *unstructured.Unstructured, sub string, change map[string]any) error {
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	var subresources []string
	if sub != "" {
		subresources = []string{sub}
	}
	_, err = r.objects.Namespace(u.GetNamespace()).Patch(ctx, u.GetName(), types.MergePatchType, data, metav1.PatchOptions{FieldManager: "meshproof-operator"}, subresources...)
	if err != nil {
		return fmt.Errorf("IstioOperator %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return nil
}

// statusOf reads what an operator wrote before; anything else is as if there was nothing.
func statusOf(u *unstructured.Unstructured) Status {
	var s Status
	raw, err := json.Marshal(u.Object["status"])
	if err != nil || json.Unmarshal(raw, &s) != nil {
		return Status{}
	}
	return s
}

func texts(problems []objects.Problem) string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func warnings(problems []objects.Problem) string {
	return texts(slices.DeleteFunc(slices.Clone(problems), func(p objects.Problem) bool { return p.Severity != objects.Warning }))
}
