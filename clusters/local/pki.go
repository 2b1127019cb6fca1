package local

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// certLife is how long a lab's certificates hold; a lab that is older has to be made anew.
const certLife = 365 * 24 * time.Hour

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

type subject struct {
	cn   string
	orgs []string
	sans []string // serving certificates only; addresses and names
}

func newAuthority(cn string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := template(subject{cn: cn})
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: pemBlock("CERTIFICATE", der)}, nil
}

// issue returns certificate and key as PEM.
func (a *authority) issue(s subject) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := template(s)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(s.sans) > 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = keyPEM(k)
	return pemBlock("CERTIFICATE", der), key, err
}

func template(s subject) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails on the platforms we build for
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: s.cn, Organization: s.orgs},
		NotBefore:    now.Add(-time.Hour), // a clock stepped back must not stop a lab
		NotAfter:     now.Add(certLife),
	}
	for _, san := range s.sans {
		if ip := net.ParseIP(san); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, san)
		}
	}
	return t
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func keyPEM(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pemBlock("EC PRIVATE KEY", der), nil
}

// writePKI fills a cluster's pki folder and writes the kubeconfigs of its components and of its admin.
func writePKI(c *clusterState) error {
	dir := c.pkiDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority("meshproof-" + c.Name)
	if err != nil {
		return err
	}
	front, err := newAuthority("meshproof-" + c.Name + "-front-proxy")
	if err != nil {
		return err
	}
	caKey, err := keyPEM(ca.key)
	if err != nil {
		return err
	}
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	saKeyPEM, err := keyPEM(saKey)
	if err != nil {
		return err
	}
	saPub, err := x509.MarshalPKIXPublicKey(saKey.Public())
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": ca.pem, "ca.key": caKey, "front-proxy-ca.crt": front.pem,
		"sa.key": saKeyPEM, "sa.pub": pemBlock("PUBLIC KEY", saPub),
	}
	pair := func(name string, a *authority, s subject) error {
		cert, key, err := a.issue(s)
		files[name+".crt"], files[name+".key"] = cert, key
		return err
	}
	cp := c.Nodes[0]
	err = pair("apiserver", ca, subject{cn: "kube-apiserver", sans: []string{
		"127.0.0.1", "::1", "localhost", cp.IP, cp.Name, c.ServiceIP, "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}})
	if err != nil {
		return err
	}
	if err := pair("apiserver-kubelet-client", ca, subject{cn: "kube-apiserver-kubelet-client", orgs: []string{"system:masters"}}); err != nil {
		return err
	}
	if err := pair("front-proxy-client", front, subject{cn: "front-proxy-client"}); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := pair("kubelet-"+n.Name, ca, subject{cn: "system:node:" + n.Name, orgs: []string{"system:nodes"}, sans: []string{n.IP, n.Name}}); err != nil {
			return err
		}
	}

	inside := fmt.Sprintf("https://%s:%d", cp.IP, apiPort)
	confs := []struct {
		path, server string
		subject      subject
	}{
		{filepath.Join(dir, "controller-manager.conf"), inside, subject{cn: "system:kube-controller-manager", orgs: []string{"system:masters"}}},
		{filepath.Join(dir, "scheduler.conf"), inside, subject{cn: "system:kube-scheduler"}},
		{filepath.Join(dir, "proxy.conf"), inside, subject{cn: "system:kube-proxy"}},
		{filepath.Join(dir, "coredns.conf"), inside, subject{cn: "meshproof:coredns", orgs: []string{"system:masters"}}},
		{filepath.Join(dir, "load-balancer.conf"), inside, subject{cn: "meshproof:load-balancer", orgs: []string{"system:masters"}}},
		{c.kubeconfig(), "https://" + c.APIAddr, subject{cn: "meshproof:admin", orgs: []string{"system:masters"}}},
	}
	for _, n := range c.Nodes {
		confs = append(confs, struct {
			path, server string
			subject      subject
		}{filepath.Join(dir, "kubelet-"+n.Name+".conf"), inside, subject{cn: "system:node:" + n.Name, orgs: []string{"system:nodes"}}})
	}
	for _, k := range confs {
		cert, key, err := ca.issue(k.subject)
		if err != nil {
			return err
		}
		if err := writeKubeconfig(k.path, c.Name, k.server, ca.pem, cert, key); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := writeFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func writeKubeconfig(path, name, server string, ca, cert, key []byte) error {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	b, err := clientcmd.Write(*cfg)
	if err != nil {
		return err
	}
	return writeFile(path, b, 0o600)
}
