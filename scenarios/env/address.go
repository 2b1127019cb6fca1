package env

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NodePort makes a Service of type NodePort beside an existing one, with the same pods, and returns its address for Dial. It
// is the way in where there is no gateway.
func (e *Env) NodePort(ctx context.Context, namespace, service string, port int32) (string, error) {
	s, err := e.Client.Typed.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("service %s/%s: %w", namespace, service, err)
	}
	name := service + "-nodeport"
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n  type: NodePort\n  ports:\n  - name: http\n    port: %d\n  selector:\n", name, namespace, port)
	for k, v := range s.Spec.Selector {
		manifest += fmt.Sprintf("    %s: %s\n", k, strconv.Quote(v))
	}
	if _, err := e.Client.Apply(ctx, "Service "+name, []byte(manifest)); err != nil {
		return "", err
	}
	return e.serviceNodePort(ctx, namespace, name, port)
}

// serviceNodePort is the address, for Dial, of the node port of a Service's port.
func (e *Env) serviceNodePort(ctx context.Context, namespace, name string, port int32) (string, error) {
	s, err := e.Client.Typed.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	for _, p := range s.Spec.Ports {
		if p.Port == port && p.NodePort != 0 {
			return e.Node(p.NodePort)
		}
	}
	return "", fmt.Errorf("service %s/%s has no node port for %d", namespace, name, port)
}

// PodAddress is the address, for Dial, of a port of the first Ready pod that a selector picks.
func (e *Env) PodAddress(ctx context.Context, namespace, selector string, port int) (string, error) {
	pods, err := e.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return "", fmt.Errorf("pods of %s with %s: %w", namespace, selector, err)
	}
	for _, p := range pods.Items {
		if p.Status.PodIP != "" && p.DeletionTimestamp == nil && podReady(p) {
			return net.JoinHostPort(p.Status.PodIP, strconv.Itoa(port)), nil
		}
	}
	return "", errors.New("no pod of " + namespace + " with " + selector + " is Ready")
}

func podReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
