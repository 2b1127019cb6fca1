package tcpproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestIdle: a connection on which one direction moves a byte now and then lives; one on which nothing moves ends.
func TestIdle(t *testing.T) {
	for name, oneWay := range map[string]bool{"towards the upstream": false, "towards the client": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, down := net.Pipe()
				up, server := net.Pipe()
				began := time.Now()
				ended := make(chan time.Time, 1)
				var rec telemetry.Record
				go func() {
					join(context.Background(), &filter.Conn{Conn: down, Prefix: []byte("hi")}, up, time.Minute, &rec)
					_ = down.Close()
					_ = up.Close()
					ended <- time.Now()
				}()
				buf := make([]byte, 2)
				if _, err := io.ReadFull(server, buf); err != nil || string(buf) != "hi" {
					t.Fatalf("%q, %v", buf, err)
				}
				from, to := client, server
				if oneWay {
					from, to = server, client
				}
				for range 10 { // 400 s in all, far beyond the idle time
					time.Sleep(40 * time.Second)
					go func() { _, _ = from.Write([]byte("x")) }()
					if _, err := io.ReadFull(to, buf[:1]); err != nil {
						t.Fatalf("after %v: %v", time.Since(began), err)
					}
				}
				quiet := time.Now()
				if d := (<-ended).Sub(quiet); d < 50*time.Second || d > 3*time.Minute {
					t.Errorf("ended after %v of silence, want about a minute", d)
				}
				_ = client.Close()
				_ = server.Close()
			})
		})
	}
}

// chain is one that stays.
type chain struct{ c *conf.FilterChain }

func (c chain) Current() *conf.FilterChain            { return c.c }
func (chain) Draining() bool                          { return false }
func (chain) OnDrain(func(last bool)) (forget func()) { return func() {} }

// recorder keeps the flags that connections opened and closed with.
type recorder struct{ opened, closed []telemetry.Flags }

func (r *recorder) TCPOpened(_ *conf.TCP, rec *telemetry.Record) {
	r.opened = append(r.opened, rec.Flags)
}
func (r *recorder) TCPClosed(_ *conf.TCP, rec *telemetry.Record) {
	r.closed = append(r.closed, rec.Flags)
}

// TestFlags: a connection that finds no endpoint says why, as soon as it counts as opened.
func TestFlags(t *testing.T) {
	endpoint := []conf.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.3:80"), Weight: 1}}
	for name, c := range map[string]struct {
		cluster   string
		endpoints []conf.Endpoint
		breakers  conf.Breakers
		want      telemetry.Flags
	}{
		"no cluster":    {"none", endpoint, conf.DefaultBreakers, telemetry.NoClusterFound},
		"no endpoint":   {"c", nil, conf.DefaultBreakers, telemetry.NoHealthyUpstream},
		"no connection": {"c", endpoint, conf.DefaultBreakers, telemetry.UpstreamConnectionFailure | telemetry.RetryLimitExceeded},
		"overflow":      {"c", endpoint, conf.Breakers{}, telemetry.UpstreamOverflow},
	} {
		t.Run(name, func(t *testing.T) {
			set := upstream.NewSet(nil, func(context.Context, netip.Addr, conf.Keepalive, string) (net.Conn, error) {
				return nil, errors.New("connection refused")
			})
			set.Apply(&conf.Config{Clusters: map[string]*conf.Cluster{"c": {Name: "c", Discovery: conf.EDS, Breakers: c.breakers,
				Endpoints: &conf.Endpoints{Name: "c", Localities: []conf.Locality{{Weight: 1, Endpoints: c.endpoints}}}}}})
			defer set.Apply(&conf.Config{})
			rec := &recorder{}
			p := &Proxy{Set: set, Recorder: rec}
			fc := &conf.FilterChain{TCP: &conf.TCP{Clusters: []conf.WeightedCluster{{Name: c.cluster, Weight: 1}}, TotalWeight: 1, MaxConnect: 2}}
			p.Serve(t.Context(), &filter.Conn{Chain: chain{fc}, AcceptedAt: time.Now()})
			if len(rec.opened) != 1 || rec.opened[0] != c.want || len(rec.closed) != 1 || rec.closed[0] != c.want {
				t.Errorf("opened with %v and closed with %v, want %v", rec.opened, rec.closed, c.want)
			}
		})
	}
}

// certified builds TLS that trusts everybody.
type certified struct{}

func (certified) Client(*conf.UpstreamTLS, []string) (*tls.Config, error) {
	return &tls.Config{InsecureSkipVerify: true}, nil
}

// TestEndOverTLS: when time is up, an endpoint that does not read is not waited for.
func TestEndOverTLS(t *testing.T) {
	s := httptest.NewTLSServer(nil) // for its certificate
	server := &tls.Config{Certificates: s.TLS.Certificates, SessionTicketsDisabled: true}
	s.Close()
	for name, halfClosed := range map[string]bool{"while the client writes": false, "after the client's end": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shaken := make(chan error, 1)
				set := upstream.NewSet(certified{}, func(context.Context, netip.Addr, conf.Keepalive, string) (net.Conn, error) {
					a, b := net.Pipe()
					t.Cleanup(func() { _ = b.Close() })
					go func() { shaken <- tls.Server(b, server).Handshake() }()
					return a, nil
				})
				set.Apply(&conf.Config{Clusters: map[string]*conf.Cluster{"c": {Name: "c", Discovery: conf.EDS, Breakers: conf.DefaultBreakers, TLS: &conf.UpstreamTLS{},
					Endpoints: &conf.Endpoints{Name: "c", Localities: []conf.Locality{{Weight: 1, Endpoints: []conf.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.3:80"), Weight: 1}}}}}}}})
				defer set.Apply(&conf.Config{})
				client, down := net.Pipe()
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				fc := &conf.FilterChain{TCP: &conf.TCP{Clusters: []conf.WeightedCluster{{Name: "c", Weight: 1}}, TotalWeight: 1, MaxConnect: 1}}
				go func() {
					(&Proxy{Set: set, Recorder: &recorder{}}).Serve(ctx, &filter.Conn{Conn: down, Chain: chain{fc}, AcceptedAt: time.Now()})
					close(ended)
				}()
				if err := <-shaken; err != nil {
					t.Fatal(err)
				}
				if halfClosed {
					_ = client.Close() // the farewell to the endpoint is under way
				} else {
					go func() { _, _ = client.Write([]byte("hello")) }()
				}
				synctest.Wait()
				began := time.Now()
				cancel()
				<-ended
				if took := time.Since(began); took != 0 {
					t.Errorf("ended after %v", took)
				}
				_ = client.Close()
				_ = down.Close()
			})
		})
	}
}
