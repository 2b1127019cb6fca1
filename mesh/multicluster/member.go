package multicluster

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/connrotation"

	"github.com/meshproof/meshproof/mesh/status"
)

var everything = labels.Everything()

// member is one remote cluster while its Secret is there.
type member struct {
	id, secret string
	kubeconfig []byte
	kube       kubernetes.Interface
	hangUp     func() // closes every connection
	every      time.Duration
	stop       context.CancelFunc
	done       chan struct{}

	mu sync.Mutex
	st status.Cluster
}

func newMember(id string, w wanted, opts Options, every time.Duration) (*member, error) {
	dialer := connrotation.NewDialer((&net.Dialer{Timeout: dialTimeout, KeepAlive: 10 * time.Second}).DialContext)
	kube, err := clientFor(w.kubeconfig, opts.UserAgent, func(c *rest.Config) { c.Dial = dialer.DialContext })
	if err != nil {
		return nil, err
	}
	return &member{
		id: id, secret: w.secret, kubeconfig: w.kubeconfig, kube: kube, hangUp: dialer.CloseAll, every: every, done: make(chan struct{}),
		st: status.Cluster{Cluster: id, Secret: w.secret, Reachable: true, Since: time.Now()},
	}, nil
}

func (m *member) status() status.Cluster {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st
}

// run serves the cluster, and serves it anew each time that it can be reached again.
func (m *member) run(ctx context.Context, opts Options, synced func()) {
	defer m.hangUp()
	for ctx.Err() == nil {
		serving, end := context.WithCancel(ctx)
		served := make(chan error, 1)
		go func() {
			served <- opts.Serve(serving, Cluster{ID: m.id, Kube: m.kube}, func() {
				m.mu.Lock()
				first := !m.st.Synced
				m.st.Synced = true
				m.mu.Unlock()
				opts.Log.Info("cluster read", "cluster", m.id, "first", first)
				synced()
			})
		}()
		m.watch(serving, opts)
		end()
		if err := <-served; err != nil && ctx.Err() == nil {
			opts.Log.Error("cluster", "cluster", m.id, "error", err)
		}
	}
}

// watch probes the cluster until ctx ends or it can be reached again after it could not.
func (m *member) watch(ctx context.Context, opts Options) {
	t := time.NewTicker(m.every)
	defer t.Stop()
	for {
		err := m.probe(ctx)
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		was := m.st.Reachable
		m.st.Reachable, m.st.Error = err == nil, ""
		if err != nil {
			m.st.Error = err.Error()
		}
		if was != m.st.Reachable {
			m.st.Since = time.Now()
		}
		m.mu.Unlock()
		switch {
		case err != nil && was:
			opts.Log.Warn("cluster cannot be reached; what is known of it stays in force", "cluster", m.id, "error", err)
			m.hangUp()
		case err != nil:
			m.hangUp()
		case !was:
			opts.Log.Info("cluster can be reached again", "cluster", m.id)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (m *member) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return m.kube.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error()
}

// Controlled waits until the control plane of the cluster own is asked to look after the cluster of kube: the annotation of its
// root namespace names own, or any. It returns ctx's error if ctx ends first.
func Controlled(ctx context.Context, kube kubernetes.Interface, namespace, own string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan struct{}, 1)
	look := func(obj any) {
		ns, ok := obj.(*corev1.Namespace)
		if !ok {
			return
		}
		for id := range strings.SplitSeq(ns.Annotations[ControlledAnnotation], ",") {
			if slices.Contains([]string{"*", own}, strings.TrimSpace(id)) {
				select {
				case found <- struct{}{}:
				default:
				}
			}
		}
	}
	f := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", namespace).String()
	}))
	if _, err := f.Core().V1().Namespaces().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: look, UpdateFunc: func(_, o any) { look(o) },
	}); err != nil {
		return err
	}
	f.Start(ctx.Done())
	defer func() {
		cancel()
		f.Shutdown()
	}()
	select {
	case <-found:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
