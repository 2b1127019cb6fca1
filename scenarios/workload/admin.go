package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// adminPort is where a proxy tells about itself, to its own pod only.
const adminPort = 15000

// Admin asks the proxy of a pod at its admin port, through a port-forward, and returns the answer.
func (c *Client) Admin(ctx context.Context, namespace, pod, path string) ([]byte, error) {
	addr, stop, err := c.PortForward(ctx, namespace, pod, adminPort)
	if err != nil {
		return nil, err
	}
	defer stop()
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

// PortForward listens on a free port of 127.0.0.1 and carries connections to a port of the pod's own loopback until ctx ends
// or stop is called. stop waits until the port is free again.
func (c *Client) PortForward(ctx context.Context, namespace, pod string, port int) (addr string, stop func(), err error) {
	url := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return "", nil, fmt.Errorf("port-forward to %s.%s: %w", pod, namespace, err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	done, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(port)}, done, ready, io.Discard, io.Discard)
	if err != nil {
		return "", nil, fmt.Errorf("port-forward to %s.%s: %w", pod, namespace, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	end := func() {
		close(done)
		<-ended
	}
	select {
	case err := <-ended:
		return "", nil, fmt.Errorf("port-forward to %s.%s: %w", pod, namespace, errors.Join(err, ctx.Err()))
	case <-ctx.Done():
		end()
		return "", nil, ctx.Err()
	case <-ready:
	}
	ports, err := f.GetPorts()
	if err != nil || len(ports) != 1 {
		end()
		return "", nil, fmt.Errorf("port-forward to %s.%s: no port: %w", pod, namespace, err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local))), end, nil
}

// Istio lists the objects of Istio's networking API in all namespaces, as far as the cluster serves them.
func (c *Client) Istio(ctx context.Context) []unstructured.Unstructured {
	var out []unstructured.Unstructured
	for _, r := range []string{"virtualservices", "destinationrules", "gateways", "serviceentries", "sidecars"} {
		list, err := c.dynamic.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: r}).List(ctx, metav1.ListOptions{})
		if err != nil {
			continue // this lab does not have the kind
		}
		out = append(out, list.Items...)
	}
	return out
}
