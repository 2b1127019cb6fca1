package upgrade

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/operator"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
)

//go:embed istiooperator.yaml
var istioOperator string

// object is the IstioOperator object of a revision. turn counts how often it was asked for.
func object(revision, tag string, turn int) []byte {
	return []byte(strings.NewReplacer("REVISION", revision, "TAG", tag, "TURN", strconv.Itoa(turn)).Replace(istioOperator))
}

// carryOut applies the IstioOperator object of a revision, and returns when its operator says that this generation is healthy.
func carryOut(ctx context.Context, e *env.Env, name string, text []byte) error {
	applied, err := e.Client.Apply(ctx, name, text)
	if err != nil {
		return err
	}
	if len(applied) != 1 {
		return fmt.Errorf("%s holds %s, not one", name, count(len(applied), "object"))
	}
	o := applied[0]
	api := e.Client.Dynamic.Resource(install.OperatorResource).Namespace(o.Namespace)
	_, err = expect.Converge(ctx, expect.Budget{Within: carriedOutIn, Every: 50 * time.Millisecond}, func(ctx context.Context) (struct{}, error) {
		u, err := api.Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return struct{}{}, err
		}
		var s operator.Status
		if raw, ok := u.Object["status"].(map[string]any); ok {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &s); err != nil {
				return struct{}{}, err
			}
		}
		if s.ObservedGeneration != u.GetGeneration() || s.Status != operator.Healthy {
			return struct{}{}, fmt.Errorf("%s is %s at generation %d of %d: %s", o, s.Status, s.ObservedGeneration, u.GetGeneration(), s.Message)
		}
		return struct{}{}, nil
	})
	return err
}

// seat is a proxy's place at a control plane, as that control plane tells.
type seat struct {
	Pod      string // pod.namespace
	Revision string // of the control plane
	Version  string // of the proxy
	Plane    string // version of the control plane
}

// seats asks the control planes of both revisions who is connected.
func seats(ctx context.Context, e *env.Env) ([]seat, error) {
	client := e.HTTP(5 * time.Second)
	defer client.CloseIdleConnections()
	pods, err := e.Client.Typed.CoreV1().Pods(env.MeshNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return nil, fmt.Errorf("control planes: %w", err)
	}
	var out []seat
	for _, p := range pods.Items {
		if p.Status.PodIP == "" || p.DeletionTimestamp != nil {
			continue
		}
		list, err := status.Syncz(ctx, client, "http://"+net.JoinHostPort(p.Status.PodIP, "15014"))
		if err != nil {
			return nil, err
		}
		for _, x := range list {
			version := x.ProxyVersion
			if version == "" {
				version = x.IstioVersion
			}
			out = append(out, seat{Pod: x.Proxy, Revision: p.Labels["istio.io/rev"], Version: version, Plane: imageTag(p)})
		}
	}
	return out, nil
}

func imageTag(p corev1.Pod) string {
	if len(p.Spec.Containers) == 0 {
		return ""
	}
	image := p.Spec.Containers[0].Image
	return image[strings.LastIndex(image, ":")+1:]
}

// podsOf names the pods of a Deployment that are not on their way out, as "pod.namespace".
func podsOf(ctx context.Context, e *env.Env, namespace, deployment string) ([]string, error) {
	d, err := e.Client.Typed.AppsV1().Deployments(namespace).Get(ctx, deployment, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get Deployment %s/%s: %w", namespace, deployment, err)
	}
	pods, err := e.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, fmt.Errorf("pods of %s/%s: %w", namespace, deployment, err)
	}
	var out []string
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			out = append(out, p.Name+"."+p.Namespace)
		}
	}
	return out, nil
}

// seated are the places of a Deployment's pods. A pod without one has an empty Revision.
func seated(ctx context.Context, e *env.Env, namespace, deployment string) ([]seat, error) {
	pods, err := podsOf(ctx, e, namespace, deployment)
	if err != nil {
		return nil, err
	}
	all, err := seats(ctx, e)
	if err != nil {
		return nil, err
	}
	var out []seat
	for _, pod := range pods {
		n := len(out)
		for _, s := range all {
			if s.Pod == pod {
				out = append(out, s)
			}
		}
		if len(out) == n {
			out = append(out, seat{Pod: pod})
		}
	}
	return out, nil
}

// restart makes a Deployment replace its pods, and returns when the new ones serve.
func restart(ctx context.Context, e *env.Env, namespace, deployment string) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{"kubectl.kubernetes.io/restartedAt": time.Now().UTC().Format(time.RFC3339Nano)},
	}}}})
	if err != nil {
		return err
	}
	api := e.Client.Typed.AppsV1().Deployments(namespace)
	if _, err := api.Patch(ctx, deployment, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("restart %s/%s: %w", namespace, deployment, err)
	}
	_, err = expect.Converge(ctx, expect.Budget{Within: rolloutIn, Every: 50 * time.Millisecond}, func(ctx context.Context) (struct{}, error) {
		d, err := api.Get(ctx, deployment, metav1.GetOptions{})
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, rolledOut(d)
	})
	if err != nil {
		return fmt.Errorf("restart %s/%s: %w", namespace, deployment, err)
	}
	return nil
}

// rolledOut says what a rollout still waits for, or nil.
func rolledOut(d *appsv1.Deployment) error {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.Replicas != want || s.AvailableReplicas != want {
		return fmt.Errorf("%d of %d pods are new, %d serve", s.UpdatedReplicas, want, s.AvailableReplicas)
	}
	return nil
}

// label makes a namespace ask for a revision.
func label(ctx context.Context, e *env.Env, namespace, revision string) error {
	patch := fmt.Sprintf(`{"metadata":{"labels":{"istio.io/rev":%q}}}`, revision)
	_, err := e.Client.Typed.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("label namespace %s: %w", namespace, err)
	}
	return nil
}

// ingress is the address of the gateway's HTTP port for Env.Dial.
func ingress(ctx context.Context, e *env.Env) (string, error) {
	s, err := e.Client.Typed.CoreV1().Services(env.MeshNamespace).Get(ctx, gatewayName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("service %s: %w", gatewayName, err)
	}
	i := slices.IndexFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == 80 })
	if i < 0 || s.Spec.Ports[i].NodePort == 0 {
		return "", errors.New("service " + gatewayName + " has no node port for 80")
	}
	return e.Node(s.Spec.Ports[i].NodePort)
}

// revisionOf says which revision every proxy is on that has exactly one.
func revisionOf(all []seat) map[string]string {
	out := map[string]string{}
	for _, s := range all {
		out[s.Pod] = s.Revision
	}
	return out
}

func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + one + "s"
}
