package meshtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const grpcService = `
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  ports: [{name: grpc, port: 50051, targetPort: 8080}]
`

// shop is gRPC's own interoperability server, which besides tells what it hears about its caller.
type shop struct {
	testpb.TestServiceServer
	cancelled chan struct{} // told when a call with this metadata is cancelled
	calls     atomic.Int64
	mu        sync.Mutex
	conns     map[string]bool // connections by the caller's address
	seen      metadata.MD
}

func (s *shop) note(ctx context.Context) {
	s.calls.Add(1)
	p, _ := peer.FromContext(ctx)
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[p.Addr.String()] = true
	s.seen = md
}

func (s *shop) UnaryCall(ctx context.Context, q *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	s.note(ctx)
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("hang")) > 0 {
		<-ctx.Done()
		s.cancelled <- struct{}{}
		return nil, ctx.Err()
	}
	return s.TestServiceServer.UnaryCall(ctx, q)
}

func shopping(t *testing.T) (*Mesh, *shop, *Workload, *grpc.ClientConn) {
	t.Helper()
	m := New(t, grpcService)
	s := &shop{TestServiceServer: interop.NewTestServer(), cancelled: make(chan struct{}, 10), conns: map[string]bool{}}
	g := grpc.NewServer()
	testpb.RegisterTestServiceServer(g, s)
	m.Add(&Workload{Name: "shop", Labels: map[string]string{"app": "shop"}, ServiceAccount: "shop", Serve: g})
	client := m.Add(&Workload{Name: "front", Labels: map[string]string{"app": "front"}, ServiceAccount: "front"})
	m.Acked()
	c := client.grpc(t, "shop:50051")
	return m, s, client, c
}

// grpc returns a client connection in the workload.
func (w *Workload) grpc(t *testing.T, target string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return w.Connect(ctx, addr) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestGRPC runs gRPC's own interoperability cases through two sidecars; a case that fails ends the test binary.
func TestGRPC(t *testing.T) {
	_, s, client, conn := shopping(t)
	c := testpb.NewTestServiceClient(conn)
	for name, f := range map[string]func(context.Context, testpb.TestServiceClient, ...grpc.CallOption){
		"empty_unary": interop.DoEmptyUnaryCall, "large_unary": interop.DoLargeUnaryCall, "client_streaming": interop.DoClientStreaming,
		"server_streaming": interop.DoServerStreaming, "ping_pong": interop.DoPingPong, "empty_stream": interop.DoEmptyStream,
		"timeout_on_sleeping_server": interop.DoTimeoutOnSleepingServer, "cancel_after_begin": interop.DoCancelAfterBegin,
		"cancel_after_first_response": interop.DoCancelAfterFirstResponse, "custom_metadata": interop.DoCustomMetadata,
		"status_code_and_message": interop.DoStatusCodeAndMessage, "special_status_message": interop.DoSpecialStatusMessage,
		"unimplemented_method": func(ctx context.Context, _ testpb.TestServiceClient, _ ...grpc.CallOption) {
			interop.DoUnimplementedMethod(ctx, conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			f(ctx, c)
			if ctx.Err() != nil {
				t.Error("out of time")
			}
		})
	}
	// The request came by mutual TLS, and HTTP/2 all the way: one connection carried every call.
	s.mu.Lock()
	if x := strings.Join(s.seen.Get("x-forwarded-client-cert"), ","); !strings.Contains(x, "URI=spiffe://cluster.local/ns/default/sa/front") {
		t.Errorf("x-forwarded-client-cert %q", x)
	}
	if len(s.conns) != 1 {
		t.Errorf("%d connections to the server, want 1", len(s.conns))
	}
	s.mu.Unlock()
	metrics := client.metrics(t)
	for _, want := range []string{`request_protocol="grpc",response_code="200",grpc_response_status="0"`, `grpc_response_status="2"`, `grpc_response_status="12"`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// metrics reads the proxy's own.
func (w *Workload) metrics(t *testing.T) string {
	t.Helper()
	p, err := http.Get("http://" + w.IP + ":15000/stats/prometheus")
	must(t, err)
	defer func() { _ = p.Body.Close() }()
	defer http.DefaultClient.CloseIdleConnections()
	b, err := io.ReadAll(p.Body)
	must(t, err)
	return string(b)
}

func payload(n int) *testpb.SimpleRequest {
	return &testpb.SimpleRequest{ResponseSize: int32(n), Payload: &testpb.Payload{Body: make([]byte, n)}}
}

func TestGRPCConcurrent(t *testing.T) {
	_, s, _, conn := shopping(t)
	c := testpb.NewTestServiceClient(conn)
	const n = 1000
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			size := 100 + i
			p, err := c.UnaryCall(t.Context(), payload(size))
			if err != nil || len(p.GetPayload().GetBody()) != size {
				t.Errorf("call %d: %d bytes, %v", i, len(p.GetPayload().GetBody()), err)
			}
		})
	}
	close(start)
	wg.Wait()
	if s.calls.Load() != n {
		t.Errorf("the server saw %d calls of %d", s.calls.Load(), n)
	}
}

