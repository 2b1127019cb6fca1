package pool

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

// TestEndOverTLS: the end of a pool does not wait for a peer that does not read.
func TestEndOverTLS(t *testing.T) {
	s := httptest.NewTLSServer(nil) // for its certificate
	server := &tls.Config{Certificates: s.TLS.Certificates, SessionTicketsDisabled: true}
	s.Close()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer func() { _ = b.Close() }()
		shaken := make(chan error, 1)
		go func() { shaken <- tls.Server(b, server).Handshake() }()
		var st Stats
		l, _ := bounded(1, 1)
		p := NewHTTP2(func(ctx context.Context) (net.Conn, error) {
			c := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
			return c, c.HandshakeContext(ctx)
		}, l, &st)
		x, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		x.Request(&http1.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("x")})
		_ = x.Flush()
		synctest.Wait()
		began := time.Now()
		p.End()
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		x.Discard()
	})
}
