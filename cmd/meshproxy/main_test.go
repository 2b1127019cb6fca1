package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBootstrapFromEnvironment(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "labels"), []byte("app=\"reviews\"\nversion=\"v1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "annotations"), []byte("prometheus.io/scrape=\"true\"\nnote=\"a\\nb=c\"\n"), 0o600); err != nil {
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
	if b.AppTarget != "http://127.0.0.1:80/metrics" || b.Discovery.TokenFile != "/t" {
		t.Errorf("bootstrap %+v", b)
	}
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
