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

var _ = admissionv1.GroupName

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
