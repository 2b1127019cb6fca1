package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// Forward carries connections from a free port of 127.0.0.1 to a port of a pod, through the API server, until ctx ends or the
// closer is closed. It returns once it listens, with the address, or when the API server has not answered within the timeout of
// the client's configuration.
func (c *Client) Forward(ctx context.Context, namespace, pod string, port int) (local string, stop io.Closer, err error) {
	fail := func(err error) (string, io.Closer, error) {
		return "", nil, fmt.Errorf("forward to pod %s/%s port %d: %w", namespace, pod, port, err)
	}
	url := c.Typed.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.cfg)
	if err != nil {
		return fail(err)
	}
	ws, err := portforward.NewSPDYOverWebsocketDialer(url, c.cfg)
	if err != nil {
		return fail(err)
	}
	dialer := portforward.NewFallbackDialer(ws, spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url),
		func(err error) bool { return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) })
	ctx, cancel := context.WithCancel(ctx)
	ready := make(chan struct{})
	fw, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, ctx.Done(), ready, io.Discard, io.Discard)
	if err != nil {
		cancel()
		return fail(err)
	}
	t := &tunnel{cancel: cancel}
	ended := make(chan struct{})
	t.wg.Go(func() {
		defer close(ended)
		t.err = fw.ForwardPorts()
	})
	var late <-chan time.Time
	if limit := c.cfg.Timeout; limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-ready:
	case <-late:
		cancel()
		return fail(fmt.Errorf("the API server does not answer within %s", c.cfg.Timeout))
	case <-ended:
		cancel()
		return fail(errors.Join(ctx.Err(), t.err))
	case <-ctx.Done(): // an API server may accept and never answer; what dials it takes no context, and is left to end by itself
		cancel()
		return fail(ctx.Err())
	}
	ports, err := fw.GetPorts()
	if err != nil || len(ports) != 1 {
		return fail(errors.Join(err, t.Close()))
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), t, nil
}

type tunnel struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	err    error
}

// Close ends the forwarding and waits for it; the error is why it had ended before, if it had.
func (t *tunnel) Close() error {
	t.cancel()
	t.wg.Wait()
	return t.err
}
