package meshtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hello is a service of n pods, whose handlers are given, and a client.
func hello(t *testing.T, handlers map[string]http.Handler) (*Mesh, *Workload) {
	t.Helper()
	m := New(t, `
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 8080}]
`)
	for name, h := range handlers {
		m.Add(&Workload{Name: name, Labels: map[string]string{"app": "hello", "version": name}, Handler: h})
	}
	client := m.Add(&Workload{Name: "client", Labels: map[string]string{"app": "client"}})
	return m, client
}

func threeEchoes() map[string]http.Handler {
	return map[string]http.Handler{"a": echo("a"), "b": echo("b"), "c": echo("c")}
}

// TestStickyByHeaderStaysWhileWeightsMove: within a subset a session keeps its host, whatever share the subset has.
func TestStickyByHeaderStaysWhileWeightsMove(t *testing.T) {
	m, client := hello(t, threeEchoes())
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hello}
spec:
  host: hello
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {tableSize: 65537}}}}
  subsets:
  - {name: all, labels: {app: hello}}
  - {name: none, labels: {app: nobody}}
`)
	home := map[string]string{}
	for _, weight := range []int{100, 90, 50} {
		m.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: [hello]
  http:
  - route:
    - {destination: {host: hello, subset: all}, weight: %d}
    - {destination: {host: hello, subset: none}, weight: %d}
`, weight, 100-weight))
		m.Acked()
		served := 0
		for i := range 60 {
			user := fmt.Sprint("user-", i)
			resp, _ := call(t, client.Client(), "http://hello/", "x-user", user)
			host := resp.Header.Get("x-version")
			if resp.StatusCode != 200 {
				continue // the empty subset
			}
			served++
			if home[user] == "" {
				home[user] = host
			} else if home[user] != host {
				t.Errorf("at weight %d %s moved from %s to %s", weight, user, home[user], host)
			}
		}
		// 6 standard deviations of binomial(60, 0.5) are 23; at 0.9 they are 14.
		if want := 60 * weight / 100; served < want-23 || served > want+23 {
			t.Errorf("weight %d: %d of 60 requests were served", weight, served)
		}
	}
}

// TestConnectionsByWeight: a TCP port's connections are shared out by a rule.
func TestConnectionsByWeight(t *testing.T) {
	m, client := hello(t, threeEchoes())
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hello}
spec:
  host: hello
  subsets: [{name: a, labels: {version: a}}, {name: b, labels: {version: b}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: [hello]
  tcp:
  - match: [{port: 90}]
    route:
    - {destination: {host: hello, subset: a, port: {number: 90}}, weight: 75}
    - {destination: {host: hello, subset: b, port: {number: 90}}, weight: 25}
`)
	m.Acked()
	c := client.Client()
	c.Transport.(*http.Transport).DisableKeepAlives = true
	hosts := map[string]int{}
	for range 200 {
		resp, _ := call(t, c, "http://hello:90/")
		hosts[resp.Header.Get("x-version")]++
	}
	// 6 standard deviations of binomial(200, 0.25) are 37.
	if b := hosts["b"]; b < 13 || b > 87 || hosts["a"]+b != 200 {
		t.Errorf("75/25 gave %v", hosts)
	}
}

// TestMissingCAFileCostsItsHostOnly: what asks for a file that is not in the proxy's container fails and says so, until the file is
// there, and every other change is followed.
func TestMissingCAFileCostsItsHostOnly(t *testing.T) {
	m, client := hello(t, threeEchoes())
	m.Apply(`
apiVersion: v1
kind: Service
metadata: {name: other}
spec:
  selector: {app: hello}
  ports: [{name: http, port: 80, targetPort: 8080}]
`)
	dir := t.TempDir()
	m.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hello}
spec:
  host: hello
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: %s/cert.pem, sni: hello.example.com}}
`, dir))
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other}
spec:
  hosts: [other]
  http: [{headers: {response: {set: {x-rule: later}}}, route: [{destination: {host: other}}]}]
`)
	m.Acked()
	if resp, _ := call(t, client.Client(), "http://other/"); resp.StatusCode != 200 || resp.Header.Get("x-rule") != "later" {
		t.Errorf("other: %s, want the header of the later rule: %v", resp.Status, resp.Header)
	}
	if resp, body := call(t, client.Client(), "http://hello/"); resp.StatusCode != 503 || !strings.Contains(body, "cert.pem: no such file") {
		t.Errorf("hello without its file: %s: %s", resp.Status, body)
	}
	certificate(t, dir, "hello.example.com")
	// The handshake goes ahead now, and fails at hello, which speaks plaintext.
	if resp, body := call(t, client.Client(), "http://hello/"); resp.StatusCode != 503 || !strings.Contains(body, "tls to") {
		t.Errorf("hello with its file: %s: %s", resp.Status, body)
	}
}

// TestGatewayEndsTLS: a gateway shows the certificate in its files to those who ask for its host, speaks HTTP/2 to them, and refuses
// other names.
func TestGatewayEndsTLS(t *testing.T) {
	m, _ := hello(t, threeEchoes())
	dir := t.TempDir()
	roots := certificate(t, dir, "shop.example.com")
	gw := m.Add(&Workload{Name: "ingress", Namespace: "istio-system", Labels: map[string]string{"istio": "ingressgateway"}, Gateway: true})
	m.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: https, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: SIMPLE, serverCertificate: %[1]s/cert.pem, privateKey: %[1]s/key.pem}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [shop.example.com]
  gateways: [web]
  http: [{route: [{destination: {host: hello, port: {number: 80}}}]}]
`, dir))
	m.Acked()
	addr := net.JoinHostPort(gw.IP, "8443")
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "shop.example.com"}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+addr+"/", nil)
	must(t, err)
	req.Host = "shop.example.com"
	resp, err := tr.RoundTrip(req)
	must(t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Errorf("answer %s over %s", resp.Status, resp.Proto)
	}
	d := &tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "other.example.com"}}
	if c, err := d.DialContext(t.Context(), "tcp", addr); err == nil {
		_ = c.Close()
		t.Error("a name that no server has was answered")
	}
}

// certificate writes cert.pem and key.pem for a name.
func certificate(t *testing.T, dir, name string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	var cert bytes.Buffer
	must(t, pem.Encode(&cert, &pem.Block{Type: "CERTIFICATE", Bytes: der}))
	must(t, os.WriteFile(filepath.Join(dir, "cert.pem"), cert.Bytes(), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert.Bytes())
	return pool
}
