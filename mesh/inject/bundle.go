package inject

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// WebhookApp is the label value that Istio's injector configurations carry as "app".
const WebhookApp = "sidecar-injector"

// KeepBundles writes the roots into the caBundle of every injector configuration of the revision, and again whenever
// somebody changes one, until ctx ends.
func KeepBundles(ctx context.Context, kube kubernetes.Interface, revision string, roots []byte, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.LabelSelector = "app=" + WebhookApp + "," + RevisionLabel + "=" + revision
	}))
	configs := f.Admissionregistration().V1().MutatingWebhookConfigurations()
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	add := func(obj any) {
		if o, ok := obj.(metav1.Object); ok {
			q.Add(o.GetName())
		}
	}
	if _, err := configs.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add, UpdateFunc: func(_, o any) { add(o) },
	}); err != nil {
		return fmt.Errorf("watch injector configurations: %w", err)
	}
	f.Start(ctx.Done())
	var wg sync.WaitGroup
	defer func() {
		cancel()
		q.ShutDown()
		wg.Wait()
		f.Shutdown()
	}()
	wg.Go(func() {
		for {
			name, stop := q.Get()
			if stop {
				return
			}
			c, err := configs.Lister().Get(name)
			if err == nil {
				err = keepBundle(ctx, kube, c, roots)
			}
			if err != nil && !apierrors.IsNotFound(err) {
				if ctx.Err() == nil && !apierrors.IsConflict(err) {
					log.Warn("keep caBundle", "configuration", name, "error", err)
				}
				q.AddRateLimited(name)
			} else {
				q.Forget(name)
			}
			q.Done(name)
		}
	})
	<-ctx.Done()
	return nil
}

func keepBundle(ctx context.Context, kube kubernetes.Interface, c *admissionregistrationv1.MutatingWebhookConfiguration, roots []byte) error {
	c = c.DeepCopy()
	changed := false
	for i := range c.Webhooks {
		if !bytes.Equal(c.Webhooks[i].ClientConfig.CABundle, roots) {
			c.Webhooks[i].ClientConfig.CABundle, changed = roots, true
		}
	}
	if !changed {
		return nil
	}
	_, err := kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(ctx, c, metav1.UpdateOptions{})
	return err
}
