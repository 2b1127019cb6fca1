package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/inject"
)

func TestBootstrapFromEnvironment(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "labels"), []byte("app=\"reviews\"\nversion=\"v1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "annotations"), []byte("prometheus.io/scrape=\"true\"\nprometheus.io/port=\"15020\"\nnote=\"a\\nb=c\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"POD_NAME": "reviews-v1-abc", "POD_NAMESPACE": "default", "INSTANCE_IP": "10.0.0.7", "SERVICE_ACCOUNT": "bookinfo", "TRUST_DOMAIN": "td",
		"ISTIO_META_WORKLOAD_NAME": "reviews-v1", "ISTIO_META_CLUSTER_ID": "c1", "PROXY_CONFIG": `{"discoveryAddress":"istiod.istio-system.svc:15012"}`,
	}
	var environ []string
	for k, v := range env {
		environ = append(environ, k+"="+v)
	}
	b, err := bootstrap("sidecar", options{podInfo: dir, token: "/t", roots: "/r"}, func(k string) string { return env[k] }, environ)
	if err != nil {
		t.Fatal(err)
	}
	if want := "sidecar~10.0.0.7~reviews-v1-abc.default~default.svc.cluster.local"; b.NodeID != want {
		t.Errorf("node id %q, want %q", b.NodeID, want)
	}
	if b.Workload.Principal != "spiffe://td/ns/default/sa/bookinfo" || b.Workload.Canonical != "reviews" || b.Workload.CanonicalRevision != "v1" {
		t.Errorf("workload %+v", b.Workload)
	}
	if b.Metadata["CLUSTER_ID"] != "c1" || b.Metadata["LABELS"].(map[string]any)["version"] != "v1" || b.Metadata["ANNOTATIONS"].(map[string]any)["note"] != "a\nb=c" {
		t.Errorf("metadata %v", b.Metadata)
	}
	if b.AppTarget != "" { // the pod's annotations are the injector's and name this proxy
		t.Errorf("scrapes itself: %s", b.AppTarget)
	}
	if b.Discovery.TokenFile != "/t" {
		t.Errorf("bootstrap %+v", b)
	}
}

func TestAppTarget(t *testing.T) {
	for said, want := range map[string]string{
		"":                                 "",
		`{"scrape":""}`:                    "",
		`{"port":"9090"}`:                  "",
		`{"scrape":"false","port":"9090"}`: "",
		`{"scrape":"true"}`:                "http://127.0.0.1:80/metrics",
		`{"scrape":"true","path":"/m","port":"9090"}`:      "http://127.0.0.1:9090/m",
		`{"scrape":"true","path":"m","port":"9090"}`:       "http://127.0.0.1:9090/m",
		`{"scrape":"true","path":"/m","port":"15020"}`:     "",
		`{"scrape":"true","path":"/stats","port":"15090"}`: "",
		`{"scrape":"true","port":"http"}`:                  "error: environment: ISTIO_PROMETHEUS_ANNOTATIONS: port",
		`scrape`:                                           "error: environment: ISTIO_PROMETHEUS_ANNOTATIONS",
	} {
		got, err := appTarget(said)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want && (err == nil || want == "" || !strings.HasPrefix(got, want)) {
			t.Errorf("%s: target %q, want %q", said, got, want)
		}
	}
}

// TestDefaultPodHasNoAppTarget goes the whole way: a pod without scrape annotations, as the injector leaves it.
func TestDefaultPodHasNoAppTarget(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		target      string
	}{
		"default":  {},
		"scraped":  {map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9080", "prometheus.io/path": "/m"}, "http://127.0.0.1:9080/m"},
		"unmerged": {map[string]string{"prometheus.io/scrape": "true", "prometheus.istio.io/merge-metrics": "false"}, ""},
		"unwanted": {map[string]string{"prometheus.io/scrape": "false"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := injected(t, c.annotations)
			env := map[string]string{"POD_NAME": "a", "POD_NAMESPACE": "default", "INSTANCE_IP": "10.0.0.7"}
			for _, e := range p.Spec.InitContainers[1].Env {
				if e.ValueFrom == nil {
					env[e.Name] = e.Value
				}
			}
			dir := t.TempDir()
			var info bytes.Buffer
			for k, v := range p.Annotations {
				fmt.Fprintf(&info, "%s=%q\n", k, v)
			}
			if err := os.WriteFile(filepath.Join(dir, "annotations"), info.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := bootstrap("sidecar", options{podInfo: dir}, func(k string) string { return env[k] }, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b.AppTarget != c.target {
				t.Errorf("target %q, want %q", b.AppTarget, c.target)
			}
		})
	}
}

func injected(t *testing.T, annotations map[string]string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: annotations}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
	res, err := inject.Patch(p, "default", inject.Config{Image: "meshproxy", Revision: "default", DiscoveryAddress: "istiod.istio-system.svc:15012"})
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(p)
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
	out := &corev1.Pod{}
	if err := json.Unmarshal(after, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBootstrapNamesWhatIsMissing(t *testing.T) {
	_, err := bootstrap("sidecar", options{}, func(string) string { return "" }, nil)
	if err == nil || !strings.Contains(err.Error(), "POD_NAME, POD_NAMESPACE, INSTANCE_IP") {
		t.Errorf("error %v does not name what is missing", err)
	}
}

func TestInitAsInjected(t *testing.T) {
	cmd := command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"init", "--dry-run", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"15001", "15006", "1337", "15090"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("rules do not mention %s:\n%s", want, out.String())
		}
	}
	cmd.SetArgs([]string{"init", "--dry-run", "-m", "TPROXY"})
	if err := cmd.Execute(); err == nil {
		t.Error("TPROXY was accepted")
	}
}
