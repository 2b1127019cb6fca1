package meshtest

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// counted is a service that counts its requests, with rules for it.
func counted(t *testing.T, rules string) (m *Mesh, client *Workload, seen *atomic.Int64) {
	t.Helper()
	seen = &atomic.Int64{}
	m, client = hello(t, map[string]http.Handler{"v1": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) })})
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: [hello]
  http:
` + rules)
	m.Acked()
	return m, client, seen
}

// TestAbort: the share of requests that a rule says is answered in place of the service, which does not see them, and the metrics say why.
func TestAbort(t *testing.T) {
	_, client, seen := counted(t, `
  - fault: {abort: {percentage: {value: 5}, httpStatus: 400}}
    retries: {attempts: 3, retryOn: "5xx,400"}
    headers: {response: {set: {x-rule: said}}}
    route: [{destination: {host: hello}}]
`)
	const n = 4000
	aborted := 0
	for range n {
		resp, body := call(t, client.Client(), "http://hello/")
		switch resp.StatusCode {
		case 200:
		case 400:
			aborted++
			if body != "fault filter abort" || resp.Header.Get("x-rule") != "said" || resp.Header.Get("server") != "istio-envoy" {
				t.Fatalf("%q %v", body, resp.Header)
			}
		default:
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	// Six standard deviations of binomial(4000, 0.05) are 83.
	if aborted < 200-83 || aborted > 200+83 {
		t.Errorf("%d of %d requests were aborted, want 200", aborted, n)
	}
	if got := seen.Load(); got != int64(n-aborted) {
		t.Errorf("the service saw %d requests, want %d", got, n-aborted)
	}
	for line := range strings.Lines(client.told(t, fmt.Sprintf(`response_flags="FI",.* %d\n`, aborted))) {
		if strings.HasPrefix(line, "istio_requests_total{") && strings.Contains(line, `response_flags="FI"`) {
			for _, want := range []string{`response_code="400"`, `destination_service="hello.default.svc.cluster.local"`, `reporter="source"`} {
				if !strings.Contains(line, want) {
					t.Errorf("no %s in %s", want, line)
				}
			}
		}
	}
}

// told waits until the proxy's metrics say what the expression wants: an exchange is counted after its answer.
func (w *Workload) told(t *testing.T, expr string) string {
	t.Helper()
	re, deadline := regexp.MustCompile(expr), time.Now().Add(10*time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		text := w.metrics(t)
		if re.MatchString(text) {
			return text
		}
		if time.Now().After(deadline) {
			t.Fatalf("no metric like %s in\n%s", expr, text)
		}
	}
}

// TestDelay: a request is held up for as long as the rule says, which its timeout does not count, and then goes on.
func TestDelay(t *testing.T) {
	_, client, seen := counted(t, `
  - match: [{headers: {end-user: {exact: jason}}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 0.3s}}
    timeout: 0.1s
    route: [{destination: {host: hello}}]
  - match: [{headers: {end-user: {exact: both}}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 0.3s}, abort: {percentage: {value: 100}, httpStatus: 503}}
    route: [{destination: {host: hello}}]
  - match: [{headers: {end-user: {exact: none}}}]
    fault: {delay: {percentage: {value: 0}, fixedDelay: 30s}, abort: {percentage: {value: 0}, httpStatus: 500}}
    route: [{destination: {host: hello}}]
  - route: [{destination: {host: hello}}]
`)
	counts := map[string]bool{}
	for user, want := range map[string]struct {
		status int
		held   bool // who should not be would be for 30 s
		flags  string
		count  int // of requests with these flags in the end
	}{"jason": {200, true, "DI", 1}, "both": {503, true, "DI,FI", 1}, "none": {200, false, "-", 2}, "": {200, false, "-", 2}} {
		begun, before := time.Now(), seen.Load()
		resp, _ := call(t, client.Client(), "http://hello/", "end-user", user)
		took := time.Since(begun)
		if resp.StatusCode != want.status || want.held && took < 300*time.Millisecond {
			t.Errorf("%q: status %d after %s, want %d, held up %t", user, resp.StatusCode, took, want.status, want.held)
		}
		if reached := seen.Load() > before; reached != (want.status == 200) {
			t.Errorf("%q: the service saw it: %t", user, reached)
		}
		counts[fmt.Sprintf(`istio_requests_total{.*response_flags="%s".*} %d\n`, want.flags, want.count)] = true
	}
	for expr := range counts {
		client.told(t, expr)
	}
}

// TestDelayEndsWithItsClient: whoever gives up while the proxy holds the request up leaves nothing behind, and the proxy stops at once.
func TestDelayEndsWithItsClient(t *testing.T) {
	_, client, seen := counted(t, `
  - fault: {delay: {percentage: {value: 100}, fixedDelay: 300s}}
    route: [{destination: {host: hello}}]
`)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://hello/", nil)
	must(t, err)
	if resp, err := client.Client().Do(req); err == nil {
		_ = resp.Body.Close()
		t.Fatal("an answer")
	}
	client.told(t, `response_flags="DI,DC"`)
	if seen.Load() != 0 {
		t.Error("the service saw the request")
	}
}

// TestGRPCAbort: gRPC clients get the status that the rule names.
func TestGRPCAbort(t *testing.T) {
	m, s, _, conn := shopping(t)
	m.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - fault: {abort: {percentage: {value: 100}, grpcStatus: RESOURCE_EXHAUSTED}}
    route: [{destination: {host: shop}}]
`)
	m.Acked()
	_, err := testpb.NewTestServiceClient(conn).UnaryCall(t.Context(), payload(1))
	if st := status.Convert(err); st.Code() != codes.ResourceExhausted || st.Message() != "fault filter abort" {
		t.Errorf("%v", err)
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("the server saw %d calls", n)
	}
}
