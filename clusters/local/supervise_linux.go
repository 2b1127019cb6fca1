package local

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// failure is failed.json in a node's folder: the first component that ended although it should not.
type failure struct {
	Node      string   `json:"node"`
	Component string   `json:"component"`
	Exit      string   `json:"exit"`
	Tail      []string `json:"tail"` // last lines of its log
}

func (f failure) Error() string {
	s := fmt.Sprintf("node %s: %s ended: %s", f.Node, f.Component, f.Exit)
	for _, l := range f.Tail {
		s += "\n  | " + l
	}
	return s
}

// supervisor starts a node's components and waits for every child, since it is process 1 of its PID namespace.
type supervisor struct {
	node string

	mu       sync.Mutex
	children map[int]component
	failed   bool
}

func newSupervisor(node string) *supervisor {
	return &supervisor{node: node, children: map[int]component{}}
}

// run starts all components, each as soon as what it waits for answers, and returns when no child is left.
func (s *supervisor) run(list []component) {
	var starting sync.WaitGroup
	for _, c := range list {
		if len(c.After) == 0 {
			if err := s.start(c); err != nil {
				s.fail(c, err.Error())
			}
			continue
		}
		starting.Go(func() {
			for _, a := range c.After {
				waitFor(context.Background(), a) // ends with the process
			}
			if err := s.start(c); err != nil {
				s.fail(c, err.Error())
			}
		})
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err == syscall.ECHILD:
			if s.idle() {
				starting.Wait()
				if s.idle() {
					return
				}
			}
		case err != nil:
			slog.Error("wait", "err", err)
			return
		default:
			s.ended(pid, status)
		}
	}
}

func logFile(component string) string { return inNode + "/logs/" + component + ".log" }

func (s *supervisor) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.children) == 0
}

func (s *supervisor) start(c component) error {
	log, err := os.OpenFile(logFile(c.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own copy
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close() // the child has its own copy
	// Under the lock, so that ended knows the child even if it is faster than we are.
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := os.StartProcess(filepath.Join(inBin, c.Name), append([]string{c.Name}, c.Args...), &os.ProcAttr{
		Dir: "/", Env: append(baseEnv(), c.Env...), Files: []*os.File{null, log, log}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	s.children[p.Pid] = c
	slog.Info("started", "component", c.Name, "pid", p.Pid)
	return p.Release()
}

func (s *supervisor) ended(pid int, status syscall.WaitStatus) {
	s.mu.Lock()
	c, known := s.children[pid]
	delete(s.children, pid)
	s.mu.Unlock()
	if !known { // an orphan that we inherited
		return
	}
	exit := fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		exit = "signal: " + status.Signal().String()
	}
	slog.Info("ended", "component", c.Name, "exit", exit)
	if !c.Once || status.ExitStatus() != 0 {
		s.fail(c, exit)
	}
}

// fail records the first failure; what follows is mostly its consequence.
func (s *supervisor) fail(c component, exit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed {
		return
	}
	s.failed = true
	f := failure{Node: s.node, Component: c.Name, Exit: exit, Tail: tail(logFile(c.Name))}
	if err := writeJSON(inNode+"/failed.json", f); err != nil {
		slog.Error("record failure", "component", c.Name, "exit", exit, "err", err)
	}
}

// tail returns the last lines of a log.
func tail(path string) []string {
	const lines, bytes = 12, 8 << 10
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close() // read only
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil
	}
	buf := make([]byte, min(size, bytes))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil {
		return nil
	}
	all := strings.Split(strings.TrimSpace(string(buf)), "\n")
	return all[max(0, len(all)-lines):]
}

// waitFor returns when the thing answers, or ctx ends. It has no deadline of its own: whoever waits for the lab has one, and a
// component that this waits for in vain has been reported.
func waitFor(ctx context.Context, what string) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, // liveness, nothing is believed
	}}
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for !answers(ctx, client, what) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func answers(ctx context.Context, client *http.Client, what string) bool {
	kind, addr, _ := strings.Cut(what, ":")
	if kind == "https" {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr, nil)
		if err != nil {
			return false
		}
		res, err := client.Do(req)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, kind, addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
