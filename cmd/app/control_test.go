package main

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshproof/meshproof/loadgen"
)

// What is posted to the control address shows in the app's answers, and ends with the app.
func TestControl(t *testing.T) {
	control := freeAddress(t)
	hello, _ := start(t, "hello", "hello-1", "--control", control)
	resp, err := http.Post("http://"+control+"/control", "application/json", strings.NewReader(`{"fail":{"status":503}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	for _, r := range drive(t, loadgen.Profile{Name: "told", URL: hello, Rate: 100, Duration: 50 * time.Millisecond}) {
		if r.Code != http.StatusServiceUnavailable || r.Pod != "hello-1" {
			t.Errorf("result %+v", r)
		}
	}
}

// The second address serves the same, and is closed while the app is told to refuse.
func TestSecondAddressRefuses(t *testing.T) {
	control, second := freeAddress(t), freeAddress(t)
	start(t, "hello", "hello-1", "--control", control, "--second", second)
	awaitListening(t, second)
	post := func(body string) {
		t.Helper()
		resp, err := http.Post("http://"+control+"/control", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.Get("http://" + second)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("second address: %v, %v", resp, err)
	}
	resp.Body.Close()
	post(`{"fail":{"refuse":true}}`)
	for { // until it is closed
		conn, err := net.Dial("tcp", second)
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	post(`{}`)
	awaitListening(t, second)
}
