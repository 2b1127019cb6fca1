package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// ExitError is a command in a container that ended with another status than 0.
type ExitError struct {
	Code   int
	Stderr string
}

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d: %s", e.Code, e.Stderr) }

// Exec runs a command in a container (the first when container is empty), with stdin if it is not nil, and returns what it
// wrote. A command that fails gives an *ExitError.
func (c *Client) Exec(ctx context.Context, namespace, pod, container string, stdin io.Reader, command ...string) (stdout []byte, err error) {
	fail := func(err error) ([]byte, error) {
		return stdout, fmt.Errorf("exec in pod %s/%s: %w", namespace, pod, err)
	}
	req := c.Typed.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	spdy, err := remotecommand.NewSPDYExecutor(c.cfg, http.MethodPost, req.URL())
	if err != nil {
		return fail(err)
	}
	ws, err := remotecommand.NewWebSocketExecutor(c.cfg, http.MethodGet, req.URL().String())
	if err != nil {
		return fail(err)
	}
	ex, err := remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return fail(err)
	}
	var out, errOut bytes.Buffer
	err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	stdout = out.Bytes()
	var code exec.CodeExitError
	if errors.As(err, &code) {
		return fail(&ExitError{Code: code.Code, Stderr: errOut.String()})
	}
	if err != nil {
		return fail(err)
	}
	return stdout, nil
}

// Logs returns a container's log (of the only container when container is empty); previous means that of its run before.
func (c *Client) Logs(ctx context.Context, namespace, pod, container string, previous bool) ([]byte, error) {
	b, err := c.Typed.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container, Previous: previous}).DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("logs of pod %s/%s: %w", namespace, pod, err)
	}
	return b, nil
}
