package env

import (
	"context"
	"fmt"
	"strconv"

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

// serviceNodePort is the address, for Dial, of the node port of a Service's port in the first cluster.
func (e *Env) serviceNodePort(ctx context.Context, namespace, name string, port int32) (string, error) {
	return e.Sites[0].ServiceNodePort(ctx, namespace, name, port)
}

// PodAddress is the address, for Dial, of a port of the first Ready pod that a selector picks in the first cluster.
func (e *Env) PodAddress(ctx context.Context, namespace, selector string, port int) (string, error) {
	return e.Sites[0].PodAddress(ctx, namespace, selector, port)
}
