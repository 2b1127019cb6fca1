package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

var testConfig = Config{
	Image: "meshproof.dev/meshproxy:test", Revision: "default", DiscoveryAddress: "istiod.istio-system.svc:15012",
	ClusterID: "Kubernetes", MeshID: "cluster.local", TrustDomain: "cluster.local",
}

func readPod(t *testing.T, file string) *corev1.Pod {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(data, pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// TestGolden applies the patch, as the API server does, and compares the pod that comes of it.
func TestGolden(t *testing.T) {
	in, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(in) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range in {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".in.yaml"), func(t *testing.T) {
			pod := readPod(t, file)
			res, err := Patch(pod, "default", testConfig)
			var got []byte
			switch {
			case err != nil:
				got = []byte("error: " + err.Error() + "\n")
			case res.Patch == nil:
				got = []byte("none: " + res.Reason + "\n")
			default:
				got = apply(t, pod, res)
			}
			golden := strings.TrimSuffix(file, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func apply(t *testing.T, pod *corev1.Pod, res Result) []byte {
	t.Helper()
	before, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(res.Patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := patch.Apply(before)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(after, &corev1.Pod{}); err != nil {
		t.Fatal(err)
	}
	out, err := yaml.JSONToYAML(after)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range res.Warnings {
		out = append(out, "# warning: "+w+"\n"...)
	}
	return out
}

func TestPatchLeavesThePodAlone(t *testing.T) {
	pod := readPod(t, "testdata/deployment.in.yaml")
	before := pod.DeepCopy()
	if _, err := Patch(pod, "default", testConfig); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, pod); d != "" {
		t.Error(d)
	}
}

func TestWebhook(t *testing.T) {
	h := Handler(testConfig, slog.New(slog.DiscardHandler))
	post := func(body []byte) (*httptest.ResponseRecorder, admissionv1.AdmissionReview) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(body)))
		var r admissionv1.AdmissionReview
		if w.Code == http.StatusOK {
			if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
		}
		return w, r
	}
	review := func(pod any) []byte {
		raw, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		r := admissionv1.AdmissionReview{Request: &admissionv1.AdmissionRequest{UID: "u", Namespace: "default", Object: runtime.RawExtension{Raw: raw}}}
		r.APIVersion, r.Kind = "admission.k8s.io/v1", "AdmissionReview"
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	_, r := post(review(readPod(t, "testdata/deployment.in.yaml")))
	if !r.Response.Allowed || r.Response.UID != "u" || len(r.Response.Patch) == 0 || *r.Response.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Errorf("response is %+v", r.Response)
	}
	if r.APIVersion != "admission.k8s.io/v1" {
		t.Errorf("apiVersion is %q", r.APIVersion)
	}
	_, r = post(review(readPod(t, "testdata/bad-port.in.yaml")))
	if r.Response.Allowed || !strings.Contains(r.Response.Result.Message, "excludeOutboundPorts") {
		t.Errorf("response to a bad annotation is %+v", r.Response)
	}
	for _, body := range []string{"", "{}", "nonsense"} {
		if w, _ := post([]byte(body)); w.Code != http.StatusBadRequest {
			t.Errorf("%q: status %d", body, w.Code)
		}
	}
}

func TestConfigOfAnotherCluster(t *testing.T) {
	base := testConfig
	base.Network = "n1"
	for _, tt := range []struct{ path, cluster, network, err string }{
		{"/inject", "Kubernetes", "n1", ""},
		{"/inject/", "Kubernetes", "n1", ""},
		{"/inject/cluster/remote/net/n2", "remote", "n2", ""},
		{"/inject/cluster/remote", "remote", "", ""},
		{"/inject/cluster/remote/net", "", "", "has no value"},
		{"/inject/clutser/remote", "", "", "clutser"},
	} {
		got, err := base.at(tt.path)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %q", tt.path, err, tt.err)
			}
			continue
		}
		if err != nil || got.ClusterID != tt.cluster || got.Network != tt.network {
			t.Errorf("%s: %+v, %v", tt.path, got, err)
		}
	}
}
