// Package ingest watches the clusters of a mesh and turns what it sees into Snapshots.
//
// Traffic objects are read from the control plane's own cluster only; services, endpoints, pods and nodes from all. What was
// read of a remote cluster stays in force while nobody follows that cluster, until Forget.
//
// Changes are gathered before a Snapshot is made: a change of configuration waits until nothing has changed for Quiet, at
// most for Max, so that a rule and the subsets it needs arrive together. Changes of endpoints alone do not wait for
// stragglers, for every moment of waiting sends requests to addresses that are gone; only bursts are coalesced.
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"time"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	istioinformers "istio.io/client-go/pkg/informers/externalversions"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/kubernetes"

	"github.com/meshproof/meshproof/mesh/model"
)

// Options of Run. The zero value of a duration means its default.
type Options struct {
	Kube  kubernetes.Interface
	Istio istioclient.Interface
	Mesh  model.Mesh
	Log   *slog.Logger
	// Settled, when not nil, is waited for before the first Snapshot: until then remote clusters are being read.
	Settled <-chan struct{}

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

// Ingest watches clusters. It is safe for concurrent use.
type Ingest struct {
	opts Options
	q    *queue
}

// New returns an Ingest that watches nothing yet.
func New(opts Options) *Ingest { return &Ingest{opts: opts, q: newQueue()} }

// Run watches the own cluster until ctx ends, and hands every Snapshot to publish, one at a time. The first one comes when
// everything has been listed once. Run returns nil when ctx ends, with all its goroutines gone.
func (in *Ingest) Run(ctx context.Context, publish func(*model.Snapshot)) error {
	istio := istioinformers.NewSharedInformerFactoryWithOptions(in.opts.Istio, 0, istioinformers.WithTransform(strip))
	f := &factories{kube: kubeInformers(in.opts.Kube), root: rootInformers(in.opts.Kube, in.opts.Mesh.RootNamespace), istio: istio}
	ctx, cancel := context.WithCancel(ctx)
	defer f.stop(cancel)
	if ok, err := f.start(ctx, "", func(e event) { in.q.add(e) }); !ok {
		return err
	}
	if in.opts.Settled != nil {
		select {
		case <-in.opts.Settled:
		case <-ctx.Done():
			return nil
		}
	}
	err := gather(ctx, in.opts, in.q, publish)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Follow watches a remote cluster until ctx ends. When everything has been listed once, it replaces at one stroke what was known
// of the cluster, and calls synced.
func (in *Ingest) Follow(ctx context.Context, id string, kube kubernetes.Interface, synced func()) error {
	f := &factories{kube: kubeInformers(kube), root: rootInformers(kube, in.opts.Mesh.RootNamespace)}
	ctx, cancel := context.WithCancel(ctx)
	defer f.stop(cancel)
	first := &held{q: in.q, events: []event{{cluster: id, forget: true}}}
	if ok, err := f.start(ctx, id, first.add); !ok {
		return err
	}
	first.release()
	synced()
	<-ctx.Done()
	return nil
}

// Forget drops everything that is known of a remote cluster.
func (in *Ingest) Forget(id string) { in.q.add(event{cluster: id, forget: true}) }

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
	case *corev1.Node:
		o.Spec, o.Status, o.Annotations = corev1.NodeSpec{}, corev1.NodeStatus{}, nil
	case *networking.VirtualService, *networking.DestinationRule, *networking.Gateway:
		m.SetAnnotations(nil)
	}
	return obj, nil
}
