package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

// The agent runs a profile against a real target, and when it is told to end in the middle of the next, its caller hears so.
func TestServe(t *testing.T) {
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hi") }))
	defer target.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()

	ctx, terminate := context.WithCancel(t.Context())
	defer terminate()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, ln) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	budget, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for get(budget, client, "http://"+address+"/ready") != nil {
		if budget.Err() != nil {
			t.Fatal("never ready")
		}
	}

	p := loadgen.Profile{Name: "inside", URL: target.URL, Rate: 200, Duration: 100 * time.Millisecond}
	trailer, err := agent.Run(t.Context(), client, "http://"+address, p, func(loadgen.Result) {})
	if err != nil || trailer.Summary.Requests != 20 || trailer.Summary.Failed != 0 {
		t.Errorf("trailer %+v, error %v", trailer, err)
	}

	p.Duration = time.Hour
	_, err = agent.Run(t.Context(), client, "http://"+address, p, func(r loadgen.Result) {
		if r.Seq == 5 {
			terminate()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("a run that its agent left: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
