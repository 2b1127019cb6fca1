package router

import (
	"crypto/tls"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// anyCertificate is a builder of TLS that trusts everybody.
type anyCertificate struct{}

func (anyCertificate) Client(_ *conf.UpstreamTLS, alpn []string) (*tls.Config, error) {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: alpn}, nil
}

// TestUploadNobodyReadsOverTLS: an endpoint that does not read is not told farewell, which would take up to five seconds more.
func TestUploadNobodyReadsOverTLS(t *testing.T) {
	s := httptest.NewTLSServer(nil) // for its certificate
	server := &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true}
	s.Close()
	for name, change := range map[string]func(*front){"HTTP/1": func(*front) {}, "HTTP/2": over2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newFront(t, conf.Forward{MaxDuration: time.Second}, change, func(p *front) {
					p.tls, p.cluster.TLS = anyCertificate{}, &conf.UpstreamTLS{}
				})
				p.wg.Go(func() {
					if err := tls.Server(p.up(), server).Handshake(); err != nil {
						t.Error(err)
					}
				})
				began := time.Now()
				want(t, p.send(upload, strings.Repeat("x", 5000000)), 408)
				if took := time.Since(began); took != time.Second {
					t.Errorf("answered after %v", took)
				}
				p.set.Apply(&conf.Config{})
				synctest.Wait()
				p.ended()
			})
		})
	}
}

var _ upstream.TLSBuilder = anyCertificate{}
