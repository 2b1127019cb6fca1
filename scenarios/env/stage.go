package env

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// stage is what stands in a lab for one scenario alone.
type stage struct {
	name string

	mu         sync.Mutex
	namespaces map[string]bool
}

// leaving are the namespaces that were struck and may still be there.
type leaving struct {
	mu         sync.Mutex
	namespaces []string
}

// strikeBudget bounds how long the namespaces of a scenario may take to go.
const strikeBudget = 60 * time.Second

// Stage returns the lab as one scenario sees it: the named apps stand in namespaces of their own in the first cluster, and
// whatever namespace the scenario makes is its own too. Strike removes them all. What was struck before is gone when Stage returns.
// When it fails, the Env is returned beside the error all the same, so that it can be struck.
func (e *Env) Stage(ctx context.Context, name string, apps []string, progress clusters.Progress) (*Env, error) {
	if e.leaving == nil {
		e.leaving = &leaving{}
	}
	staged := *e
	staged.stage = &stage{name: name, namespaces: map[string]bool{}}
	if progress == nil {
		progress = func(clusters.Event) {}
	}
	list, err := workload.Named(apps...)
	if err != nil {
		return &staged, err
	}
	if len(list) == 0 {
		return &staged, e.Struck(ctx)
	}
	for i := range list {
		list[i].Namespace = staged.Namespace(list[i].Name)
		staged.stage.namespaces[list[i].Namespace] = true
	}
	if err := staged.deploy(ctx, list, progress); err != nil {
		return &staged, err
	}
	return &staged, e.Struck(ctx)
}

// Namespace is where an app, or whatever else a scenario calls by that name, stands: for a staged Env a namespace of the
// scenario's own, which is there if the app was staged or MakeNamespace was called.
func (e *Env) Namespace(name string) string {
	if e.stage == nil {
		if apps, err := workload.Named(name); err == nil {
			return apps[0].Namespace
		}
		return name
	}
	return e.stage.name + "-" + name
}

// MakeNamespace makes Namespace(name) in every cluster, with these labels, and returns what it is called. Strike removes it.
func (e *Env) MakeNamespace(ctx context.Context, name string, labels map[string]string) (string, error) {
	ns := e.Namespace(name)
	if e.stage != nil {
		e.stage.mu.Lock()
		e.stage.namespaces[ns] = true
		e.stage.mu.Unlock()
	}
	for _, s := range e.Sites {
		if err := s.Client.Namespace(ctx, ns, labels); err != nil {
			return ns, err
		}
	}
	return ns, nil
}

// Namespaces lists the namespaces of the scenario's own, sorted.
func (e *Env) Namespaces() []string {
	if e.stage == nil {
		return nil
	}
	e.stage.mu.Lock()
	defer e.stage.mu.Unlock()
	return slices.Sorted(maps.Keys(e.stage.namespaces))
}

// Strike begins to remove the namespaces of the scenario with everything in them. Pods get a second to end: nobody looks any more.
// The rest takes some seconds, in which other things can be made; Struck waits for it.
func (e *Env) Strike(ctx context.Context) error {
	namespaces := e.Namespaces()
	if len(namespaces) == 0 {
		return nil
	}
	e.leaving.mu.Lock()
	e.leaving.namespaces = append(e.leaving.namespaces, namespaces...)
	e.leaving.mu.Unlock()
	var errs []error
	second := int64(1)
	for _, s := range e.Sites {
		for _, ns := range namespaces {
			err := s.Client.Typed.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				continue
			}
			if err == nil {
				err = s.Client.Typed.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &second}, metav1.ListOptions{})
			}
			if err != nil && !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("remove namespace %s: %w", ns, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Struck waits until every namespace that was struck is gone, and the proxies that stay know it.
func (e *Env) Struck(ctx context.Context) error {
	if e.leaving == nil {
		return nil
	}
	e.leaving.mu.Lock()
	defer e.leaving.mu.Unlock()
	if len(e.leaving.namespaces) == 0 {
		return nil
	}
	_, err := expect.Converge(ctx, expect.Budget{Within: strikeBudget}, func(ctx context.Context) (struct{}, error) {
		for _, s := range e.Sites {
			for _, ns := range e.leaving.namespaces {
				_, err := s.Client.Typed.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
				if err == nil {
					return struct{}{}, fmt.Errorf("namespace %s of cluster %s is still there", ns, s.Cluster.Name())
				}
				if !apierrors.IsNotFound(err) {
					return struct{}{}, fmt.Errorf("namespace %s: %w", ns, err)
				}
			}
		}
		return struct{}{}, nil
	})
	if err != nil {
		return err
	}
	e.leaving.namespaces = nil
	_, err = e.Synced(ctx)
	return err
}
