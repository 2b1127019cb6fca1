package kube

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// TestForwardEnds has an API server that takes a request and never answers it.
func TestForwardEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked, over := sync.OnceFunc(cancel), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked()
		<-over
	}))
	defer server.Close()
	defer close(over)
	c, err := New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Forward(ctx, "default", "pod", 80); !errors.Is(err, context.Canceled) {
		t.Errorf("forward: %v, want that its context ended", err)
	}
}
