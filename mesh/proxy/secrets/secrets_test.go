package secrets

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// fill gives a store a certificate for uri.
func (a *authority) fill(s *Store, uri string, serial int64) {
	a.t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		a.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := s.SetWorkload(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}), a.pem); err != nil {
		a.t.Fatal(err)
	}
}

var mesh = conf.TLSCommon{CertSecret: Workload, RootSecret: Roots}

// shake runs a handshake and returns both connections.
func shake(t *testing.T, client, server *tls.Config) (c, s *tls.Conn, cerr, serr error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, s = tls.Client(a, client), tls.Server(b, server)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err != nil {
			_ = b.Close()
		}
		done <- err
	}()
	cerr = c.Handshake()
	if cerr != nil {
		_ = a.Close()
	}
	serr = <-done
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return c, s, cerr, serr
}

func TestRotationKeepsConnections(t *testing.T) {
	ca := newAuthority(t)
	var cs, ss Store
	ca.fill(&cs, "spiffe://td/ns/a/sa/client", 10)
	ca.fill(&ss, "spiffe://td/ns/a/sa/server", 20)
	up := &conf.UpstreamTLS{TLSCommon: mesh, SNI: "x"}
	up.SANs = []conf.StringMatch{{Value: "spiffe://td/ns/a/sa/server"}}
	client, err := cs.Client(up, []string{"istio-http/1.1", "istio"})
	if err != nil {
		t.Fatal(err)
	}
	down := &conf.DownstreamTLS{TLSCommon: mesh, RequireClientCert: true}
	down.SANs = []conf.StringMatch{{Kind: conf.Prefix, Value: "spiffe://td/"}}
	down.ALPN = []string{"h2", "http/1.1"} // nothing in common: the handshake goes on without
	server, err := ss.Server(down)
	if err != nil {
		t.Fatal(err)
	}
	c, s, cerr, serr := shake(t, client, server)
	if cerr != nil || serr != nil {
		t.Fatal(cerr, serr)
	}
	ca.fill(&ss, "spiffe://td/ns/a/sa/server", 21)
	go func() { _, _ = s.Write([]byte("still here")) }()
	buf := make([]byte, 10)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "still here" {
		t.Errorf("after rotation: %q, %v", buf, err)
	}
	c2, _, cerr, serr := shake(t, client, server)
	if cerr != nil || serr != nil {
		t.Fatal(cerr, serr)
	}
	if n := c2.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); n != 21 {
		t.Errorf("a new connection got certificate %d, want the new one", n)
	}
}

func TestPeersAreChecked(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	var good, wrong, foreign, empty Store
	ca.fill(&good, "spiffe://td/ns/a/sa/server", 1)
	ca.fill(&wrong, "spiffe://td/ns/a/sa/other", 2)
	other.fill(&foreign, "spiffe://td/ns/a/sa/server", 3)
	up := &conf.UpstreamTLS{TLSCommon: mesh}
	up.SANs = []conf.StringMatch{{Value: "spiffe://td/ns/a/sa/server"}}
	down := &conf.DownstreamTLS{TLSCommon: mesh, RequireClientCert: true}
	for name, c := range map[string]struct {
		client, server *Store
		fail           string
	}{
		"right": {&good, &good, ""}, "another identity": {&good, &wrong, "no subject alternative name matches"}, "another authority": {&good, &foreign, "certificate"},
		"client of another authority": {&foreign, &good, "certificate"}, "client without certificate": {&empty, &good, "not there yet"},
	} {
		client, err := c.client.Client(up, nil)
		if err != nil {
			t.Fatal(err)
		}
		server, err := c.server.Server(down)
		if err != nil {
			t.Fatal(err)
		}
		_, _, cerr, serr := shake(t, client, server)
		text := ""
		for _, err := range []error{cerr, serr} {
			if err != nil {
				text += err.Error() + "; "
			}
		}
		if (c.fail == "") != (text == "") || !strings.Contains(text, c.fail) {
			t.Errorf("%s: got %q, want %q", name, text, c.fail)
		}
	}
}
