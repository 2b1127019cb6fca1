package install

import (
	"cmp"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// shape gives the Deployment of a component the settings of w, and returns the autoscaler and the disruption budget that w
// asks for.
func (w Workload) shape(d *appsv1.Deployment) []runtime.Object {
	pod := &d.Spec.Template.Spec
	c := &pod.Containers[0]
	d.Spec.Replicas = new(w.minimum())
	if w.Resources != nil {
		c.Resources = *w.Resources
	}
	for _, e := range w.Env {
		c.Env = replaceEnv(c.Env, e)
	}
	c.ImagePullPolicy = cmp.Or(w.PullPolicy, c.ImagePullPolicy)
	pod.NodeSelector, pod.Affinity, pod.Tolerations, pod.PriorityClassName = w.NodeSelector, w.Affinity, w.Tolerations, w.PriorityClass
	maps.Copy(d.Spec.Template.Annotations, w.Annotations)

	var out []runtime.Object
	if w.Autoscale != nil {
		spec := *w.Autoscale.DeepCopy()
		spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: d.Name}
		spec.MinReplicas = new(w.minimum())
		spec.MaxReplicas = max(cmp.Or(spec.MaxReplicas, defaultMaxReplicas), w.minimum())
		if len(spec.Metrics) == 0 {
			spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(int32(80))},
			}}}
		}
		out = append(out, &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: *d.ObjectMeta.DeepCopy(), Spec: spec})
	}
	if w.Disruption != nil {
		spec := *w.Disruption.DeepCopy()
		spec.Selector = &metav1.LabelSelector{MatchLabels: d.Spec.Selector.MatchLabels}
		out = append(out, &policyv1.PodDisruptionBudget{ObjectMeta: *d.ObjectMeta.DeepCopy(), Spec: spec})
	}
	return out
}

// defaultMaxReplicas is Istio's.
const defaultMaxReplicas int32 = 5

// minimum is how many pods w asks for at least.
func (w Workload) minimum() int32 {
	n := int32(1)
	if w.Replicas != nil {
		n = *w.Replicas
	}
	if w.Autoscale != nil && w.Autoscale.MinReplicas != nil {
		n = *w.Autoscale.MinReplicas
	}
	return n
}

// replaceEnv puts e in the place of the variable of its name, or behind the others.
func replaceEnv(env []corev1.EnvVar, e corev1.EnvVar) []corev1.EnvVar {
	env = slices.Clone(env)
	if i := slices.IndexFunc(env, func(x corev1.EnvVar) bool { return x.Name == e.Name }); i >= 0 {
		env[i] = e
		return env
	}
	return append(env, e)
}
