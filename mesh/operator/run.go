package operator

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/meshproof/meshproof/mesh/install"
)

// Config of an operator. Cluster, Revision and Tag are required.
type Config struct {
	Cluster  *rest.Config
	Revision string // of the IstioOperator objects that it carries out; others are left to their own operators
	Hub, Tag string // of the images, where an object names none
	Log      *slog.Logger
	// Resync is how often everything is looked at although nothing changed: what people removed by hand comes back then.
	Resync time.Duration
	// Ready is called once, when the objects have been read; may be nil.
	Ready func()
}

const (
	installBudget = 3 * time.Minute
	removeBudget  = 90 * time.Second
)

// Run carries out IstioOperator objects until ctx ends.
func Run(ctx context.Context, c Config) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Resync == 0 {
		c.Resync = time.Minute
	}
	dyn, err := dynamic.NewForConfig(c.Cluster)
	if err != nil {
		return fmt.Errorf("API client: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &reconciler{Config: c, objects: dyn.Resource(install.OperatorResource), steps: bundled{c.Cluster}}
	informers := dynamicinformer.NewDynamicSharedInformerFactory(dyn, c.Resync)
	informer := informers.ForResource(install.OperatorResource).Informer()
	q := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](time.Second, time.Minute))
	add := func(obj any) {
		if u, ok := obj.(*unstructured.Unstructured); ok {
			r.flight.seen(u)
		}
		if key, err := cache.MetaNamespaceKeyFunc(obj); err == nil {
			q.Add(key)
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}); err != nil {
		return fmt.Errorf("watch IstioOperators: %w", err)
	}
	informers.Start(ctx.Done())
	var wg sync.WaitGroup
	defer func() {
		cancel()
		q.ShutDown()
		wg.Wait()
		informers.Shutdown()
	}()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil
	}
	if c.Ready != nil {
		c.Ready()
	}
	c.Log.Info("watching IstioOperators", "revision", c.Revision)
	wg.Go(func() {
		for {
			key, stop := q.Get()
			if stop {
				return
			}
			if err := r.handle(ctx, key); err != nil && ctx.Err() == nil {
				c.Log.Warn("not carried out", "object", key, "error", err)
				q.AddRateLimited(key)
			} else {
				q.Forget(key)
			}
			q.Done(key)
		}
	})
	<-ctx.Done()
	return nil
}

// handle reads an object afresh and carries it out. An informer's copy may be older than our own last change.
func (r *reconciler) handle(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	u, err := r.get(ctx, namespace, name)
	if apierrors.IsNotFound(err) {
		r.flight.gone(key)
		return nil
	}
	if err != nil {
		return err
	}
	if revisionOf(u) != r.Revision {
		return nil
	}
	if u.GetDeletionTimestamp() != nil {
		return r.remove(ctx, u)
	}
	return r.reconcile(ctx, u)
}

func revisionOf(u *unstructured.Unstructured) string {
	if rev, _, _ := unstructured.NestedString(u.Object, "spec", "revision"); rev != "" {
		return rev
	}
	return "default"
}

// bundled carries out by mesh/install.
type bundled struct{ cluster *rest.Config }

func (b bundled) install(ctx context.Context, o install.Options) error {
	return install.Bundled{}.Install(ctx, b.cluster, o)
}

func (b bundled) remove(ctx context.Context, o install.Owner) error {
	return install.RemoveOwned(ctx, b.cluster, o)
}
