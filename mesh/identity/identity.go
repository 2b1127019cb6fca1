// Package identity names workloads as SPIFFE does and holds the roots that vouch for those names.
package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// DefaultTrustDomain is Istio's default.
const DefaultTrustDomain = "cluster.local"

// ID is the identity of a workload: a service account in a namespace of a trust domain. The zero value is nobody.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// String is the SPIFFE URI, spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func (id ID) String() string {
	return "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// URL is String as a URL, the form that a certificate's SAN takes.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}

// Parse reads a SPIFFE URI of the form that String writes.
func Parse(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("identity %q: does not start with spiffe://", s)
	}
	p := strings.Split(rest, "/")
	if len(p) != 5 || p[0] == "" || p[1] != "ns" || p[2] == "" || p[3] != "sa" || p[4] == "" {
		return ID{}, fmt.Errorf("identity %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", s)
	}
	return ID{TrustDomain: p[0], Namespace: p[2], ServiceAccount: p[4]}, nil
}

// ParseServiceAccount reads the user name that Kubernetes gives a service account,
// system:serviceaccount:<namespace>:<name>.
func ParseServiceAccount(trustDomain, user string) (ID, error) {
	p := strings.Split(user, ":")
	if len(p) != 4 || p[0] != "system" || p[1] != "serviceaccount" || p[2] == "" || p[3] == "" {
		return ID{}, fmt.Errorf("user %q is not a service account", user)
	}
	return ID{TrustDomain: trustDomain, Namespace: p[2], ServiceAccount: p[3]}, nil
}

// FromCertificate returns the one SPIFFE identity that a certificate carries.
func FromCertificate(c *x509.Certificate) (ID, error) {
	if len(c.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate %q: want exactly one URI SAN, found %d", c.Subject, len(c.URIs))
	}
	return Parse(c.URIs[0].String())
}

// Bundle is the set of roots of one trust domain. It is immutable.
type Bundle struct {
	pem   []byte
	certs []*x509.Certificate
}

// ParseBundle reads PEM certificates; anything else in the data is an error.
func ParseBundle(data []byte) (*Bundle, error) {
	b := &Bundle{pem: data}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if strings.TrimSpace(string(rest)) != "" {
				return nil, errors.New("trust bundle: data after the last PEM block is not PEM")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("trust bundle: PEM block is %s, want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("trust bundle: certificate %d: %w", len(b.certs)+1, err)
		}
		b.certs = append(b.certs, c)
	}
	if len(b.certs) == 0 {
		return nil, errors.New("trust bundle: no certificate in it")
	}
	return b, nil
}

// PEM returns the bundle as it was read. The caller must not change it.
func (b *Bundle) PEM() []byte { return b.pem }

// Holds tells whether a certificate is one of the roots.
func (b *Bundle) Holds(c *x509.Certificate) bool {
	return slices.ContainsFunc(b.certs, c.Equal)
}

// Pool returns a fresh pool of the roots.
func (b *Bundle) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range b.certs {
		p.AddCert(c)
	}
	return p
}
