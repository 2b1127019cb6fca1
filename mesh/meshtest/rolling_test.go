package meshtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// TestRollingReplacement replaces every upstream proxy, again and again, while requests arrive at a fixed rate whatever
// becomes of those before: GET and POST by HTTP/1.1, and gRPC. Endpoints go at the same time as their proxies are told to
// end, so that clients still hold connections, and make new ones, when that begins. Not one request may fail. Each proxy has
// the grace that it has by default.
func TestRollingReplacement(t *testing.T) {
	const every, batch = 10 * time.Millisecond, 6
	want, least := int64(21_000), int64(20_000)
	if testing.Short() {
		want, least = 3_200, 3_000
	}
	m := New(t, services+"---"+grpcService)
	var serial int
	add := func(app string) *Workload {
		serial++
		w := &Workload{Name: fmt.Sprintf("%s-%d", app, serial), Labels: map[string]string{"app": app}, ServiceAccount: app, Grace: 5 * time.Second}
		if app == "shop" {
			g := grpc.NewServer()
			testpb.RegisterTestServiceServer(g, interop.NewTestServer())
			w.Serve = g
		} else {
			w.Handler = echo("v1")
		}
		return m.Add(w)
	}
	var running []*Workload
	for _, app := range []string{"reviews", "shop", "reviews", "shop"} {
		running = append(running, add(app))
	}
	front := m.Add(&Workload{Name: "front", Labels: map[string]string{"app": "front"}, ServiceAccount: "front"})
	m.Acked()
	c, shop := front.Client(), testpb.NewTestServiceClient(front.grpc(t, "shop:50051"))

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var requests sync.WaitGroup
	var sent, failed atomic.Int64
	one := func(i int) (err error) {
		switch i % 3 {
		case 0:
			_, err = shop.UnaryCall(ctx, payload(200))
			return err
		case 1:
			return okay(c.Get("http://reviews:9080/"))
		}
		return okay(c.Post("http://reviews:9080/", "text/plain", bytes.NewReader(make([]byte, 500))))
	}
	load := make(chan struct{})
	go func() {
		defer close(load)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for sent.Load() < want {
			<-tick.C
			for range batch {
				i := int(sent.Add(1))
				requests.Go(func() {
					if err := one(i); err != nil && failed.Add(1) <= 10 {
						t.Errorf("request %d: %v", i, err)
					}
				})
			}
		}
	}()
	replaced := 0
replacing:
	for {
		for i, old := range running {
			select {
			case <-load:
				break replacing
			default:
			}
			running[i] = add(old.Labels["app"])
			m.Acked()
			m.Remove(old)
			replaced++
		}
	}
	requests.Wait()
	t.Logf("%d requests over %d replacements, %d failed", sent.Load(), replaced, failed.Load())
	if sent.Load() < least || replaced == 0 || failed.Load() > 0 {
		t.Errorf("%d requests, %d replacements, %d failed: want at least %d, 1, and 0", sent.Load(), replaced, failed.Load(), least)
	}
}

func okay(p *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer func() { _ = p.Body.Close() }()
	b, err := io.ReadAll(p.Body)
	if err != nil || p.StatusCode != 200 {
		return fmt.Errorf("status %d, %w: %s", p.StatusCode, err, b)
	}
	return nil
}
