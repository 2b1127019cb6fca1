package agent_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/agent"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func generate(ctx context.Context, p loadgen.Profile, emit func(loadgen.Result)) error {
	g, err := httpgen.New(p, httpgen.Options{})
	if err != nil {
		return err
	}
	return g.Run(ctx, emit)
}

// serve starts an agent and returns a client for it.
func serve(t *testing.T, h http.Handler) (*http.Client, string) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.Client(), server.URL
}

func profile() loadgen.Profile {
	return loadgen.Profile{Name: "east-west", URL: "http://127.0.0.1:1", Rate: 10, Duration: time.Second}
}

// A run through an agent gives what the same profile gives here: every Result, with both times exact, and a summary that
// agrees with them.
func TestRunThroughAgent(t *testing.T) {
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Meshproof-App", "hello")
		w.Header().Set("X-Meshproof-Version", "v2")
		w.Header().Set("X-Meshproof-Pod", "hello-v2-abc")
		io.WriteString(w, "hi")
	}))
	defer target.Close()
	client, url := serve(t, agent.Handler(generate))
	p := profile()
	p.URL, p.Rate, p.Duration, p.ExpectApp = target.URL, 500, 400*time.Millisecond, "hello"

	seen := map[uint64]loadgen.Result{}
	trailer, err := agent.Run(t.Context(), client, url, p, func(r loadgen.Result) { seen[r.Seq] = r })
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != 200 || trailer.Results != 200 || trailer.Summary.Requests != 200 || trailer.Summary.Versions["hello/v2"] != 200 {
		t.Errorf("%d results, trailer %+v", len(seen), trailer)
	}
	for seq, r := range seen {
		if r.Class != loadgen.OK || r.Stream != "east-west" || r.Pod != "hello-v2-abc" || r.Sent.Before(r.Intended) || r.Done.Before(r.Sent) {
			t.Fatalf("%+v", r)
		}
		// Due times survive the way as text to the nanosecond, though the monotonic clock does not.
		if gap, want := r.Intended.Sub(seen[0].Intended), time.Duration(seq)*2*time.Millisecond; gap != want {
			t.Fatalf("request %d intended after %s, want %s", seq, gap, want)
		}
	}
}

// Results arrive while the load still runs.
func TestResultsStream(t *testing.T) {
	arrived := make(chan struct{})
	client, url := serve(t, agent.Handler(func(ctx context.Context, _ loadgen.Profile, emit func(loadgen.Result)) error {
		emit(loadgen.Result{Seq: 7, Class: loadgen.OK})
		select {
		case <-arrived:
			return nil
		case <-ctx.Done():
			return errors.New("the first result did not arrive during the run")
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // ends the run when nothing arrives
	defer cancel()
	_, err := agent.Run(ctx, client, url, profile(), func(r loadgen.Result) {
		if r.Seq == 7 {
			close(arrived)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// When the caller leaves, the run ends: the agent sends no more.
func TestCancelStopsTheAgent(t *testing.T) {
	ended := make(chan struct{})
	client, url := serve(t, agent.Handler(func(ctx context.Context, _ loadgen.Profile, emit func(loadgen.Result)) error {
		defer close(ended)
		emit(loadgen.Result{Class: loadgen.OK})
		<-ctx.Done()
		return nil
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := agent.Run(ctx, client, url, profile(), func(loadgen.Result) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	<-ended
}

// A reader that takes nothing does not hold the load up.
func TestSlowReader(t *testing.T) {
	const n = 20_000 // far more than the buffers between the two hold
	generated := make(chan struct{})
	client, url := serve(t, agent.Handler(func(_ context.Context, _ loadgen.Profile, emit func(loadgen.Result)) error {
		for seq := range uint64(n) {
			emit(loadgen.Result{Seq: seq, Class: loadgen.Status, Err: strings.Repeat("x", 300)})
		}
		close(generated)
		return nil
	}))
	var got atomic.Int64
	_, err := agent.Run(t.Context(), client, url, profile(), func(loadgen.Result) {
		<-generated
		got.Add(1)
	})
	if err != nil || got.Load() != n {
		t.Errorf("%d results, error %v", got.Load(), err)
	}
}

func TestErrors(t *testing.T) {
	answer := func(status int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
	}
	const result = `{"result":{"seq":0,"class":"ok"}}` + "\n"
	for _, test := range []struct {
		name string
		h    http.Handler
		want string
	}{
		{"the run fails", agent.Handler(func(context.Context, loadgen.Profile, func(loadgen.Result)) error {
			return errors.New("no route to the moon")
		}), "no route to the moon"},
		{"an agent that is none", answer(404, "nothing here"), "404 Not Found: nothing here"},
		{"cut before the trailer", answer(200, result), "without a trailer after 1 results"},
		{"cut in a line", answer(200, result+`{"res`), "after 1 results: unexpected EOF"},
		{"results lost", answer(200, result+`{"trailer":{"results":2}}`), "1 results arrived of 2"},
		{"nonsense", answer(200, `{}`), "neither result nor trailer"},
		{"another protocol", answer(200, `{"hello":1}`), `unknown field "hello"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, url := serve(t, test.h)
			err := agent.Remote{Client: client, BaseURL: url, Profile: profile()}.Run(t.Context(), func(loadgen.Result) {})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `profile "east-west"`) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestServerRefusesBadProfiles(t *testing.T) {
	client, url := serve(t, agent.Handler(func(context.Context, loadgen.Profile, func(loadgen.Result)) error {
		t.Error("it ran")
		return nil
	}))
	for body, want := range map[string]string{
		`{"name":"x","url":"nowhere"}`:  `url: "nowhere" is not absolute`,
		`{"name":"x","speed":1}`:        `unknown field "speed"`,
		`{`:                             "unexpected EOF",
		`{"name":"x","url":"http://a"}`: "duration: 0s",
	} {
		resp, err := client.Post(url+"/run", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), want) {
			t.Errorf("%s: %s %s, want %q in it", body, resp.Status, text, want)
		}
	}
	if _, err := agent.Run(t.Context(), client, url, loadgen.Profile{}, nil); err == nil {
		t.Error("the client posted an invalid profile")
	}
	resp, err := client.Get(url + "/ready")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("ready: %s", resp.Status)
	}
}
