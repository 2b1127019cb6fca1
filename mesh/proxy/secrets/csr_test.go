package secrets

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	security "istio.io/api/security/v1alpha1"
)

// signer is the certificate service of an authority that may be replaced, or be down.
type signer struct {
	grpc.ClientConnInterface
	mu     sync.Mutex
	ca     *authority
	err    error
	serial int64
}

func (s *signer) Invoke(_ context.Context, _ string, in, out any, _ ...grpc.CallOption) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	if s.err != nil {
		return s.err
	}
	b, _ := pem.Decode([]byte(in.(*security.IstioCertificateRequest).Csr))
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(s.serial), NotBefore: time.Now(), NotAfter: time.Now().Add(24 * time.Hour), URIs: csr.URIs},
		s.ca.cert, csr.PublicKey, s.ca.key)
	if err != nil {
		return err
	}
	out.(*security.IstioCertificateResponse).CertChain = []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(s.ca.pem)}
	return nil
}

func (s *signer) become(ca *authority, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ca, s.err = ca, err
}

// TestChangedRootsRenew: a certificate of an authority that was replaced is replaced at once, not after half of its life.
func TestChangedRootsRenew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "root-cert.pem")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		first, second := newAuthority(t), newAuthority(t)
		s := &signer{ca: first}
		i := &Issuer{Conn: s, Store: &Store{}, Identity: "spiffe://td/ns/a/sa/b", TTL: 24 * time.Hour, RootFile: file, Log: slog.New(slog.DiscardHandler)}
		write(first.pem)
		ctx, cancel := context.WithCancel(t.Context())
		if err := i.Fetch(ctx); err != nil {
			t.Fatal(err)
		}
		ran := make(chan error, 1)
		go func() { ran <- i.Run(ctx) }()
		after := func(d time.Duration, serial string, roots ...*authority) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			info := i.Store.Info()
			if info.Serial != serial {
				t.Errorf("certificate %s, want %s", info.Serial, serial)
			}
			for _, a := range []*authority{first, second} {
				want := false
				for _, r := range roots {
					want = want || r == a
				}
				if got := strings.Contains(string(info.RootPEM), strings.TrimSpace(string(a.pem))); got != want {
					t.Errorf("certificate %s: first authority %t: trusted %t, want %t", serial, a == first, got, want)
				}
			}
		}
		after(time.Hour, "1", first)
		s.become(second, nil) // which the file does not say yet
		after(time.Hour, "1", first)
		s.become(second, errors.New("down"))
		write(second.pem)
		after(lookEvery, "1", first)
		after(time.Second/2, "1", first)
		s.become(second, nil)
		after(2*time.Second, "3", second)
		after(time.Hour, "3", second)
		write(append(append([]byte{}, first.pem...), second.pem...))
		after(lookEvery, "4", first, second)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		after(time.Hour, "4", first, second)
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
