package main

import (
	"net/http"
	"strings"
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
