package secrets

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	security "istio.io/api/security/v1alpha1"
)

// Issuer gets the workload certificate from istio.v1.auth.IstioCertificateService and renews it.
type Issuer struct {
	Conn     grpc.ClientConnInterface
	Store    *Store
	Identity string        // spiffe://TRUSTDOMAIN/ns/NS/sa/SA
	TTL      time.Duration // asked for; the authority may give less
	// RootFile, when set, adds trust anchors to those that the authority returns. When it changes the mesh may have another
	// authority: Run gets another certificate then.
	RootFile string
	Log      *slog.Logger

	roots []byte // of RootFile, as of the certificate in the Store
}

// lookEvery is how often RootFile is read. It is a volume of a ConfigMap as a rule, which a kubelet brings up to date once a minute.
const lookEvery = 5 * time.Second

// Fetch gets one certificate and puts it into the Store.
func (i *Issuer) Fetch(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("workload key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("workload key: %w", err)
	}
	id, err := url.Parse(i.Identity)
	if err != nil {
		return fmt.Errorf("workload identity %q: %w", i.Identity, err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}, URIs: []*url.URL{id}}, key)
	if err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	resp, err := security.NewIstioCertificateServiceClient(i.Conn).CreateCertificate(ctx, &security.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(i.TTL / time.Second),
	}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("create certificate: %w", err)
	}
	if len(resp.CertChain) < 2 {
		return errors.New("create certificate: the answer holds no chain with a root")
	}
	roots, more := resp.CertChain[len(resp.CertChain)-1], i.readRoots()
	if more != nil {
		roots = strings.TrimRight(roots, "\n") + "\n" + string(more)
	}
	chain := strings.Join(resp.CertChain[:len(resp.CertChain)-1], "\n")
	if err := i.Store.SetWorkload([]byte(chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), []byte(roots)); err != nil {
		return err
	}
	i.roots = more
	return nil
}

// readRoots reads RootFile; nil while there is none.
func (i *Issuer) readRoots() []byte {
	if i.RootFile == "" {
		return nil
	}
	b, err := os.ReadFile(i.RootFile)
	if err != nil {
		return nil
	}
	return b
}

// await returns when the time has passed or, if watch is set, RootFile has changed. False means that ctx ended.
func (i *Issuer) await(ctx context.Context, d time.Duration, watch bool) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-t.C:
			return true
		case <-look.C:
			if now := i.readRoots(); watch && now != nil && !bytes.Equal(now, i.roots) {
				i.Log.Info("trust anchors have changed", "file", i.RootFile)
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

// Run renews the certificate when half of its life has passed, give or take a tenth, or at once when RootFile changes, until ctx
// ends. The first must have been fetched.
func (i *Issuer) Run(ctx context.Context) error {
	retry, failed := time.Second, false
	for {
		info := i.Store.Info()
		wait := retry
		if left := time.Until(info.NotAfter); left > 0 && !failed {
			life := info.NotAfter.Sub(info.NotBefore)
			due := info.NotBefore.Add(life/2 + mrand.N(life/10+1))
			if d := time.Until(due); d > 0 {
				wait = d
			}
		}
		if !i.await(ctx, wait, !failed) {
			return nil
		}
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := i.Fetch(call)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			i.Log.Error("certificate not renewed", "err", err, "expires", info.NotAfter, "again_in", retry)
			retry, failed = min(2*retry, time.Minute), true
			continue
		}
		retry, failed = time.Second, false
		i.Log.Info("certificate renewed", "expires", i.Store.Info().NotAfter)
	}
}
