package install

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic/fake"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// A remote cluster that its primary has not heard of is waited for as long as there is patience, and for ever where gateways need it.
func TestTakenIn(t *testing.T) {
	o := Options{Profile: "remote", ClusterID: "remote", RemotePilotAddress: "10.64.0.2"}.Default()
	hook := injector(o)
	for i := range hook.Webhooks {
		hook.Webhooks[i].ClientConfig.CABundle = []byte("root")
	}
	roots := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: rootCertMap}}
	bare := injector(o)
	for _, test := range []struct {
		name     string
		there    []runtime.Object
		patience time.Duration
		gateways []Gateway
		taken    bool
		failed   bool
		after    time.Duration
	}{
		{name: "taken in", there: []runtime.Object{hook, roots}, patience: 10 * time.Second, taken: true},
		{name: "not heard of", there: []runtime.Object{bare}, patience: 10 * time.Second, after: 10 * time.Second},
		{name: "no patience given", there: []runtime.Object{bare}, failed: true, taken: true, after: time.Minute},
		{name: "gateways", there: []runtime.Object{bare}, patience: 10 * time.Second, gateways: []Gateway{{}}, failed: true, taken: true, after: time.Minute},
		{name: "interrupted", there: []runtime.Object{bare}, patience: time.Hour, failed: true, after: time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &client{dyn: fake.NewSimpleDynamicClient(scheme.Scheme, test.there...)}
				o := o
				o.Patience, o.Gateways = test.patience, test.gateways
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				taken, err := c.takenIn(ctx, o)
				if taken != test.taken || (err != nil) != test.failed || time.Since(start) != test.after {
					t.Errorf("taken %v, error %v, after %s", taken, err, time.Since(start))
				}
			})
		})
	}
}

// Whoever sets a tag hears what is waited for, unless the control plane does its part at once.
func TestTagWaits(t *testing.T) {
	o := Options{Revision: "1-20-1"}.Default()
	bare, signed := injector(o), injector(o)
	for i := range signed.Webhooks {
		signed.Webhooks[i].ClientConfig.CABundle = []byte("root")
	}
	for _, test := range []struct {
		name   string
		hook   *admissionv1.MutatingWebhookConfiguration
		budget time.Duration
		said   int
		failed bool
		after  time.Duration
	}{
		{name: "at once", hook: signed, budget: time.Minute},
		{name: "no control plane", hook: bare, budget: time.Minute, said: 1, failed: true, after: time.Minute},
		{name: "interrupted", hook: bare, budget: time.Second, failed: true, after: time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &client{dyn: fake.NewSimpleDynamicClient(scheme.Scheme, test.hook)}
				o, said := o, 0
				o.Remark = func(string, string) { said++ }
				ctx, cancel := context.WithTimeout(t.Context(), test.budget)
				defer cancel()
				start := time.Now()
				err := c.taggedBy(ctx, o, test.hook.Name)
				if (err != nil) != test.failed || said != test.said || time.Since(start) != test.after {
					t.Errorf("error %v, %d remarks, after %s", err, said, time.Since(start))
				}
			})
		})
	}
}

// A network that people gave the mesh's namespace is not replaced in silence.
func TestRemarkNetwork(t *testing.T) {
	for _, test := range []struct {
		name           string
		label, network string
		said           int
	}{
		{name: "as people said", label: "network1", network: "network1"},
		{name: "none given", label: "network2"},
		{name: "none there", network: "network1"},
		{name: "another", label: "network2", network: "network1", said: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: map[string]string{networkLabel: test.label}}}
			said := 0
			o := Options{Network: test.network, Remark: func(string, string) { said++ }}.Default()
			for _, there := range [][]runtime.Object{nil, {ns}} { // at first there is no namespace
				if said != 0 {
					t.Errorf("%d remarks without a namespace", said)
				}
				c := &client{core: kubefake.NewClientset(there...).CoreV1()}
				if err := c.remarkNetwork(t.Context(), o); err != nil {
					t.Error(err)
				}
			}
			if said != test.said {
				t.Errorf("%d remarks, want %d", said, test.said)
			}
		})
	}
}

// Of a cluster that another's control plane serves, nobody here knows which proxies are connected.
func TestUsersOfARemoteCluster(t *testing.T) {
	o := Options{Profile: "remote", ClusterID: "remote", RemotePilotAddress: "10.64.0.2"}.Default()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "cart", Annotations: map[string]string{"sidecar.istio.io/status": "{}", revLabel: "default"},
	}}
	core := kubefake.NewClientset(pod).CoreV1()
	for want, there := range map[string][]runtime.Object{
		"cart.shop (made for it; the control plane of another cluster, at 10.64.0.2, does not say whether it is connected)": {remoteEndpoints(o)},
		"cart.shop (made for it, not connected now)": nil,
	} {
		c := &client{core: core, dyn: fake.NewSimpleDynamicClient(scheme.Scheme, there...)}
		got, err := c.users(t.Context(), o, true)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
}

func TestPrimary(t *testing.T) {
	o := Options{Profile: "remote", ClusterID: "remote", RemotePilotAddress: "10.64.0.2"}.Default()
	for want, list := range map[string]discoveryv1.EndpointSliceList{
		"10.64.0.2": {Items: []discoveryv1.EndpointSlice{*remoteEndpoints(o)}},
		"":          {Items: []discoveryv1.EndpointSlice{}},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/apis/discovery.k8s.io/v1/endpointslices" || r.URL.Query().Get("labelSelector") == "" {
				t.Errorf("asked for %s", r.URL)
			}
			list.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(list)
		}))
		got, err := Primary(t.Context(), &rest.Config{Host: server.URL})
		if err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		server.Close()
	}
}
