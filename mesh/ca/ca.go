// Package ca signs the certificates of the mesh: one for each workload, by its SPIFFE name, and the control plane's own.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/meshproof/meshproof/mesh/identity"
)

// Lifetimes, as Istio has them, but that a workload's certificate never lives longer than a day.
const (
	RootTTL     = 10 * 365 * 24 * time.Hour
	WorkloadTTL = 24 * time.Hour
	backdate    = time.Minute // clocks of nodes differ
)

// Files is a CA as it is kept: PEM, under Istio's names.
type Files struct {
	Cert  []byte // ca-cert.pem: what signs
	Key   []byte // ca-key.pem
	Root  []byte // root-cert.pem: what everybody trusts; may hold several certificates while roots are changed
	Chain []byte // cert-chain.pem: from ca-cert up to, not with, the root; empty for a self-signed CA
}

// CA signs. It is immutable and safe for concurrent use.
type CA struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain []byte // what follows a leaf, PEM
	roots *identity.Bundle
	now   func() time.Time
}

// NewSelfSigned makes a root that signs directly.
func NewSelfSigned(trustDomain string, now time.Time) (Files, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return Files{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{trustDomain}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(RootTTL),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return Files{}, fmt.Errorf("make root certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Files{}, fmt.Errorf("encode CA key: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return Files{Cert: cert, Root: cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}, nil
}

// New checks that the files belong together and returns the CA that they make. now is asked at each signature.
func New(f Files, now func() time.Time) (*CA, error) {
	cert, err := parseCert(f.Cert)
	if err != nil {
		return nil, fmt.Errorf("ca-cert.pem: %w", err)
	}
	key, err := parseKey(f.Key)
	if err != nil {
		return nil, fmt.Errorf("ca-key.pem: %w", err)
	}
	roots, err := identity.ParseBundle(f.Root)
	if err != nil {
		return nil, fmt.Errorf("root-cert.pem: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("ca-key.pem is not the key of ca-cert.pem")
	}
	if !cert.IsCA {
		return nil, errors.New("ca-cert.pem is not a CA certificate: basicConstraints CA:TRUE is missing")
	}
	inter := x509.NewCertPool()
	inter.AppendCertsFromPEM(f.Chain)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots.Pool(), Intermediates: inter, CurrentTime: now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("ca-cert.pem does not lead to root-cert.pem: %w", err)
	}
	return &CA{cert: cert, key: key, roots: roots, chain: chainOf(cert, f.Chain, roots), now: now}, nil
}

// chainOf is what follows a leaf: the signing certificate and what leads from it to the roots, without these. Istio's tools put the
// root into cert-chain.pem too.
func chainOf(cert *x509.Certificate, chain []byte, roots *identity.Bundle) []byte {
	var out []byte
	add := func(c *x509.Certificate) {
		if !roots.Holds(c) {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
	}
	add(cert)
	for _, text := range splitPEM(chain) {
		if c, err := parseCert([]byte(text)); err == nil && !c.Equal(cert) {
			add(c)
		}
	}
	return out
}

// Expires is when the CA's own certificate ends, and with it everything that it signs.
func (c *CA) Expires() time.Time { return c.cert.NotAfter }

// Roots is what verifies everything that this CA signs.
func (c *CA) Roots() *identity.Bundle { return c.roots }

// Sign signs a workload's request for an identity, and gives the chain in PEM: the leaf first, the root last. Of the request
// only the key is used; the name is the caller's proven one. ttl of 0 means WorkloadTTL, which is also the most.
func (c *CA) Sign(csrPEM []byte, id identity.ID, ttl time.Duration) ([]string, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("certificate request is not PEM of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if ttl <= 0 || ttl > WorkloadTTL {
		ttl = WorkloadTTL
	}
	t := &x509.Certificate{}
	t.URIs = append(t.URIs, id.URL())
	leaf, err := c.sign(t, csr.PublicKey, ttl)
	if err != nil {
		return nil, err
	}
	out := []string{string(leaf)}
	out = append(out, splitPEM(c.chain)...)
	return append(out, splitPEM(c.roots.PEM())...), nil
}

// Serving makes a certificate for the control plane itself, for these DNS names and its own SPIFFE name.
func (c *CA) Serving(names []string, id identity.ID, ttl time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make serving key: %w", err)
	}
	t := &x509.Certificate{DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	t.URIs = append(t.URIs, id.URL())
	leaf, err := c.sign(t, key.Public(), ttl)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode serving key: %w", err)
	}
	pair, err := tls.X509KeyPair(append(leaf, c.chain...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	return &pair, nil
}

func (c *CA) sign(t *x509.Certificate, pub crypto.PublicKey, ttl time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := c.now()
	t.SerialNumber = serial
	t.NotBefore, t.NotAfter = now.Add(-backdate), now.Add(ttl)
	if t.NotAfter.After(c.cert.NotAfter) {
		t.NotAfter = c.cert.NotAfter
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, pub, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n, nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	b, _ := pem.Decode(data)
	if b == nil {
		return nil, errors.New("not PEM")
	}
	return x509.ParseCertificate(b.Bytes)
}

func parseKey(data []byte) (crypto.Signer, error) {
	b, _ := pem.Decode(data)
	if b == nil {
		return nil, errors.New("not PEM")
	}
	var k any
	var err error
	switch b.Type {
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(b.Bytes)
	default:
		k, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	}
	if err != nil {
		return nil, err
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", k)
	}
	return s, nil
}

func splitPEM(data []byte) []string {
	var out []string
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return out
		}
		out = append(out, string(pem.EncodeToMemory(b)))
	}
}
