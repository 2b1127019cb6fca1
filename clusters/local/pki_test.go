package local

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshproof/meshproof/clusters"
)

func TestPKI(t *testing.T) {
	dir := t.TempDir()
	st, err := plan(dir, clusters.Spec{Lab: "x", Clusters: []clusters.ClusterSpec{{Name: "a", Nodes: 2}}}, "", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	c := &st.Clusters[0]
	c.APIAddr = "127.0.0.1:1234"
	if err := writePKI(c); err != nil {
		t.Fatal(err)
	}
	pool := func(file string) *x509.CertPool {
		b, err := os.ReadFile(filepath.Join(c.pkiDir(), file))
		if err != nil {
			t.Fatal(err)
		}
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(b) {
			t.Fatalf("%s holds no certificate", file)
		}
		return p
	}
	for _, want := range []struct {
		pair, ca, cn, org string
		serves            []string
	}{
		{"apiserver", "ca.crt", "kube-apiserver", "", []string{"127.0.0.1", "10.30.0.11", "10.96.0.1", "localhost", "kubernetes.default.svc.cluster.local"}},
		{"kubelet-a-1", "ca.crt", "system:node:a-1", "system:nodes", []string{"10.30.0.11", "a-1"}},
		{"kubelet-a-2", "ca.crt", "system:node:a-2", "system:nodes", []string{"10.30.0.12", "a-2"}},
		{"apiserver-kubelet-client", "ca.crt", "kube-apiserver-kubelet-client", "system:masters", nil},
		{"front-proxy-client", "front-proxy-ca.crt", "front-proxy-client", "", nil},
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(c.pkiDir(), want.pair+".crt"), filepath.Join(c.pkiDir(), want.pair+".key"))
		if err != nil {
			t.Errorf("%s: %v", want.pair, err)
			continue
		}
		subject := pair.Leaf.Subject
		if subject.CommonName != want.cn || want.org != "" && (len(subject.Organization) != 1 || subject.Organization[0] != want.org) {
			t.Errorf("%s: subject %s", want.pair, subject)
		}
		usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if len(want.serves) > 0 {
			usages = append(usages, x509.ExtKeyUsageServerAuth)
		}
		for _, u := range usages {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool(want.ca), KeyUsages: []x509.ExtKeyUsage{u}}); err != nil {
				t.Errorf("%s: %v", want.pair, err)
			}
		}
		for _, name := range want.serves {
			if err := pair.Leaf.VerifyHostname(name); err != nil {
				t.Errorf("%s: %v", want.pair, err)
			}
		}
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig())
	if err != nil || cfg.Host != "https://127.0.0.1:1234" {
		t.Errorf("kubeconfig: %v %v", cfg, err)
	}
	for _, f := range []string{c.kubeconfig(), filepath.Join(c.pkiDir(), "ca.key")} {
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", f, fi, err)
		}
	}
}
