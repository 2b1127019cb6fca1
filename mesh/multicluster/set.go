package multicluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/meshproof/meshproof/mesh/status"
)

// Cluster is another cluster of the mesh.
type Cluster struct {
	ID   string
	Kube kubernetes.Interface
}

// Options of a Set. All are required.
type Options struct {
	Kube      kubernetes.Interface // of the control plane's own cluster
	Namespace string               // of the Secrets
	Own       string               // ID of the own cluster, which is never remote
	UserAgent string
	Log       *slog.Logger
	// Serve does what there is to do for one cluster until ctx ends, and calls synced once when it has read it. It is called anew
	// when the way to the cluster was lost and found again: connections of before may hang for minutes.
	Serve func(ctx context.Context, c Cluster, synced func()) error
	// Gone hears that a cluster is no part of the mesh any more: its Secret is gone. Serve has ended.
	Gone func(id string)
}

// Set is the remote clusters of a mesh. It is safe for concurrent use.
type Set struct {
	opts            Options
	settled         chan struct{}
	once            sync.Once
	every, patience time.Duration // that clusters are probed; that the start waits

	mu      sync.Mutex
	members map[string]*member // by cluster ID
	waiting map[string]bool    // of those that were there at the start
}

// New returns a Set that holds nothing until Run.
func New(opts Options) *Set {
	return &Set{opts: opts, settled: make(chan struct{}), every: probeEvery, patience: settleTime, members: map[string]*member{}}
}

// settleTime bounds how long the start of a control plane waits for clusters that it cannot reach.
const settleTime = 5 * time.Second

// Settled is closed when every cluster that had a Secret at the start was read once, or five seconds have passed. What is built
// before that lacks their endpoints.
func (s *Set) Settled() <-chan struct{} { return s.settled }

// Kube returns the client of a remote cluster.
func (s *Set) Kube(id string) (kubernetes.Interface, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.members[id]
	if m == nil {
		return nil, false
	}
	return m.kube, true
}

// Run follows the Secrets until ctx ends, and returns when all it started has ended.
func (s *Set) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	f := informers.NewSharedInformerFactoryWithOptions(s.opts.Kube, 0, informers.WithNamespace(s.opts.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = SecretLabel + "=true" }))
	secrets := f.Core().V1().Secrets()
	changed := make(chan struct{}, 1)
	note := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	reg, err := secrets.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: note, UpdateFunc: func(_, o any) { note(o) }, DeleteFunc: note})
	if err != nil {
		cancel()
		return fmt.Errorf("watch remote secrets: %w", err)
	}
	f.Start(ctx.Done())
	defer func() {
		cancel()
		f.Shutdown()
		s.end()
	}()
	if !cache.WaitForCacheSync(ctx.Done(), reg.HasSynced) {
		return nil
	}
	first := time.NewTimer(s.patience)
	defer first.Stop()
	for {
		list, err := secrets.Lister().List(everything)
		if err != nil {
			return fmt.Errorf("list remote secrets: %w", err)
		}
		s.apply(ctx, list)
		select {
		case <-ctx.Done():
			return nil
		case <-first.C:
			s.settle("")
		case <-changed:
		}
	}
}

// wanted is a cluster as a Secret describes it.
type wanted struct {
	secret     string
	kubeconfig []byte
}

// read gathers the clusters of the Secrets. Of two Secrets for one cluster the first by name counts.
func (s *Set) read(list []*corev1.Secret) map[string]wanted {
	list = slices.SortedFunc(slices.Values(list), func(a, b *corev1.Secret) int { return strings.Compare(a.Name, b.Name) })
	out := map[string]wanted{}
	for _, secret := range list {
		for id, data := range secret.Data {
			if id == s.opts.Own {
				continue
			}
			if other, ok := out[id]; ok {
				s.opts.Log.Warn("two remote secrets name one cluster", "cluster", id, "secret", secret.Name, "inForce", other.secret)
				continue
			}
			out[id] = wanted{secret.Name, data}
		}
	}
	return out
}

// apply ends members that are not wanted or changed, and starts those that are new.
func (s *Set) apply(ctx context.Context, list []*corev1.Secret) {
	want := s.read(list)
	s.mu.Lock()
	var ended []*member
	for id, m := range s.members {
		if w, ok := want[id]; !ok || !bytes.Equal(w.kubeconfig, m.kubeconfig) {
			m.stop()
			ended = append(ended, m)
			delete(s.members, id)
		}
	}
	s.mu.Unlock()
	for _, m := range ended {
		<-m.done
		if _, ok := want[m.id]; !ok {
			s.opts.Log.Info("cluster removed", "cluster", m.id, "secret", m.secret)
			s.opts.Gone(m.id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if _, have := s.Kube(id); !have {
			s.start(ctx, id, want[id])
		}
	}
	s.begin()
}

func (s *Set) start(ctx context.Context, id string, w wanted) {
	m, err := newMember(id, w, s.opts, s.every)
	if err != nil {
		s.opts.Log.Error("remote secret refused", "secret", w.secret, "cluster", id, "error", err)
		return
	}
	ctx, m.stop = context.WithCancel(ctx)
	s.mu.Lock()
	s.members[id] = m
	s.mu.Unlock()
	s.opts.Log.Info("cluster added", "cluster", id, "secret", w.secret)
	go func() {
		defer close(m.done)
		m.run(ctx, s.opts, func() { s.settle(id) })
	}()
}

// end waits for all members, whose context is over.
func (s *Set) end() {
	s.mu.Lock()
	members := slices.Collect(maps.Values(s.members))
	s.mu.Unlock()
	for _, m := range members {
		m.stop()
		<-m.done
	}
}

// begin notes, once, whom the start waits for.
func (s *Set) begin() {
	s.mu.Lock()
	if s.waiting == nil {
		s.waiting = map[string]bool{}
		for id, m := range s.members {
			if !m.status().Synced {
				s.waiting[id] = true
			}
		}
	}
	done := len(s.waiting) == 0
	s.mu.Unlock()
	if done {
		s.once.Do(func() { close(s.settled) })
	}
}

// settle notes that a cluster has been read; "" gives up on those that have not.
func (s *Set) settle(id string) {
	s.mu.Lock()
	if s.waiting == nil {
		s.mu.Unlock()
		return // begin will see that it is synced
	}
	delete(s.waiting, id)
	if id == "" {
		for late := range s.waiting {
			s.opts.Log.Warn("starting without a cluster that has not been read yet", "cluster", late)
		}
		clear(s.waiting)
	}
	done := len(s.waiting) == 0
	s.mu.Unlock()
	if done {
		s.once.Do(func() { close(s.settled) })
	}
}

// Status says how each remote cluster is, by ID.
func (s *Set) Status() []status.Cluster {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []status.Cluster{}
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		out = append(out, s.members[id].status())
	}
	return out
}

func clientFor(kubeconfig []byte, userAgent string, change func(*rest.Config)) (kubernetes.Interface, error) {
	cfg, err := restConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = userAgent
	cfg.QPS, cfg.Burst = 200, 400
	change(cfg)
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, errors.Join(errors.New("kubernetes client"), err)
	}
	return kube, nil
}
