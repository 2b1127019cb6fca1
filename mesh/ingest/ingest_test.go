package ingest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	istiofake "istio.io/client-go/pkg/clientset/versioned/fake"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/meshproof/meshproof/mesh/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testMesh = model.Mesh{TrustDomain: "td", DomainSuffix: "cluster.local", RootNamespace: "istio-system"}

func rule(name string) *networking.DestinationRule {
	return &networking.DestinationRule{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Generation: 1}, Spec: networkingv1alpha3.DestinationRule{Host: "a"}}
}

func slice(name string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "a"}}}
}

// TestDebounce sends events at given times, in milliseconds, and checks when snapshots come of them.
func TestDebounce(t *testing.T) {
	type at struct {
		ms  int
		obj any
	}
	burst := func(every, until int) []at {
		var out []at
		for ms := 0; ms <= until; ms += every {
			out = append(out, at{ms, rule(fmt.Sprint(ms))})
		}
		return out
	}
	for _, tt := range []struct {
		name string
		in   []at
		want []int // when, in milliseconds after the first, which comes at once
	}{
		{"nothing", nil, nil},
		{"one rule waits for quiet", []at{{100, rule("a")}}, []int{110}},
		{"two rules together", []at{{100, rule("a")}, {106, rule("b")}}, []int{116}},
		{"two rules apart", []at{{100, rule("a")}, {120, rule("b")}}, []int{110, 130}},
		{"endpoints do not wait for stragglers", []at{{100, slice("a")}, {101, slice("b")}, {103, slice("c")}}, []int{102, 105}},
		{"endpoints ride with a rule", []at{{100, rule("a")}, {101, slice("b")}}, []int{110}},
		{"a rule holds endpoints for its own quiet time", []at{{100, slice("b")}, {101, rule("a")}}, []int{111}},
		{"the limit ends a burst", burst(5, 120), []int{100, 130}},
		{"an object that says nothing new", []at{{100, rule("a")}, {150, rule("a")}}, []int{110}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				q := newQueue()
				start := time.Now()
				var got []int
				done := make(chan error)
				go func() {
					done <- gather(ctx, Options{Mesh: testMesh, Quiet: 10 * time.Millisecond, Max: 100 * time.Millisecond, Endpoints: 2 * time.Millisecond}, q,
						func(*model.Snapshot) { got = append(got, int(time.Since(start).Milliseconds())) })
				}()
				synctest.Wait()
				for _, e := range tt.in {
					time.Sleep(time.Duration(e.ms)*time.Millisecond - time.Since(start))
					q.add(event{obj: e.obj})
					synctest.Wait()
				}
				time.Sleep(10 * time.Second)
				cancel()
				<-done
				if len(got) == 0 || got[0] != 0 {
					t.Fatalf("snapshots at %v; the first must come at once", got)
				}
				if fmt.Sprint(got[1:]) != fmt.Sprint(tt.want) && len(got[1:])+len(tt.want) > 0 {
					t.Errorf("snapshots at %v ms, want %v", got[1:], tt.want)
				}
			})
		})
	}
}

// A remote cluster comes at one stroke, stays when nobody follows it any more, is replaced by what is there when somebody does
// again, and goes when it is forgotten.
func TestFollow(t *testing.T) {
	clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, false)
	svc := func(name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Spec: corev1.ServiceSpec{ClusterIP: "10.97.0.1"}}
	}
	settled := make(chan struct{})
	in := New(Options{Kube: fake.NewClientset(svc("own")), Istio: istiofake.NewSimpleClientset(), Mesh: testMesh, Settled: settled})
	ctx, cancel := context.WithCancel(t.Context())
	snaps := make(chan *model.Snapshot, 100)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := in.Run(ctx, func(s *model.Snapshot) { snaps <- s }); err != nil {
			t.Error(err)
		}
	})
	follow := func(objs ...runtime.Object) (end func()) {
		fctx, stop := context.WithCancel(ctx)
		synced, done := make(chan struct{}), make(chan error, 1)
		kube := fake.NewClientset(objs...)
		go func() { done <- in.Follow(fctx, "remote", kube, func() { close(synced) }) }()
		<-synced
		return func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	next := func() string {
		s := <-snaps
		var names []string
		for _, svc := range s.Services {
			names = append(names, svc.Name)
		}
		return strings.Join(names, " ")
	}
	end := follow(svc("a"), svc("b"))
	select {
	case s := <-snaps:
		t.Fatalf("a snapshot with %d services before everything has settled", len(s.Services))
	default:
	}
	close(settled)
	if got := next(); got != "a b own" {
		t.Errorf("first snapshot has %q", got)
	}
	end()
	end = follow(svc("b"), svc("c"))
	if got := next(); got != "b c own" {
		t.Errorf("after the cluster was followed again: %q", got)
	}
	end()
	in.Forget("remote")
	if got := next(); got != "own" {
		t.Errorf("after the cluster was forgotten: %q", got)
	}
}

func TestRun(t *testing.T) {
	// Istio's fake client does not speak watch-list, and does not say so either.
	clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, false)
	kube := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "ns"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
	istio := istiofake.NewSimpleClientset(rule("r"))
	ctx, cancel := context.WithCancel(t.Context())
	snaps := make(chan *model.Snapshot, 100)
	done := make(chan error, 1)
	go func() {
		done <- New(Options{Kube: kube, Istio: istio, Mesh: testMesh}).Run(ctx, func(s *model.Snapshot) { snaps <- s })
	}()
	next := func(what string, ok func(*model.Snapshot) bool) {
		t.Helper()
		budget := time.NewTimer(10 * time.Second)
		defer budget.Stop()
		for {
			select {
			case s := <-snaps:
				if ok(s) {
					return
				}
			case <-budget.C:
				t.Fatalf("no snapshot with %s", what)
			}
		}
	}
	next("what was there before", func(s *model.Snapshot) bool { return len(s.Services) == 1 && len(s.DestinationRules) == 1 })
	if err := istio.NetworkingV1().DestinationRules("ns").Delete(ctx, "r", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	next("the rule gone", func(s *model.Snapshot) bool { return len(s.DestinationRules) == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
