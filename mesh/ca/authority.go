package ca

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/meshproof/meshproof/mesh/identity"
)

// Authority is the CA that is in force, which people may replace while the mesh runs. It is safe for concurrent use.
type Authority struct {
	mu       sync.Mutex
	ca       *CA
	replaced chan struct{} // closed when ca is
}

// NewAuthority returns an Authority with c in force.
func NewAuthority(c *CA) *Authority { return &Authority{ca: c, replaced: make(chan struct{})} }

// CA is the one in force.
func (a *Authority) CA() *CA {
	c, _ := a.current()
	return c
}

func (a *Authority) current() (*CA, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ca, a.replaced
}

// Replace puts another CA in force.
func (a *Authority) Replace(c *CA) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ca = c
	close(a.replaced)
	a.replaced = make(chan struct{})
}

// Sign signs with the CA in force.
func (a *Authority) Sign(csrPEM []byte, id identity.ID, ttl time.Duration) ([]string, error) {
	return a.CA().Sign(csrPEM, id, ttl)
}

// Each calls f with the CA in force, and again with each that replaces it: the context of the call before has ended, and the call
// has returned, by then. It returns when ctx ends, or with the first error.
func (a *Authority) Each(ctx context.Context, f func(context.Context, *CA) error) error {
	for ctx.Err() == nil {
		c, replaced := a.current()
		fctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- f(fctx, c) }()
		select {
		case <-replaced:
			cancel()
			_ = <-done // whatever it says: it is over
		case <-ctx.Done():
			cancel()
			_ = <-done
			return nil
		case err := <-done:
			cancel()
			if err != nil || ctx.Err() != nil {
				return err
			}
			select { // there is nothing more to do with this one
			case <-replaced:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// Follow puts the CA that people brought in force each time its Secret changes, until ctx ends. One that is not valid is refused,
// and the one before stays; so does the last one when the Secret is deleted.
func (a *Authority) Follow(ctx context.Context, kube kubernetes.Interface, namespace string, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	f := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", PluggedSecret).String()
		}))
	take := func(obj any) {
		s, ok := obj.(*corev1.Secret)
		if !ok || s.Name != PluggedSecret {
			return
		}
		next, err := New(filesOf(s), time.Now)
		if err != nil {
			log.Error("the CA of a Secret is refused; the one before stays in force", "secret", namespace+"/"+PluggedSecret, "error", err)
			return
		}
		if old := a.CA(); old.cert.Equal(next.cert) && bytes.Equal(old.chain, next.chain) && bytes.Equal(old.roots.PEM(), next.roots.PEM()) {
			return
		}
		a.Replace(next)
		log.Info("another CA is in force", "secret", namespace+"/"+PluggedSecret, "expires", next.Expires())
	}
	if _, err := f.Core().V1().Secrets().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: take, UpdateFunc: func(_, o any) { take(o) },
		DeleteFunc: func(any) {
			log.Warn("the Secret of the CA in force is gone; the CA stays until a restart", "secret", namespace+"/"+PluggedSecret)
		},
	}); err != nil {
		cancel()
		return fmt.Errorf("watch secret %s/%s: %w", namespace, PluggedSecret, err)
	}
	f.Start(ctx.Done())
	defer func() {
		cancel()
		f.Shutdown()
	}()
	<-ctx.Done()
	return nil
}
