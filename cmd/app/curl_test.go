package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

func TestCurl(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Answer", "yes")
		if r.URL.Path == "/teapot" {
			w.WriteHeader(http.StatusTeapot)
		}
		fmt.Fprintf(w, "%s %s host=%s user=%s body=%s", r.Method, r.URL.Path, r.Host, r.Header.Get("End-User"), body)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for name, c := range map[string]struct {
		args []string
		want string
		err  string
	}{
		"plain, no scheme": {args: []string{"-sS", host + "/a"}, want: "GET /a host=" + host + " user= body="},
		"headers":          {args: []string{"-s", "-H", "end-user: jason", "-H", "Host: shop", srv.URL}, want: "GET / host=shop user=jason body="},
		"post":             {args: []string{"-d", "x=1", srv.URL + "/p"}, want: "POST /p host=" + host + " user= body=x=1"},
		"status":           {args: []string{"-s", "-o", filepath.Join(t.TempDir(), "out"), "-w", `%{http_code}\n`, srv.URL + "/teapot"}, want: "418\n"},
		"fail":             {args: []string{"-f", srv.URL + "/teapot"}, err: "418"},
		"bad header":       {args: []string{"-H", "nothing", srv.URL}, err: `header "nothing"`},
		"unknown flag":     {args: []string{"--http3", srv.URL}, err: "http3"},
		"refused":          {args: []string{"127.0.0.1:1"}, err: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			cmd := newCurl()
			cmd.SetArgs(c.args)
			cmd.SetOut(&out)
			cmd.SetErr(io.Discard)
			err := cmd.ExecuteContext(t.Context())
			if c.err == "" && (err != nil || out.String() != c.want) {
				t.Errorf("%q, %v; want %q", out.String(), err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v does not say %q", err, c.err)
			}
		})
	}
	var out bytes.Buffer
	cmd := newCurl()
	cmd.SetArgs([]string{"-i", srv.URL})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), "X-Answer: yes\n") || !strings.HasPrefix(out.String(), "HTTP/1.1 200 OK\n") {
		t.Errorf("-i: %q, %v", out.String(), err)
	}
}
