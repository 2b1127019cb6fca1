// Package kube does what needs nothing but a rest.Config: apply and delete manifests, wait until workloads are ready, run
// commands in pods, read logs, forward ports, and collect what helps to understand a failure.
package kube

import (
	"fmt"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// FieldManager owns the fields that Apply sets.
const FieldManager = "meshproof"

// Client works on one cluster. It may be used from several goroutines and needs no closing.
type Client struct {
	// Typed and Dynamic are there for what this package has no word for.
	Typed   kubernetes.Interface
	Dynamic dynamic.Interface

	cfg    *rest.Config
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// New makes a client. It copies cfg and connects to nothing yet.
func New(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.WarningHandler = rest.NoWarnings{} // warnings of the API server would garble terminals; errors are returned
	http, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	typed, err := kubernetes.NewForConfigAndClient(cfg, http)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	dyn, err := dynamic.NewForConfigAndClient(cfg, http)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	disc, err := discovery.NewDiscoveryClientForConfigAndClient(cfg, http)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &Client{
		Typed: typed, Dynamic: dyn, cfg: cfg,
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disc)),
	}, nil
}

// Config returns a copy of the client's configuration.
func (c *Client) Config() *rest.Config { return rest.CopyConfig(c.cfg) }
