package clustertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/clusters/kube"
)

// token asks for a token of a service account with an audience of its own, and has it reviewed, as a mesh's CA does.
func (s *suite) token(t *testing.T) {
	api := s.kube.Typed
	got, err := api.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), "default",
		&authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{"suite"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for audience, want := range map[string]bool{"suite": true, "other": false} {
		review, err := api.AuthenticationV1().TokenReviews().Create(t.Context(), &authv1.TokenReview{
			Spec: authv1.TokenReviewSpec{Token: got.Status.Token, Audiences: []string{audience}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Authenticated != want {
			t.Errorf("token for audience suite reviewed for %s: %v (%s), want %v", audience, review.Status.Authenticated, review.Status.Error, want)
		}
	}
}

const webhookManifest = `
apiVersion: v1
kind: Secret
metadata: {name: webhook}
data: {tls.crt: %[1]s, tls.key: %[2]s}
---
apiVersion: v1
kind: Pod
metadata: {name: webhook, labels: {app: webhook}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: webhook
    image: ` + ImageRef + `
    args: [webhook, /tls/tls.crt, /tls/tls.key]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
    volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]
  volumes: [{name: tls, secret: {secretName: webhook}}]
---
apiVersion: v1
kind: Service
metadata: {name: webhook}
spec: {selector: {app: webhook}, ports: [{port: 443, targetPort: 8443}]}
`

const webhookConfig = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: clustertest}
webhooks:
- name: label.clustertest.meshproof.dev
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: clustertest}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  clientConfig: {caBundle: %s, service: {namespace: clustertest, name: webhook}}
`

func (s *suite) webhook(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	cert, key := selfSigned(t, "webhook.clustertest.svc")
	b64 := base64.StdEncoding.EncodeToString
	server := kube.Manifest{Name: "webhook.yaml", YAML: fmt.Appendf(nil, webhookManifest, b64(cert), b64(key))}
	if _, err := s.kube.Apply(ctx, namespace, server); err != nil {
		t.Fatal(err)
	}
	if err := s.kube.WaitReady(ctx, namespace); err != nil {
		t.Fatal(err)
	}
	config := kube.Manifest{Name: "config.yaml", YAML: fmt.Appendf(nil, webhookConfig, b64(cert))}
	if _, err := s.kube.Apply(ctx, "", config); err != nil {
		t.Fatal(err)
	}
	// The API server learns of a webhook a moment after its configuration is stored, and kube-proxy of its Service.
	obj := kube.Manifest{Name: "asked.yaml", YAML: []byte("{apiVersion: v1, kind: ConfigMap, metadata: {name: asked}}")}
	Eventually(t, budget, func() error {
		out, err := s.kube.Apply(ctx, namespace, obj)
		if err == nil && out[0].GetLabels()["webhook"] == "called" {
			return nil
		}
		return errors.Join(errors.New("the webhook was not called"), err, s.kube.Delete(ctx, namespace, obj))
	})
	if err := s.kube.Delete(ctx, "", config); err != nil {
		t.Error(err)
	}
}

func (s *suite) applyErrors(t *testing.T) {
	for name, c := range map[string]struct{ yaml, want string }{
		"syntax":        {"a: b\n c: d\n", "bad.yaml:2:"},
		"no kind":       {"\n\napiVersion: v1\nmetadata: {name: x}\n", "bad.yaml:3:"},
		"unknown kind":  {"apiVersion: example.org/v1\nkind: Nonesuch\nmetadata: {name: x}\n", "bad.yaml:1:"},
		"unknown field": {"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\ndatta: {}\n", "bad.yaml:5:"},
		"bad value":     {"apiVersion: v1\nkind: Service\nmetadata:\n  name: x\nspec:\n  ports:\n  - {name: a, port: 80}\n  - {name: b, port: 99999}\n", "bad.yaml:8:"},
	} {
		_, err := s.kube.Apply(t.Context(), namespace, kube.Manifest{Name: "bad.yaml", YAML: []byte(c.yaml)})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to begin with %s", name, err, c.want)
		}
	}
}

func (s *suite) notReady(t *testing.T) {
	bad := kube.Manifest{Name: "bad.yaml", YAML: []byte(`
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: crash
    image: ` + ImageRef + `
    args: [nonsense]
    readinessProbe: {tcpSocket: {port: 8080}}
`)}
	if _, err := s.kube.Apply(t.Context(), namespace, bad); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "crash"}}
	err := s.match(t.Context(), pod, func() bool {
		return slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
			return c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
		})
	}, func() any { return pod.Status })
	if err != nil {
		t.Fatalf("pod crash has not ended: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = s.kube.WaitReady(ctx, namespace)
	var not *kube.NotReadyError
	if !errors.As(err, &not) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Pod clustertest/crash") || !strings.Contains(err.Error(), "exit code 3") {
		t.Errorf("wait for a crashing pod: %v, want its name and exit code", err)
	}
	if err := s.kube.Delete(t.Context(), namespace, bad); err != nil {
		t.Error(err)
	}
}

func selfSigned(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}
