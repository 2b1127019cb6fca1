package hangup

import (
	"crypto/tls"
	"net"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestNow: a TLS connection whose peer does not read is closed at once, and so is one without TLS; a write under way ends.
func TestNow(t *testing.T) {
	s := httptest.NewTLSServer(nil) // for its certificate
	cert := s.TLS.Certificates[0]
	s.Close()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		shaken := make(chan error, 1)
		go func() {
			shaken <- tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}).Handshake()
		}()
		c := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		written := make(chan error, 1)
		go func() {
			_, err := c.Write([]byte("hello"))
			written <- err
		}()
		synctest.Wait()
		if err := Now(c); err != nil {
			t.Error(err)
		}
		if err := <-written; err == nil {
			t.Error("the write has succeeded")
		}
		_ = c.Close()
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Error("the peer was told something")
		}
		a, b = net.Pipe()
		if err := Now(a); err != nil {
			t.Error(err)
		}
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Error("the peer reads on")
		}
	})
}