func TestGRPCLarge(t *testing.T) {
	m, s, client, conn := shopping(t)
	_, _, _ = m, s, client
	c := testpb.NewTestServiceClient(conn)
	const size = 3 << 20 // below gRPC's own limit of a message
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p, err := c.UnaryCall(t.Context(), payload(size))
			if err != nil || len(p.GetPayload().GetBody()) != size {
				t.Errorf("%d bytes, %v", len(p.GetPayload().GetBody()), err)
			}
		})
	}
	wg.Wait()
}

// TestGRPCCancel: a call that its client gives up, or whose time is over, ends at the server as well.
func TestGRPCCancel(t *testing.T) {
	_, s, _, conn := shopping(t)
	c := testpb.NewTestServiceClient(conn)
	warm, end := context.WithTimeout(t.Context(), 20*time.Second)
	defer end()
	// The connections and their handshakes are not part of the calls' time.
	if _, err := c.UnaryCall(warm, payload(1), grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	for name, limit := range map[string]bool{"cancel": false, "deadline": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "hang", "1"))
			want := codes.Canceled
			if limit {
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				want = codes.DeadlineExceeded
			}
			defer cancel()
			before := s.calls.Load()
			done := make(chan error, 1)
			go func() {
				_, err := c.UnaryCall(ctx, payload(1))
				done <- err
			}()
			within, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			for s.calls.Load() == before {
				select {
				case err := <-done:
					t.Fatalf("the call ended before it reached the server: %v", err)
				case <-within.Done():
					t.Fatal("the call never reached the server")
				case <-time.After(time.Millisecond):
				}
			}
			if !limit {
				cancel()
			}
			if err := <-done; status.Code(err) != want {
				t.Errorf("the client got %v, want %v", err, want)
			}
			select {
			case <-s.cancelled:
			case <-time.After(5 * time.Second):
				t.Error("the server never heard of it")
			}
		})
	}
}

// TestGRPCLocalReply: what the proxies answer themselves is a gRPC status (no endpoint: Unavailable; a timeout of the route:
// Unavailable; a direct answer of 403: PermissionDenied).
func TestGRPCLocalReply(t *testing.T) {
	m, _, client, conn := shopping(t)
	c := testpb.NewTestServiceClient(conn)
	m.Apply(strings.ReplaceAll(strings.ReplaceAll(grpcService, "name: shop", "name: empty"), "app: shop", "app: nobody"))
	m.Acked()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := testpb.NewTestServiceClient(client.grpc(t, "empty:50051")).UnaryCall(ctx, payload(1))
	if st := status.Convert(err); st.Code() != codes.Unavailable || st.Message() != "no healthy upstream" {
		t.Errorf("no endpoint: %v", err)
	}
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /grpc.testing.TestService/EmptyCall}}]
    directResponse: {status: 403, body: {string: "not today\n"}}
  - timeout: 0.2s
    route: [{destination: {host: shop}}]
`)
	m.Acked()
	_, err = c.EmptyCall(ctx, &testpb.Empty{})
	if st := status.Convert(err); st.Code() != codes.PermissionDenied || st.Message() != "not today\n" {
		t.Errorf("direct response: %v", err)
	}
	_, err = c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "hang", "1"), payload(1))
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Errorf("route timeout: %v", err)
	}
}

// TestGRPCRetry: a head that says Unavailable is tried again, as Istio's default policy asks.
func TestGRPCRetry(t *testing.T) {
	m := New(t, grpcService)
	var n atomic.Int64
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		if n.Add(1)%3 != 0 {
			return status.Error(codes.Unavailable, "not yet")
		}
		return status.Error(codes.AlreadyExists, "third time")
	}))
	m.Add(&Workload{Name: "shop", Labels: map[string]string{"app": "shop"}, Serve: g})
	client := m.Add(&Workload{Name: "front", Labels: map[string]string{"app": "front"}})
	m.Acked()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := testpb.NewTestServiceClient(client.grpc(t, "shop:50051")).EmptyCall(ctx, &testpb.Empty{})
	if status.Code(err) != codes.AlreadyExists || n.Load() != 3 {
		t.Errorf("%v after %d tries", err, n.Load())
	}
}

// TestGRPCBidi keeps many streams open at once, each with messages both ways, one after the other.
func TestGRPCBidi(t *testing.T) {
	_, _, _, conn := shopping(t)
	c := testpb.NewTestServiceClient(conn)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			st, err := c.FullDuplexCall(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			for k := range 20 {
				size := int32(10 + 37*k)
				if err := st.Send(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: size}}}); err != nil {
					t.Error(fmt.Errorf("stream %d message %d: %w", i, k, err))
					return
				}
				p, err := st.Recv()
				if err != nil || len(p.GetPayload().GetBody()) != int(size) {
					t.Errorf("stream %d message %d: %d bytes, %v", i, k, len(p.GetPayload().GetBody()), err)
					return
				}
			}
			_ = st.CloseSend()
			if _, err := st.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("stream %d: end: %v", i, err)
			}
		})
	}
	wg.Wait()
}
