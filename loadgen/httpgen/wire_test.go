package httpgen_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

// tap keeps what is written to a connection.
type tap struct {
	net.Conn
	mu  *sync.Mutex
	out *bytes.Buffer
}

func (c tap) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.out.Write(b)
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// Byte for byte what the profile says: nothing of vegeta's, and no trace of the empty body that keeps net/http from replaying.
func TestOnTheWire(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer server.Close()
	for _, test := range []struct {
		name string
		p    loadgen.Profile
		want []string
	}{
		{"GET", loadgen.Profile{URL: server.URL + "/productpage?u=a", Host: "shop.example.com", Header: http.Header{"end-user": {"jason"}}},
			[]string{"GET /productpage?u=a HTTP/1.1", "Host: shop.example.com", "User-Agent: meshproof-load", "End-User: jason", "", ""}},
		{"HEAD", loadgen.Profile{URL: server.URL + "/", Method: "HEAD", Host: "a", Header: http.Header{"User-Agent": {"me"}}},
			[]string{"HEAD / HTTP/1.1", "Host: a", "User-Agent: me", "", ""}},
		{"DELETE", loadgen.Profile{URL: server.URL + "/", Method: "DELETE", Host: "a"},
			[]string{"DELETE / HTTP/1.1", "Host: a", "User-Agent: meshproof-load", "", ""}},
		{"POST", loadgen.Profile{URL: server.URL + "/ratings/0", Method: "POST", Host: "a", Body: []byte(`{"a":1}`)},
			[]string{"POST /ratings/0 HTTP/1.1", "Host: a", "User-Agent: meshproof-load", "Content-Length: 7", "", `{"a":1}`}},
		{"empty POST", loadgen.Profile{URL: server.URL + "/", Method: "POST", Host: "a"},
			[]string{"POST / HTTP/1.1", "Host: a", "User-Agent: meshproof-load", "Content-Length: 0", "", ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var (
				mu  sync.Mutex
				out bytes.Buffer
			)
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return tap{conn, &mu, &out}, err
			}
			p := test.p
			p.Name, p.Rate, p.Duration = "wire", 1, time.Millisecond
			results := generate(t, p, httpgen.Options{DialContext: dial})
			if len(results) != 1 || results[0].Class != loadgen.OK || results[0].BytesOut != uint64(len(p.Body)) {
				t.Fatalf("%+v", results)
			}
			mu.Lock()
			defer mu.Unlock()
			if got, want := out.String(), strings.Join(test.want, "\r\n"); got != want {
				t.Errorf("sent\n%s\nwant\n%s", got, want)
			}
		})
	}
}
