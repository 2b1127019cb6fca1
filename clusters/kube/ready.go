package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NotReadyError says what was not ready when the time was over, and why as far as the cluster tells.
type NotReadyError struct {
	NotReady []string // one line a workload or pod
	Why      []string // container states and recent warnings
	Err      error    // of the context
}

func (e *NotReadyError) Error() string {
	lines := []string{fmt.Sprintf("not ready (%v):", e.Err)}
	for _, l := range slices.Concat(e.NotReady, e.Why) {
		lines = append(lines, "  "+l)
	}
	return strings.Join(lines, "\n")
}

func (e *NotReadyError) Unwrap() error { return e.Err }

// WaitReady returns once every Deployment, StatefulSet and DaemonSet of the namespaces runs its current version with all
// replicas available, every Job is complete, and every pod
// without a controller is Ready or has succeeded. ctx is the budget; the error at its end is a *NotReadyError.
func (c *Client) WaitReady(ctx context.Context, namespaces ...string) error {
	var pending []string
	err := poll(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		var now []string
		for _, ns := range namespaces {
			more, err := c.notReady(ctx, ns)
			if err != nil {
				return err
			}
			now = append(now, more...)
		}
		pending = now
		if len(pending) > 0 {
			return errors.New("not ready")
		}
		return nil
	})
	if err == nil {
		return nil
	}
	if len(pending) == 0 || ctx.Err() == nil {
		return err
	}
	// The budget is spent; the explanation has a small one of its own.
	extra, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	out := &NotReadyError{NotReady: pending, Err: ctx.Err()}
	for _, ns := range namespaces {
		out.Why = append(out.Why, c.explain(extra, ns)...)
	}
	return out
}

func (c *Client) notReady(ctx context.Context, ns string) ([]string, error) {
	var out []string
	add := func(kind string, m metav1.ObjectMeta, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s %s/%s: ", kind, m.Namespace, m.Name)+fmt.Sprintf(format, args...))
	}
	deployments, err := c.Typed.AppsV1().Deployments(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("deployments of %s: %w", ns, err)
	}
	for _, d := range deployments.Items {
		if s := d.Status; d.Generation != s.ObservedGeneration || s.UpdatedReplicas != want(d.Spec.Replicas) ||
			s.Replicas != want(d.Spec.Replicas) || s.AvailableReplicas != want(d.Spec.Replicas) {
			add("Deployment", d.ObjectMeta, "%d of %d replicas available, %d up to date%s", s.AvailableReplicas, want(d.Spec.Replicas), s.UpdatedReplicas, deploymentNote(s))
		}
	}
	sets, err := c.Typed.AppsV1().StatefulSets(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("statefulsets of %s: %w", ns, err)
	}
	for _, d := range sets.Items {
		if s := d.Status; d.Generation != s.ObservedGeneration || s.ReadyReplicas != want(d.Spec.Replicas) || s.CurrentRevision != s.UpdateRevision {
			add("StatefulSet", d.ObjectMeta, "%d of %d replicas ready", s.ReadyReplicas, want(d.Spec.Replicas))
		}
	}
	daemons, err := c.Typed.AppsV1().DaemonSets(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("daemonsets of %s: %w", ns, err)
	}
	for _, d := range daemons.Items {
		if s := d.Status; d.Generation != s.ObservedGeneration || s.NumberAvailable != s.DesiredNumberScheduled || s.UpdatedNumberScheduled != s.DesiredNumberScheduled {
			add("DaemonSet", d.ObjectMeta, "%d of %d pods available", s.NumberAvailable, s.DesiredNumberScheduled)
		}
	}
	jobs, err := c.Typed.BatchV1().Jobs(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("jobs of %s: %w", ns, err)
	}
	for _, j := range jobs.Items {
		complete := slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
			return c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue
		})
		if !complete {
			add("Job", j.ObjectMeta, "%d succeeded, %d failed, %d running", j.Status.Succeeded, j.Status.Failed, j.Status.Active)
		}
	}
	pods, err := c.Typed.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("pods of %s: %w", ns, err)
	}
	for _, p := range pods.Items {
		if metav1.GetControllerOf(&p) == nil && !podReady(&p) && p.Status.Phase != corev1.PodSucceeded {
			add("Pod", p.ObjectMeta, "phase %s, not Ready", p.Status.Phase)
		}
	}
	return out, nil
}

func want(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

func deploymentNote(s appsv1.DeploymentStatus) string {
	for _, c := range s.Conditions {
		bad := c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue ||
			c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse
		if bad {
			return ": " + c.Reason + ": " + c.Message
		}
	}
	return ""
}

func podReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// explain tells, for the pods of a namespace that are not ready, what holds them up, and the latest warnings about anything.
func (c *Client) explain(ctx context.Context, ns string) []string {
	var out []string
	pods, err := c.Typed.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return []string{fmt.Sprintf("pods of %s: %v", ns, err)}
	}
	healthy := map[types.UID]bool{}
	for _, p := range pods.Items {
		if podReady(&p) || p.Status.Phase == corev1.PodSucceeded {
			healthy[p.UID] = true
			continue
		}
		name := "pod " + p.Namespace + "/" + p.Name
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status != corev1.ConditionTrue {
				out = append(out, fmt.Sprintf("%s: not scheduled: %s", name, cond.Message))
			}
		}
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if note := containerNote(s); note != "" {
				out = append(out, fmt.Sprintf("%s: container %s: %s", name, s.Name, note))
			}
		}
	}
	events, err := c.Typed.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		return append(out, fmt.Sprintf("events of %s: %v", ns, err))
	}
	slices.SortFunc(events.Items, func(a, b corev1.Event) int { return eventTime(&b).Compare(eventTime(&a)) })
	const most = 8
	for _, e := range events.Items[:min(most, len(events.Items))] {
		if !healthy[e.InvolvedObject.UID] {
			out = append(out, eventLine(&e))
		}
	}
	return out
}

func containerNote(s corev1.ContainerStatus) string {
	var note string
	switch {
	case s.State.Waiting != nil:
		note = fmt.Sprintf("waiting: %s %s", s.State.Waiting.Reason, s.State.Waiting.Message)
	case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
		note = fmt.Sprintf("ended with exit code %d: %s %s", s.State.Terminated.ExitCode, s.State.Terminated.Reason, s.State.Terminated.Message)
	case s.State.Running != nil && !s.Ready:
		note = "running, readiness probe does not pass"
	}
	if t := s.LastTerminationState.Terminated; t != nil {
		note += fmt.Sprintf("; restarted %d times, last exit code %d (%s)", s.RestartCount, t.ExitCode, t.Reason)
	}
	return strings.TrimSpace(note)
}

func eventTime(e *corev1.Event) time.Time {
	switch {
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

func eventLine(e *corev1.Event) string {
	return fmt.Sprintf("%s %s %s %s/%s: %s: %s", eventTime(e).UTC().Format(time.RFC3339), e.Type, e.InvolvedObject.Kind,
		e.InvolvedObject.Namespace, e.InvolvedObject.Name, e.Reason, strings.TrimSpace(e.Message))
}
