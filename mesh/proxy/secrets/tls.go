package secrets

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// ErrNotReady is returned by handshakes that need a secret which has not arrived yet.
var ErrNotReady = errors.New("secrets: certificate not there yet")

// Server builds the server side. Secrets are looked up at each handshake, so a rotation needs no new config.
func (s *Store) Server(c *conf.DownstreamTLS) (*tls.Config, error) {
	fixed, err := load(&c.TLSCommon)
	if err != nil {
		return nil, err
	}
	protos := supported(c.ALPN)
	base := &tls.Config{MinVersion: c.MinVersion, MaxVersion: c.MaxVersion, CipherSuites: c.Ciphers}
	return &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		out := base.Clone()
		m, err := s.material(&c.TLSCommon, fixed)
		if err != nil {
			return nil, err
		}
		if m.cert == nil {
			return nil, ErrNotReady
		}
		out.Certificates = []tls.Certificate{*m.cert}
		// Without a common protocol a handshake goes on without ALPN, as in Envoy; crypto/tls would refuse it.
		for _, p := range hello.SupportedProtos {
			if slices.Contains(protos, p) {
				out.NextProtos = protos
				break
			}
		}
		switch {
		case c.RequireClientCert:
			out.ClientAuth = tls.RequireAnyClientCert
		case m.roots != nil:
			out.ClientAuth = tls.RequestClientCert
		}
		out.VerifyConnection = func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				if c.RequireClientCert {
					return errors.New("tls: client gave no certificate")
				}
				return nil
			}
			return verify(cs.PeerCertificates, m.roots, x509.ExtKeyUsageClientAuth, c.SANs)
		}
		out.SessionTicketsDisabled = true // a resumed session would keep a peer that no longer verifies
		return out, nil
	}}, nil
}

// Client builds the client side with the given ALPN list.
func (s *Store) Client(c *conf.UpstreamTLS, alpn []string) (*tls.Config, error) {
	fixed, err := load(&c.TLSCommon)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		ServerName: c.SNI, MinVersion: c.MinVersion, MaxVersion: c.MaxVersion, CipherSuites: c.Ciphers,
		NextProtos:         alpn,
		InsecureSkipVerify: true, // VerifyConnection below checks chain and names: SPIFFE ids are URIs, which crypto/tls does not match
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := s.material(&c.TLSCommon, fixed)
			if err != nil {
				return nil, err
			}
			if m.cert == nil {
				return &tls.Certificate{}, nil
			}
			return m.cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			m, err := s.material(&c.TLSCommon, fixed)
			if err != nil {
				return err
			}
			if m.roots == nil {
				return nil // Envoy: without a validation context nothing is verified
			}
			return verify(cs.PeerCertificates, m.roots, x509.ExtKeyUsageServerAuth, c.SANs)
		},
	}, nil
}

// supported drops protocols that have no codec, so that a peer never agrees on one.
func supported(alpn []string) []string {
	var out []string
	for _, p := range alpn {
		if p != "h3" {
			out = append(out, p)
		}
	}
	return out
}

type material struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

// load reads what a context holds inline or in files, once: at decode time a bad file must already be known.
func load(c *conf.TLSCommon) (m material, err error) {
	certPEM, keyPEM, rootPEM := c.CertPEM, c.KeyPEM, c.RootPEM
	for _, f := range []struct {
		path string
		to   *[]byte
	}{{c.CertFile, &certPEM}, {c.KeyFile, &keyPEM}, {c.RootFile, &rootPEM}} {
		if f.path == "" {
			continue
		}
		if *f.to, err = os.ReadFile(f.path); err != nil {
			return m, fmt.Errorf("tls context: %w", err)
		}
	}
	if len(certPEM) > 0 {
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			return m, fmt.Errorf("tls context: certificate: %w", err)
		}
		m.cert = &cert
	}
	if len(rootPEM) > 0 {
		m.roots = x509.NewCertPool()
		if !m.roots.AppendCertsFromPEM(rootPEM) {
			return m, errors.New("tls context: trusted_ca holds no certificate")
		}
	}
	return m, nil
}

func (s *Store) material(c *conf.TLSCommon, m material) (material, error) {
	if c.CertSecret != "" {
		b := s.get(c.CertSecret)
		if b == nil || b.cert == nil {
			return m, fmt.Errorf("%w: secret %q", ErrNotReady, c.CertSecret)
		}
		m.cert = b.cert
	}
	if c.RootSecret != "" {
		b := s.get(c.RootSecret)
		if b == nil || b.roots == nil {
			return m, fmt.Errorf("%w: secret %q", ErrNotReady, c.RootSecret)
		}
		m.roots = b.roots
	}
	return m, nil
}

func verify(chain []*x509.Certificate, roots *x509.CertPool, use x509.ExtKeyUsage, sans []conf.StringMatch) error {
	if len(chain) == 0 {
		return errors.New("tls: peer gave no certificate")
	}
	if roots != nil {
		inter := x509.NewCertPool()
		for _, c := range chain[1:] {
			inter.AddCert(c)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			return fmt.Errorf("tls: peer certificate: %w", err)
		}
	}
	if len(sans) == 0 {
		return nil
	}
	names := names(chain[0])
	for i := range sans {
		for _, n := range names {
			if sans[i].MatchString(n) {
				return nil
			}
		}
	}
	return fmt.Errorf("tls: peer certificate is for %s: no subject alternative name matches", strings.Join(names, ", "))
}

func names(c *x509.Certificate) []string {
	var out []string
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	out = append(out, c.DNSNames...)
	out = append(out, c.EmailAddresses...)
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}
