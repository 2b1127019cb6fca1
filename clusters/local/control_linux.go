package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshproof/meshproof/clusters"
)

// The keeper takes orders on a socket in the lab's folder, which only its owner can open.
const controlSocket = "keeper.sock"

// listenControl opens the keeper's socket. The folder's path may be longer than a socket's may, so it goes by descriptor.
func listenControl(labDir string) (net.Listener, error) {
	dir, err := os.Open(labDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close() // read only
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), controlSocket))
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// The name is gone with the descriptor; the file goes with the folder.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// controlHandler is what the keeper answers.
func controlHandler(links *linkSet) http.Handler {
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
	mux.HandleFunc("POST /links/{a}/{b}/cut", func(w http.ResponseWriter, r *http.Request) {
		reply(w, links.change(r.PathValue("a"), r.PathValue("b"), func(s *clusters.LinkState) { s.Cut = true }))
	})
	mux.HandleFunc("POST /links/{a}/{b}/slow", func(w http.ResponseWriter, r *http.Request) {
		how := &clusters.Impairment{}
		if err := json.NewDecoder(r.Body).Decode(how); err != nil {
			reply(w, err)
			return
		}
		reply(w, links.change(r.PathValue("a"), r.PathValue("b"), func(s *clusters.LinkState) { s.Slow = how }))
	})
	mux.HandleFunc("POST /links/{a}/{b}/heal", func(w http.ResponseWriter, r *http.Request) {
		reply(w, links.change(r.PathValue("a"), r.PathValue("b"), func(s *clusters.LinkState) { s.Cut, s.Slow = false, nil }))
	})
	mux.HandleFunc("GET /links", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(links.list())
	})
	return mux
}

// serveControl answers until ctx ends.
func serveControl(ctx context.Context, l net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	_ = s.Serve(l) // ErrServerClosed
}

// controlBudget bounds what the keeper may take for an order: it only has to change some devices.
const controlBudget = 10 * time.Second

// control gives the keeper an order; in is the body and out what it answers, each may be nil.
func (l *lab) control(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, controlBudget, fmt.Errorf("its keeper did not answer within %s", controlBudget))
	defer cancel()
	dir, err := os.Open(l.st.dir)
	if err != nil {
		return fmt.Errorf("lab %q: %w", l.st.Name, errNotRunning)
	}
	defer dir.Close() // read only
	socket := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), controlSocket)
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://keeper"+path, &body)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			err = errors.Join(errNotRunning, err)
		} else {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("lab %q: %w", l.st.Name, err)
	}
	defer res.Body.Close() // read only
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("lab %q: keeper: %w", l.st.Name, err)
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("lab %q: %s", l.st.Name, strings.TrimSpace(string(b)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
