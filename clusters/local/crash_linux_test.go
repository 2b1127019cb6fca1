package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/clustertest"
)

// componentPID finds a running component of a lab by its name.
func componentPID(t *testing.T, l *lab, name string) int {
	t.Helper()
	pids, err := cgroupProcs(l.st.CGroup)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if arg0, _, _ := strings.Cut(string(line), "\x00"); arg0 == name {
			return pid
		}
	}
	t.Fatalf("no process %s in lab %s", name, l.Name())
	return 0
}

// brokenBecause waits until List shows the lab broken and the detail has the words.
func brokenBecause(t *testing.T, p *Provider, lab, words string) {
	t.Helper()
	clustertest.Eventually(t, 10*time.Second, func() error {
		list, err := p.List(t.Context())
		if err != nil {
			return err
		}
		for _, s := range list {
			if s.Lab != lab {
				continue
			}
			if s.State == "broken" && strings.Contains(s.Detail, words) {
				return nil
			}
			return fmt.Errorf("lab %s is %s: %s; want broken because of %q", lab, s.State, s.Detail, words)
		}
		return fmt.Errorf("lab %s is not listed", lab)
	})
}

func TestDownAfterKill(t *testing.T) {
	for victim, words := range map[string]string{
		keeperName: "keeper ended", nodeName: "init ended", "etcd": "etcd ended: signal: killed", "containerd": "containerd ended: signal: killed",
		"kubelet": "kubelet ended: signal: killed", "kube-apiserver": "kube-apiserver ended: signal: killed",
	} {
		t.Run(victim, func(t *testing.T) {
			p := testProvider(t)
			l := up(t, p, one("kill-"+strings.TrimPrefix(victim, "meshproof-")))
			if err := unix.Kill(componentPID(t, l, victim), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			brokenBecause(t, p, l.Name(), words)
			if _, err := p.Open(t.Context(), l.Name()); err == nil {
				t.Error("a broken lab can be opened")
			}
			if err := p.Down(t.Context(), l.Name()); err != nil {
				t.Error(err)
			}
			noLeftovers(t, p, l.Name())
		})
	}
}

// TestUpAfterKill remakes a lab whose keeper died.
func TestUpAfterKill(t *testing.T) {
	p := testProvider(t)
	l := up(t, p, one("remake"))
	l.keeper.kill()
	told := false
	again, made, err := p.Up(t.Context(), one("remake"), func(e clusters.Event) {
		told = told || strings.Contains(e.Detail, "lab is broken, making it anew: ") && strings.Contains(e.Detail, "keeper")
	})
	if err != nil {
		t.Fatal(err)
	}
	if !told || !made {
		t.Errorf("a broken lab is made anew: told %v, made %v", told, made)
	}
	if again.(*lab).keeper == l.keeper {
		t.Error("same keeper")
	}
	if err := again.(*lab).Broken(); err != nil {
		t.Error(err)
	}
}

// TestRunnerKilled kills the process that makes a lab while it does; another process then takes the lab down.
func TestRunnerKilled(t *testing.T) {
	p := testProvider(t)
	for _, after := range []string{"lab.json", "keeper.json", "clusters/one/nodes/one-1/init.json", "clusters/one/nodes/one-1/logs/kubelet.log"} {
		t.Run(filepath.Base(after), func(t *testing.T) {
			const name = "half"
			runner := startRunner(t, p, name)
			waitFile(t, filepath.Join(p.labDir(name), after))
			if err := runner.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = runner.Wait() // killed
			if err := p.Down(t.Context(), name); err != nil {
				t.Error(err)
			}
			noLeftovers(t, p, name)
		})
	}
}

// TestRunnerKilledThenUp finishes, or remakes, what a killed runner began.
func TestRunnerKilledThenUp(t *testing.T) {
	p := testProvider(t)
	runner := startRunner(t, p, "half")
	waitFile(t, filepath.Join(p.labDir("half"), "keeper.json"))
	if err := runner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = runner.Wait() // killed
	up(t, p, one("half"))
}

// TestInterrupt ends Up by its context, as Ctrl-C does.
func TestInterrupt(t *testing.T) {
	p := testProvider(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, _, err := p.Up(ctx, one("interrupt"), func(e clusters.Event) {
		if strings.HasPrefix(e.Detail, "starting") {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("up: %v, want context canceled", err)
	}
	noLeftovers(t, p, "interrupt")
}

// TestInterruptOfSecondUp leaves a lab alone that the interrupted call did not make.
func TestInterruptOfSecondUp(t *testing.T) {
	p := testProvider(t)
	l := up(t, p, one("again"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, _, err := p.Up(ctx, one("again"), func(e clusters.Event) {
		if e.Detail == "lab is there already" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("up: %v, want context canceled", err)
	}
	if err := l.Broken(); err != nil {
		t.Error(err)
	}
}

// TestBrokenComponent shows why a lab does not come up, quickly, and removes it.
func TestBrokenComponent(t *testing.T) {
	p := testProvider(t)
	bin, err := p.binaries(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	bad := t.TempDir()
	for _, b := range nodeBinaries {
		if err := os.Symlink(filepath.Join(bin, b), filepath.Join(bad, b)); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\necho the last line\nexit 7\n"
	for _, b := range []string{"kube-apiserver"} {
		if err := errors.Join(os.Remove(filepath.Join(bad, b)), os.WriteFile(filepath.Join(bad, b), []byte(script), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	p.opts.Prebuilt = bad
	_, _, err = p.Up(t.Context(), one("broken"), nil)
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver ended: exit status 7") || !strings.Contains(err.Error(), "the last line") {
		t.Errorf("up: %v, want the component, its exit status and its last line", err)
	}
	noLeftovers(t, p, "broken")
}

// TestNodeCannotStart shows why at once, though the nodes before it run already.
func TestNodeCannotStart(t *testing.T) {
	p := testProvider(t)
	spec := clusters.Spec{Lab: "unstarted", Clusters: []clusters.ClusterSpec{{Name: "one", Nodes: 2}}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, _, err := p.Up(ctx, spec, func(e clusters.Event) {
		if strings.HasPrefix(e.Detail, "starting") {
			if err := os.RemoveAll(filepath.Join(p.labDir(spec.Lab), "clusters/one/nodes/one-2/logs")); err != nil {
				t.Error(err)
			}
		}
	})
	if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `node "one-2"`) {
		t.Errorf("up: %v, want the node that could not start", err)
	}
	noLeftovers(t, p, spec.Lab)
}

// TestSideBySide runs two labs with the same cluster at the same addresses, and a lab of two clusters.
func TestSideBySide(t *testing.T) {
	p := testProvider(t)
	a, b := up(t, p, one("side-a")), up(t, p, clusters.Spec{Lab: "side-b", Clusters: []clusters.ClusterSpec{{Name: "one"}, {Name: "two"}}})
	if a.Clusters()[0].NodeIPs()[0] != b.Clusters()[0].NodeIPs()[0] {
		t.Error("labs are expected to have the same addresses")
	}
	if a.Clusters()[0].Kubeconfig() == b.Clusters()[0].Kubeconfig() {
		t.Error("two labs share a kubeconfig")
	}
	// The clusters of a lab share its network, labs do not.
	for addr, l := range map[string]*lab{"10.30.1.11:6443": b, "10.97.0.1:443": b} {
		conn, err := l.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Error(err)
			continue
		}
		_ = conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if conn, err := a.DialContext(ctx, "tcp", "10.30.1.11:6443"); err == nil {
		_ = conn.Close()
		t.Error("a lab reaches a node that only another lab has")
	}
	if err := p.Down(t.Context(), "side-a"); err != nil {
		t.Error(err)
	}
	noLeftovers(t, p, "side-a")
	if err := b.Broken(); err != nil {
		t.Errorf("taking one lab down broke the other: %v", err)
	}
	_, _, err := p.Up(t.Context(), one("side-b"), nil)
	if err == nil || !strings.Contains(err.Error(), "take it down first") {
		t.Errorf("up with another shape: %v", err)
	}
}

// runnerName is this test binary playing a runner that dies; see TestMain.
const runnerName = "meshproof-test-runner"

func startRunner(t *testing.T, p *Provider, name string) *exec.Cmd {
	t.Helper()
	opts, err := json.Marshal(p.opts)
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{runnerName, string(opts), name}, Stderr: os.Stderr, Env: os.Environ()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func testRunner(opts, name string) error {
	var p Provider
	if err := json.Unmarshal([]byte(opts), &p.opts); err != nil {
		return err
	}
	_, _, err := p.Up(context.Background(), one(name), nil)
	return err
}

func waitFile(t *testing.T, path string) {
	t.Helper()
	clustertest.Eventually(t, 30*time.Second, func() error {
		_, err := os.Stat(path)
		return err
	})
}
