package tcpproxy

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
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
