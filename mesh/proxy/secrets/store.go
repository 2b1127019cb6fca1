// Package secrets holds the workload's certificate and trust anchors, gets them by CSR, renews them, and builds TLS
// configurations that always use the newest ones. Connections made with an older certificate live on.
package secrets

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Names of the secrets that Istio's contexts refer to.
const (
	Workload = "default"
	Roots    = "ROOTCA"
)

// Store is a set of named secrets, swapped whole. The zero value is empty and ready.
type Store struct {
	mu   sync.Mutex
	cur  atomic.Pointer[map[string]*bundle]
	info atomic.Pointer[Info]
}

// Info describes the workload certificate, for the admin port.
type Info struct {
	Serial              string
	NotBefore, NotAfter time.Time
	URI                 string
	CertPEM, RootPEM    []byte
}

type bundle struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

func (s *Store) get(name string) *bundle {
	m := s.cur.Load()
	if m == nil {
		return nil
	}
	return (*m)[name]
}

// Ready reports whether the workload certificate and the trust anchors are there.
func (s *Store) Ready() bool { return s.get(Workload) != nil && s.get(Roots) != nil }

// Info returns what is known about the workload certificate, or nil.
func (s *Store) Info() *Info { return s.info.Load() }

// SetWorkload replaces the workload certificate (chain and key in PEM) and the trust anchors.
func (s *Store) SetWorkload(chain, key, roots []byte) error {
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("workload certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return fmt.Errorf("workload certificate: %w", err)
	}
	cert.Leaf = leaf
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return errors.New("trust anchors: no certificate in the PEM data")
	}
	info := &Info{Serial: leaf.SerialNumber.String(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, CertPEM: chain, RootPEM: roots}
	if len(leaf.URIs) > 0 {
		info.URI = leaf.URIs[0].String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]*bundle{}
	if m := s.cur.Load(); m != nil {
		maps.Copy(next, *m)
	}
	next[Workload] = &bundle{cert: &cert}
	next[Roots] = &bundle{roots: pool}
	s.cur.Store(&next)
	s.info.Store(info)
	return nil
}
