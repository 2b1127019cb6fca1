// Package ingest watches a cluster and turns what it sees into Snapshots.
//
// Changes are gathered before a Snapshot is made: a change of configuration waits until nothing has changed for Quiet, at
// most for Max, so that a rule and the subsets it needs arrive together. Changes of endpoints alone do not wait for
// stragglers, for every moment of waiting sends requests to addresses that are gone; only bursts are coalesced.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	istioinformers "istio.io/client-go/pkg/informers/externalversions"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/meshproof/meshproof/mesh/model"
)

// Options of Run. The zero value of a duration means its default.
type Options struct {
	Kube  kubernetes.Interface
	Istio istioclient.Interface
	Mesh  model.Mesh
	Log   *slog.Logger

	Quiet     time.Duration // of configuration; default 10 ms
	Max       time.Duration // that configuration waits in all; default 1 s
	Endpoints time.Duration // that changes of endpoints are gathered for; default 2 ms
}

// Defaults of Options. Istio waits for 100 ms of quiet and at most 10 s.
const (
	DefaultQuiet     = 10 * time.Millisecond
	DefaultMax       = time.Second
	DefaultEndpoints = 2 * time.Millisecond
)

// Run watches until ctx ends, and hands every Snapshot to publish, one at a time. The first one comes when everything has
// been listed once. Run returns nil when ctx ends, with all its goroutines gone.
func Run(ctx context.Context, opts Options, publish func(*model.Snapshot)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := newQueue()
	kube := informers.NewSharedInformerFactoryWithOptions(opts.Kube, 0, informers.WithTransform(strip))
	istio := istioinformers.NewSharedInformerFactoryWithOptions(opts.Istio, 0, istioinformers.WithTransform(strip))
	var synced []cache.InformerSynced
	for name, inf := range map[string]cache.SharedIndexInformer{
		"services":         kube.Core().V1().Services().Informer(),
		"endpointslices":   kube.Discovery().V1().EndpointSlices().Informer(),
		"pods":             kube.Core().V1().Pods().Informer(),
		"virtualservices":  istio.Networking().V1().VirtualServices().Informer(),
		"destinationrules": istio.Networking().V1().DestinationRules().Informer(),
		"gateways":         istio.Networking().V1().Gateways().Informer(),
	} {
		reg, err := inf.AddEventHandler(q.handler())
		if err != nil {
			return fmt.Errorf("watch %s: %w", name, err)
		}
		synced = append(synced, reg.HasSynced)
	}
	kube.Start(ctx.Done())
	istio.Start(ctx.Done())
	defer func() {
		cancel()
		kube.Shutdown()
		istio.Shutdown()
	}()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	err := gather(ctx, opts, q, publish)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// gather applies events to the model and decides when to make a Snapshot of it.
func gather(ctx context.Context, opts Options, q *queue, publish func(*model.Snapshot)) error {
	quiet, limit, eps := opts.Quiet, opts.Max, opts.Endpoints
	if quiet == 0 {
		quiet = DefaultQuiet
	}
	if limit == 0 {
		limit = DefaultMax
	}
	if eps == 0 {
		eps = DefaultEndpoints
	}
	b := model.NewBuilder(opts.Mesh, time.Now)
	q.drain(b)
	build := func() {
		s := b.Build()
		publish(s)
		if opts.Log != nil {
			opts.Log.Debug("snapshot", "sequence", s.Sequence, "services", len(s.Services), "virtualServices", len(s.VirtualServices))
		}
	}
	build()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var pending model.Change
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.notify:
			c := q.drain(b)
			if c == model.Nothing {
				continue
			}
			if pending == model.Nothing {
				since = time.Now()
			}
			switch {
			case c == model.Config:
				// Every change starts the quiet time anew, but never past the limit.
				timer.Reset(max(0, min(quiet, limit-time.Since(since))))
			case pending == model.Nothing:
				timer.Reset(eps)
			}
			pending = max(pending, c)
		case <-timer.C:
			pending = model.Nothing
			build()
		}
	}
}

// queue carries events from the informers, in their order, without holding an informer up.
type queue struct {
	mu     sync.Mutex
	events []event
	notify chan struct{}
}

type event struct {
	obj     any
	deleted bool
}

func newQueue() *queue { return &queue{notify: make(chan struct{}, 1)} }

func (q *queue) add(e event) {
	q.mu.Lock()
	q.events = append(q.events, e)
	q.mu.Unlock()
	select {
	case q.notify <- struct{}{}:
	default:
	}
}

// drain applies everything that waits and tells how far it reaches.
func (q *queue) drain(b *model.Builder) model.Change {
	q.mu.Lock()
	events := q.events
	q.events = nil
	q.mu.Unlock()
	reach := model.Nothing
	for _, e := range events {
		if e.deleted {
			reach = max(reach, b.Delete(e.obj))
		} else {
			reach = max(reach, b.Set(e.obj))
		}
	}
	return reach
}

func (q *queue) handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { q.add(event{obj: obj}) },
		UpdateFunc: func(_, obj any) { q.add(event{obj: obj}) },
		DeleteFunc: func(obj any) {
			if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = d.Obj
			}
			q.add(event{obj: obj, deleted: true})
		},
	}
}

// strip drops what the model never reads, which is most of an object's memory.
func strip(obj any) (any, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return obj, nil // a tombstone
	}
	m.SetManagedFields(nil)
	switch o := obj.(type) {
	case *corev1.Pod:
		o.Spec.Volumes, o.Spec.InitContainers, o.Spec.Affinity, o.Spec.Tolerations = nil, nil, nil, nil
		o.Status.Conditions, o.Status.ContainerStatuses, o.Status.InitContainerStatuses = nil, nil, nil
		for i := range o.Spec.Containers {
			c := &o.Spec.Containers[i]
			*c = corev1.Container{Name: c.Name, Ports: c.Ports}
		}
		o.Annotations = nil
	case *networking.VirtualService, *networking.DestinationRule, *networking.Gateway:
		m.SetAnnotations(nil)
	}
	return obj, nil
}
