package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/meshproof/meshproof/mesh/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newCA(t *testing.T) (*CA, Files) {
	t.Helper()
	f, err := NewSelfSigned("cluster.local", start)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(f, func() time.Time { return start })
	if err != nil {
		t.Fatal(err)
	}
	return c, f
}

func csr(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// A name in the request must not matter: the CA gives the proven one.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"kubernetes.default.svc"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestSign(t *testing.T) {
	c, _ := newCA(t)
	id := identity.ID{TrustDomain: "cluster.local", Namespace: "hello", ServiceAccount: "web"}
	for _, tt := range []struct{ ask, want time.Duration }{
		{0, WorkloadTTL}, {time.Hour, time.Hour}, {90 * 24 * time.Hour, WorkloadTTL}, {-time.Hour, WorkloadTTL},
	} {
		chain, err := c.Sign(csr(t), id, tt.ask)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := parseCert([]byte(chain[0]))
		if err != nil {
			t.Fatal(err)
		}
		if got := leaf.NotAfter.Sub(start); got != tt.want {
			t.Errorf("asked for %v: lives %v, want %v", tt.ask, got, tt.want)
		}
		if got, err := identity.FromCertificate(leaf); err != nil || got != id {
			t.Errorf("identity %v, %v", got, err)
		}
		if len(leaf.DNSNames) > 0 {
			t.Errorf("took over the names %v of the request", leaf.DNSNames)
		}
		if leaf.IsCA {
			t.Error("leaf is a CA")
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Roots().Pool(), CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
		if last := chain[len(chain)-1]; last != string(c.Roots().PEM()) {
			t.Error("the root is not last in the chain")
		}
	}
}

func TestSignRefuses(t *testing.T) {
	c, f := newCA(t)
	broken := csr(t)
	block, _ := pem.Decode(broken)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, in := range map[string][]byte{"empty": nil, "other PEM": f.Cert, "signature": pem.EncodeToMemory(block), "garbage": []byte("x")} {
		if _, err := c.Sign(in, identity.ID{}, 0); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	_, a := newCA(t)
	_, b := newCA(t)
	for name, tt := range map[string]struct {
		f    Files
		want string
	}{
		"another's key":  {Files{Cert: a.Cert, Key: b.Key, Root: a.Root}, "not the key of"},
		"another's root": {Files{Cert: a.Cert, Key: a.Key, Root: b.Root}, "does not lead to"},
		"no key":         {Files{Cert: a.Cert, Root: a.Root}, "ca-key.pem"},
		"no root":        {Files{Cert: a.Cert, Key: a.Key}, "root-cert.pem"},
	} {
		if _, err := New(tt.f, func() time.Time { return start }); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestServing(t *testing.T) {
	c, _ := newCA(t)
	cert, err := c.Serving([]string{"istiod.istio-system.svc"}, identity.ID{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "istiod"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Roots().Pool(), CurrentTime: start, DNSName: "istiod.istio-system.svc"}); err != nil {
		t.Error(err)
	}
	var _ tls.Certificate = *cert
}

// Two control planes that start at once end with one CA, and a CA that people brought wins.
func TestLoad(t *testing.T) {
	kube := fake.NewClientset()
	a, err := Load(t.Context(), kube, "istio-system", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Load(t.Context(), kube, "istio-system", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Roots().PEM()) != string(b.Roots().PEM()) {
		t.Error("the second start made another root")
	}
	_, f := newCA(t)
	_, err = kube.CoreV1().Secrets("istio-system").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: PluggedSecret, Namespace: "istio-system"},
		Data:       map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, "root-cert.pem": f.Root},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	plugged, err := Load(t.Context(), kube, "istio-system", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	if string(plugged.Roots().PEM()) != string(f.Root) {
		t.Error("cacerts is not used")
	}
}

func TestAuthenticate(t *testing.T) {
	kube := fake.NewClientset()
	kube.PrependReactor("create", "tokenreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		r := a.(ktesting.CreateAction).GetObject().(*authv1.TokenReview)
		switch r.Spec.Token {
		case "good":
			r.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: r.Spec.Audiences, User: authv1.UserInfo{Username: "system:serviceaccount:ns:sa"}}
		case "person":
			r.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: r.Spec.Audiences, User: authv1.UserInfo{Username: "admin"}}
		case "audience":
			r.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: "system:serviceaccount:ns:sa"}}
		case "down":
			return true, nil, errors.New("no API server")
		default:
			r.Status.Error = "expired"
		}
		return true, r, nil
	})
	p := &Peers{Kube: kube, TrustDomain: "td"}
	for header, want := range map[string]string{
		"Bearer good": "spiffe://td/ns/ns/sa/sa", "Bearer bad": "expired", "Bearer person": "not a service account",
		"Bearer audience": "audience", "Bearer down": "no API server", "Basic x": "neither", "": "neither",
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", header))
		id, err := p.Authenticate(ctx)
		got := id.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func TestDistributeRoots(t *testing.T) {
	c, _ := newCA(t)
	kube := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RootConfigMap, Namespace: "a"}, Data: map[string]string{RootKey: "old", "other": "kept"}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- DistributeRoots(ctx, kube, c, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not %s", what)
			}
		}
	}
	has := func(ns string) func() bool {
		return func() bool {
			cm, err := kube.CoreV1().ConfigMaps(ns).Get(ctx, RootConfigMap, metav1.GetOptions{})
			return err == nil && cm.Data[RootKey] == string(c.Roots().PEM())
		}
	}
	until("mended in a", has("a"))
	if cm, _ := kube.CoreV1().ConfigMaps("a").Get(ctx, RootConfigMap, metav1.GetOptions{}); cm.Data["other"] != "kept" {
		t.Error("somebody else's key is gone")
	}
	if _, err := kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("in the new namespace b", has("b"))
	if err := kube.CoreV1().ConfigMaps("b").Delete(ctx, RootConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("made again in b", has("b"))
}
