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
	log := newAddressLog()
	startLogged(t, log, "hello", "hello-1", "--control", "127.0.0.1:0")
	control, hello := log.address(t, "controlled"), "http://"+log.address(t, "serving")
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
	log, second := newAddressLog(), freeAddress(t)
	startLogged(t, log, "hello", "hello-1", "--control", "127.0.0.1:0", "--second", second)
	control := log.address(t, "controlled")
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
	for deadline := time.Now().Add(10 * time.Second); ; { // until it is closed
		if time.Now().After(deadline) {
			t.Fatal("the second address is still served after 10 s")
		}
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
