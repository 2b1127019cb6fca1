package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a role until the test ends, or until the returned function ends it as SIGTERM would.
func start(t *testing.T, role, pod string, args ...string) (address string, stop func() error) {
	t.Helper()
	log := newAddressLog()
	stop = startLogged(t, log, role, pod, args...)
	return "http://" + log.address(t, "serving"), stop
}

func startLogged(t *testing.T, log addressLog, role, pod string, args ...string) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := newCommand(func(string) string { return "" }, func() (string, error) { return "testhost", nil })
	cmd.SetArgs(append([]string{role, "--listen", "127.0.0.1:0", "--pod", pod, "--drain", "100ms"}, args...))
	cmd.SetErr(log)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("%s ended with: %v", role, err)
		}
	})
	return stop
}

// addressLog takes a log and keeps, by message, the address that its first line of that message tells.
type addressLog map[string]chan string

func newAddressLog() addressLog {
	return addressLog{"serving": make(chan string, 1), "controlled": make(chan string, 1)}
}

var addressLine = regexp.MustCompile(`msg=(\w+) .*address=(\S+)`)

// Write is called once a line.
func (l addressLog) Write(line []byte) (int, error) {
	if m := addressLine.FindSubmatch(line); m != nil {
		select {
		case l[string(m[1])] <- string(m[2]):
		default:
		}
	}
	return len(line), nil
}

func (l addressLog) address(t *testing.T, msg string) string {
	t.Helper()
	select {
	case a := <-l[msg]:
		return a
	case <-time.After(10 * time.Second):
		t.Fatalf("no line %q with an address in the log within 10 s", msg)
		return ""
	}
}

// freeAddress is an address that nobody listens on, for what cannot say which one it took.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func awaitListening(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("nothing listens on %s: %v", address, err)
		case <-tick.C:
		}
	}
}

func drive(t *testing.T, p loadgen.Profile) []loadgen.Result {
	t.Helper()
	g, err := httpgen.New(p, httpgen.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var results []loadgen.Result
	if err := g.Run(t.Context(), func(r loadgen.Result) { results = append(results, r) }); err != nil {
		t.Fatal(err)
	}
	return results
}

// The four Bookinfo services on loopback under load: every request is answered, and says by whom.
func TestBookinfoUnderLoad(t *testing.T) {
	ratings, _ := start(t, "ratings", "ratings-1")
	reviews, _ := start(t, "reviews", "reviews-3", "--version", "v3", "--ratings", ratings)
	details, _ := start(t, "details", "details-1")
	page, _ := start(t, "productpage", "page-1", "--details", details, "--reviews", reviews, "--ratings", ratings)

	results := drive(t, loadgen.Profile{
		Name: "north-south", URL: page + "/productpage", Rate: 200, Duration: time.Second,
		ExpectApp: "productpage", ExpectBody: "<title>Simple Bookstore App</title>",
	})
	if len(results) != 200 {
		t.Errorf("%d results, want 200", len(results))
	}
	for _, r := range results {
		if r.Class != loadgen.OK || r.App != "productpage" || r.Version != "v1" || r.Pod != "page-1" {
			t.Fatalf("result %+v", r)
		}
	}

	resp, err := http.Get(page + "/productpage")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if want, got := "details/v1/details-1, reviews/v3/reviews-3, ratings/v1/ratings-1", resp.Header.Get("X-Meshproof-Via"); got != want {
		t.Errorf("via %q, want %q", got, want)
	}
	for _, want := range []string{`class="stars red" title="5 of 5">★★★★★`, "Reviews served by: <code>reviews-3</code>", "1234567890"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// An app that is told to end while load runs answers all of it during its drain: callers learn that it leaves, but none of
// their requests pays for it.
func TestDrainUnderLoadLosesNothing(t *testing.T) {
	hello, stop := start(t, "hello", "hello-1", "--version", "v2", "--drain", "3s")
	g, err := httpgen.New(loadgen.Profile{Name: "end", URL: hello, Rate: 500, Duration: 800 * time.Millisecond, ExpectApp: "hello"}, httpgen.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	answered := 0
	err = g.Run(t.Context(), func(r loadgen.Result) {
		if r.Class != loadgen.OK {
			t.Errorf("request %d at %s: %s: %s", r.Seq, r.Sent, r.Class, r.Err)
		}
		if answered++; answered == 100 {
			go func() { ended <- stop() }()
		}
	})
	if err != nil || answered != 400 {
		t.Fatalf("%d of 400 answered, error %v", answered, err)
	}
	resp, err := http.Get(hello + "/health")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || !resp.Close {
		t.Errorf("health of a draining app: %s, connection kept: %t", resp.Status, !resp.Close)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestBadFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"reviews", "--version", "v4"}, `reviews has no version "v4"`},
		{[]string{"productpage", "--details", "details:9080"}, `address of details: "details:9080"`},
		{[]string{"hello", "--listen", "nonsense"}, "listen on nonsense"},
		{[]string{"shop"}, `unknown command "shop"`},
		{[]string{"frontend", "--cart", "cartservice"}, `--cart: "cartservice" is not of the form host:port`},
		{[]string{"cartservice", "--listen", "127.0.0.1:0", "--health", "nonsense"}, "listen on nonsense"},
	} {
		t.Run(fmt.Sprint(test.args), func(t *testing.T) {
			cmd := newCommand(func(string) string { return "" }, func() (string, error) { return "testhost", nil })
			cmd.SetArgs(test.args)
			cmd.SetErr(io.Discard)
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}
