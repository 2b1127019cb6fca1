package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshproof/meshproof/cmd/internal/cli"
)

// silentServer accepts connections and says nothing. It returns a kubeconfig that leads to it.
func silentServer(t *testing.T) (kubeconfig string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
			wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x"}}],
		"clusters": [{"name": "x", "cluster": {"server": "http://%s"}}]}`, ln.Addr())
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// TestRequestTimeout: no verb of the mesh waits for ever for an API server that accepts and does not answer.
func TestRequestTimeout(t *testing.T) {
	for _, verb := range []string{"proxy-status", "proxy-config routes pod.ns", "version", "tag list", "remote-clusters"} {
		t.Run(verb, func(t *testing.T) {
			kubeconfig := silentServer(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var said bytes.Buffer
			args := append([]string{"mesh", "--kubeconfig", kubeconfig, "--request-timeout", "100ms"}, strings.Fields(verb)...)
			code := cli.Run(ctx, args, cli.Streams{In: strings.NewReader(""), Out: &said, Err: &said, Env: func(string) string { return "" }, Self: "meshproof"})
			if ctx.Err() != nil || code != 1 {
				t.Errorf("exit code %d, context %v, want 1 in time: %s", code, ctx.Err(), said.String())
			}
		})
	}
}
