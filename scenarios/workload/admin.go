package workload

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// adminPort is where a proxy tells about itself, to its own pod only.
const adminPort = 15000

// Admin asks the proxy of a pod at its admin port, through a port-forward, and returns the answer.
func (c *Client) Admin(ctx context.Context, namespace, pod, path string) ([]byte, error) {
	addr, tunnel, err := c.Forward(ctx, namespace, pod, adminPort)
	if err != nil {
		return nil, err
	}
	defer tunnel.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("proxy of %s.%s: %w", pod, namespace, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("proxy of %s.%s: %w", pod, namespace, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("proxy of %s.%s: GET %s: %s: %.200s", pod, namespace, path, resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}

// Istio lists the objects of Istio's networking API in all namespaces, as far as the cluster serves them.
func (c *Client) Istio(ctx context.Context) []unstructured.Unstructured {
	var out []unstructured.Unstructured
	for _, r := range []string{"virtualservices", "destinationrules", "gateways", "serviceentries", "sidecars"} {
		list, err := c.Dynamic.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: r}).List(ctx, metav1.ListOptions{})
		if err != nil {
			continue // this lab does not have the kind
		}
		out = append(out, list.Items...)
	}
	return out
}
