package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IntermediateTTL is the life of the CA of one cluster, as istio's tools/certs have it.
const IntermediateTTL = 2 * 365 * 24 * time.Hour

// Issue makes the CA of one cluster, signed by a root: every cluster of a mesh has a key of its own, and all trust one root.
func Issue(root Files, organization, cluster string, now time.Time) (Files, error) {
	rootCert, err := parseCert(root.Cert)
	if err != nil {
		return Files{}, fmt.Errorf("root-cert.pem: %w", err)
	}
	rootKey, err := parseKey(root.Key)
	if err != nil {
		return Files{}, fmt.Errorf("root-key.pem: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, fmt.Errorf("make key of the CA of %s: %w", cluster, err)
	}
	serial, err := newSerial()
	if err != nil {
		return Files{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{organization}, CommonName: "Intermediate CA", Locality: []string{cluster}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(IntermediateTTL),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if t.NotAfter.After(rootCert.NotAfter) {
		t.NotAfter = rootCert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, rootCert, key.Public(), rootKey)
	if err != nil {
		return Files{}, fmt.Errorf("sign the CA of %s: %w", cluster, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Files{}, fmt.Errorf("encode key of the CA of %s: %w", cluster, err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return Files{
		Cert: cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		Root: root.Cert, Chain: append(append([]byte{}, cert...), root.Cert...),
	}, nil
}

// Secret is the Secret by which a control plane is given this CA.
func (f Files) Secret(namespace string) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: PluggedSecret, Namespace: namespace},
		Data:       map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, RootKey: f.Root, "cert-chain.pem": f.Chain},
	}
}
