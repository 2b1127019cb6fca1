package operator

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"

	"github.com/meshproof/meshproof/mesh/install"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted notes what it is asked to do.
type scripted struct {
	asked   []install.Options
	removed []install.Owner
	err     error
}

func (s *scripted) install(_ context.Context, o install.Options) error {
	s.asked = append(s.asked, o)
	o.Progress("base", "")
	if s.err == nil {
		o.Progress("istiod", "")
	}
	return s.err
}

func (s *scripted) remove(_ context.Context, o install.Owner) error {
	s.removed = append(s.removed, o)
	return s.err
}

func object(generation int64, spec map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": APIVersion, "kind": Kind, "spec": spec}}
	u.SetName("cp")
	u.SetNamespace("istio-system")
	u.SetGeneration(generation)
	return u
}

func newReconciler(t *testing.T, s steps, u *unstructured.Unstructured) *reconciler {
	t.Helper()
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{install.OperatorResource: "IstioOperatorList"}, u)
	return &reconciler{
		Config:  Config{Revision: "1-20-1", Tag: "0.1.0", Hub: "meshproof.dev", Log: slog.New(slog.DiscardHandler)},
		objects: client.Resource(install.OperatorResource), steps: s,
	}
}

func (r *reconciler) now(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	u, err := r.get(t.Context(), "istio-system", "cp")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestReconcile(t *testing.T) {
	s := &scripted{}
	r := newReconciler(t, s, object(1, map[string]any{"revision": "1-20-1", "meshConfig": map[string]any{"enableTracing": true}}))
	if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
		t.Fatal(err)
	}
	u := r.now(t)
	got := statusOf(u)
	if got.Status != Healthy || got.ObservedGeneration != 1 || got.ComponentStatus["Pilot"].Status != Healthy || got.ComponentStatus["IngressGateways"].Version != "0.1.0" {
		t.Errorf("status %+v", got)
	}
	if !strings.Contains(got.Message, "spec.meshConfig.enableTracing: has no effect") {
		t.Errorf("message %q does not name what has no effect", got.Message)
	}
	if !slices.Equal(u.GetFinalizers(), []string{install.Finalizer}) {
		t.Errorf("finalizers %v", u.GetFinalizers())
	}
	if len(s.asked) != 1 || s.asked[0].KeepGateways || s.asked[0].Tag != "0.1.0" {
		t.Fatalf("asked for %+v", s.asked)
	}
	// Looked at again, it mends, and leaves gateways to whoever has them by now.
	if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
		t.Fatal(err)
	}
	if len(s.asked) != 2 || !s.asked[1].KeepGateways {
		t.Errorf("asked for %+v", s.asked)
	}
	// A new generation takes the gateways again, and what the profile has no more leaves the status.
	u = r.now(t)
	u.SetGeneration(2)
	_ = unstructured.SetNestedField(u.Object, "minimal", "spec", "profile")
	if _, err := r.objects.Namespace("istio-system").Update(t.Context(), u, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
		t.Fatal(err)
	}
	got = statusOf(r.now(t))
	if _, there := got.ComponentStatus["IngressGateways"]; there || got.ObservedGeneration != 2 || s.asked[2].KeepGateways {
		t.Errorf("status %+v, asked for %+v", got, s.asked[2])
	}
}

func TestReconcileFails(t *testing.T) {
	s := &scripted{err: errors.New("image not found")}
	r := newReconciler(t, s, object(1, map[string]any{"revision": "1-20-1"}))
	if err := r.handle(t.Context(), "istio-system/cp"); err == nil {
		t.Error("no error, so nobody tries again")
	}
	got := statusOf(r.now(t))
	if got.Status != Failed || got.ComponentStatus["Base"].Status != Healthy || got.ComponentStatus["Pilot"].Error != "image not found" {
		t.Errorf("status %+v", got)
	}
	s.err = nil
	if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
		t.Fatal(err)
	}
	if got = statusOf(r.now(t)); got.Status != Healthy || got.Message != "" || got.ComponentStatus["Pilot"].Error != "" {
		t.Errorf("status after the cure %+v", got)
	}
}

// stuck installs what never comes to run.
type stuck struct {
	scripted
	begun chan struct{}
}

func (s *stuck) install(ctx context.Context, _ install.Options) error {
	close(s.begun)
	<-ctx.Done()
	return context.Cause(ctx)
}

// What cannot come to an end does not hold back its own correction or deletion, whenever the API server tells of that.
func TestNewerGenerationEndsAnInstallation(t *testing.T) {
	for name, early := range map[string]bool{"while it is carried out": false, "before": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stuck{begun: make(chan struct{})}
				spec := map[string]any{"revision": "1-20-1"}
				r := newReconciler(t, s, object(1, spec))
				r.flight.seen(object(1, spec))
				if early {
					r.flight.seen(object(2, spec))
				}
				start := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
						t.Errorf("tried again although nobody asks for it: %v", err)
					}
				})
				<-s.begun
				other := object(7, spec)
				other.SetName("other")
				r.flight.seen(other)
				r.flight.seen(object(1, spec)) // its own status was written
				if !early {
					synctest.Wait()
					r.flight.seen(object(2, spec))
				}
				wg.Wait()
				if d := time.Since(start); d > 0 {
					t.Errorf("ended after %s", d)
				}
				if got := statusOf(r.now(t)); got.Status != Reconciling {
					t.Errorf("status %+v", got)
				}
			})
		})
	}
}

func TestReconcileRefuses(t *testing.T) {
	s := &scripted{}
	r := newReconciler(t, s, object(1, map[string]any{"revision": "1-20-1", "profile": "defualt"}))
	if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
		t.Errorf("another try would end alike: %v", err)
	}
	if got := statusOf(r.now(t)); got.Status != Failed || !strings.Contains(got.Message, `spec.profile: there is no profile "defualt"`) || len(s.asked) > 0 {
		t.Errorf("status %+v, asked for %+v", got, s.asked)
	}
}

func TestOtherRevisionsAreLeftAlone(t *testing.T) {
	s := &scripted{}
	r := newReconciler(t, s, object(1, map[string]any{"revision": "1-23-2"}))
	if err := r.handle(t.Context(), "istio-system/cp"); err != nil || len(s.asked) > 0 || len(r.now(t).GetFinalizers()) > 0 {
		t.Errorf("error %v, asked for %+v", err, s.asked)
	}
}

// Deletion ends whatever becomes of what is removed.
func TestRemove(t *testing.T) {
	for name, failure := range map[string]error{"gone": nil, "stuck": errors.New("webhook does not answer")} {
		t.Run(name, func(t *testing.T) {
			s := &scripted{err: failure}
			u := object(1, map[string]any{"revision": "1-20-1"})
			u.SetFinalizers([]string{"people.example/theirs", install.Finalizer})
			u.SetDeletionTimestamp(&metav1.Time{Time: metav1.Now().Time})
			r := newReconciler(t, s, u)
			if err := r.handle(t.Context(), "istio-system/cp"); err != nil {
				t.Fatal(err)
			}
			if want := (install.Owner{Namespace: "istio-system", Name: "cp"}); len(s.removed) != 1 || s.removed[0] != want {
				t.Errorf("removed %+v", s.removed)
			}
			now, err := r.get(t.Context(), "istio-system", "cp")
			if err == nil && !slices.Equal(now.GetFinalizers(), []string{"people.example/theirs"}) || err != nil && !apierrors.IsNotFound(err) {
				t.Errorf("finalizers %v, error %v", now.GetFinalizers(), err)
			}
		})
	}
}
