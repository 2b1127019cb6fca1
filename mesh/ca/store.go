package ca

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Names of the objects that hold a CA, as Istio has them.
const (
	PluggedSecret    = "cacerts"         // brought by people
	SelfSignedSecret = "istio-ca-secret" // made here
	RootConfigMap    = "istio-ca-root-cert"
	RootKey          = "root-cert.pem"
)

// Load returns the CA of a mesh: the one that people brought if there is one, else the self-signed one, which is made and
// kept the first time. Of several control planes that start at once, one makes it and all use that one.
func Load(ctx context.Context, kube kubernetes.Interface, namespace, trustDomain string) (*CA, error) {
	secrets := kube.CoreV1().Secrets(namespace)
	for {
		for _, name := range []string{PluggedSecret, SelfSignedSecret} {
			s, err := secrets.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read secret %s/%s: %w", namespace, name, err)
			}
			c, err := New(filesOf(s), time.Now)
			if err != nil {
				return nil, fmt.Errorf("secret %s/%s: %w", namespace, name, err)
			}
			return c, nil
		}
		f, err := NewSelfSigned(trustDomain, time.Now())
		if err != nil {
			return nil, err
		}
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: SelfSignedSecret, Namespace: namespace},
			Type:       "istio.io/ca-root",
			Data:       map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, RootKey: f.Root},
		}, metav1.CreateOptions{})
		if err == nil {
			return New(f, time.Now)
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("keep CA in secret %s/%s: %w", namespace, SelfSignedSecret, err)
		}
	}
}

func filesOf(s *corev1.Secret) Files {
	f := Files{Cert: s.Data["ca-cert.pem"], Key: s.Data["ca-key.pem"], Root: s.Data[RootKey], Chain: s.Data["cert-chain.pem"]}
	if len(f.Root) == 0 {
		f.Root = f.Cert
	}
	return f
}

// DistributeRoots keeps the roots in a ConfigMap of every namespace, where proxies find them, until ctx ends.
func DistributeRoots(ctx context.Context, kube kubernetes.Interface, c *CA, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	all := informers.NewSharedInformerFactory(kube, 0)
	named := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", RootConfigMap).String()
	}))
	namespaces := all.Core().V1().Namespaces()
	maps := named.Core().V1().ConfigMaps()
	add := func(get func(metav1.Object) string) cache.ResourceEventHandlerFuncs {
		f := func(obj any) {
			if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = d.Obj
			}
			if o, ok := obj.(metav1.Object); ok {
				q.Add(get(o))
			}
		}
		return cache.ResourceEventHandlerFuncs{AddFunc: f, UpdateFunc: func(_, o any) { f(o) }, DeleteFunc: f}
	}
	if _, err := namespaces.Informer().AddEventHandler(add(metav1.Object.GetName)); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	if _, err := maps.Informer().AddEventHandler(add(metav1.Object.GetNamespace)); err != nil {
		return fmt.Errorf("watch configmaps: %w", err)
	}
	all.Start(ctx.Done())
	named.Start(ctx.Done())
	var wg sync.WaitGroup
	defer func() {
		cancel()
		q.ShutDown()
		wg.Wait()
		all.Shutdown()
		named.Shutdown()
	}()
	if !cache.WaitForCacheSync(ctx.Done(), namespaces.Informer().HasSynced, maps.Informer().HasSynced) {
		return nil
	}
	wg.Go(func() {
		for {
			ns, stop := q.Get()
			if stop {
				return
			}
			if err := keepRoots(ctx, kube, c, ns, func() (*corev1.Namespace, error) { return namespaces.Lister().Get(ns) },
				func() (*corev1.ConfigMap, error) { return maps.Lister().ConfigMaps(ns).Get(RootConfigMap) }); err != nil {
				if ctx.Err() == nil {
					log.Warn("distribute roots", "namespace", ns, "error", err)
				}
				q.AddRateLimited(ns)
			} else {
				q.Forget(ns)
			}
			q.Done(ns)
		}
	})
	<-ctx.Done()
	return nil
}

func keepRoots(ctx context.Context, kube kubernetes.Interface, c *CA, ns string,
	namespace func() (*corev1.Namespace, error), current func() (*corev1.ConfigMap, error),
) error {
	n, err := namespace()
	if apierrors.IsNotFound(err) || err == nil && n.DeletionTimestamp != nil {
		return nil
	}
	want := map[string]string{RootKey: string(c.Roots().PEM())}
	have, err := current()
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: RootConfigMap, Namespace: ns, Labels: map[string]string{"istio.io/config": "true"}},
		Data:       want,
	}
	switch {
	case apierrors.IsNotFound(err):
		_, err = kube.CoreV1().ConfigMaps(ns).Create(ctx, cm, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil // somebody was quicker, or the namespace goes
		}
		return err
	case err != nil:
		return err
	case have.Data[RootKey] == want[RootKey]:
		return nil
	}
	have = have.DeepCopy()
	if have.Data == nil {
		have.Data = map[string]string{}
	}
	have.Data[RootKey] = want[RootKey]
	_, err = kube.CoreV1().ConfigMaps(ns).Update(ctx, have, metav1.UpdateOptions{})
	return err
}
