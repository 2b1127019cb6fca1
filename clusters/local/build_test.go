package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/clusters"
)

func TestNewErrors(t *testing.T) {
	for _, o := range []Options{{}, {StateDir: "/s", CacheDir: "/c"}, {StateDir: "/s", NodeSource: "/n"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

// TestBinDir changes one thing at a time: each has to lead to another folder.
func TestBinDir(t *testing.T) {
	src := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module x\n")
	write("go.sum", "")
	write("cmd/a/main.go", "package main")
	write("internal/b/b.go", "package b")
	p, err := New(Options{StateDir: t.TempDir(), CacheDir: t.TempDir(), NodeSource: src})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, change := range [][2]string{{"go.mod", "module x\n"}, {"go.mod", "module y\n"}, {"go.sum", "z"}, {"cmd/a/main.go", "package  main"}, {"internal/b/b.go", "package  b"}, {"cmd/c/main.go", "package main"}} {
		write(change[0], change[1])
		dir, err := p.binDir(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(seen, dir) {
			t.Errorf("the change of %s does not matter", change[0])
		}
		seen = append(seen, dir)
	}
	write("README.md", "not built")
	if dir, err := p.binDir(t.Context()); err != nil || dir != seen[len(seen)-1] {
		t.Errorf("a file that is not built changes the folder: %v", err)
	}
}

func TestPrebuilt(t *testing.T) {
	dir := t.TempDir()
	p, err := New(Options{StateDir: t.TempDir(), CacheDir: t.TempDir(), Prebuilt: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.binaries(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "etcd") {
		t.Errorf("an empty folder: %v, want the first missing binary", err)
	}
	for _, b := range nodeBinaries {
		if err := os.WriteFile(filepath.Join(dir, b), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := p.binaries(t.Context(), nil); err != nil || got != dir {
		t.Errorf("%s, %v", got, err)
	}
}

// TestWatch has a command that downloads and then fails.
func TestWatch(t *testing.T) {
	var events []string
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "echo go: downloading a/b v1 >&2; echo go: no such module >&2; exit 3")
	err := watch(t.Context(), cmd, 0, func(e clusters.Event) { events = append(events, e.Detail) })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "go: no such module") {
		t.Errorf("error %v, want the exit status and the last line", err)
	}
	if want := []string{"go: downloading a/b v1"}; !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
}

// TestLockTellsWhoWaits has two that want one lock.
func TestLockTellsWhoWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path, func() { t.Error("nobody else has it") })
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	again, err := lockFile(t.Context(), path, func() {
		told++
		unlock()
	})
	if err != nil || told != 1 {
		t.Fatalf("told %d times, error %v", told, err)
	}
	again()
}

func TestFollow(t *testing.T) {
	var events []string
	said := follow(strings.NewReader("go: downloading a/b v1\nk8s.io/api\nk8s.io/client-go\n# k8s.io/bad\nbad.go:1:2: no such thing\n"), 10,
		func(e clusters.Event) { events = append(events, e.Detail) })
	wantEvents := []string{"go: downloading a/b v1", "compiled 1 of at most 10 packages: k8s.io/api"}
	if !slices.Equal(events, wantEvents) {
		t.Errorf("events %q, want %q", events, wantEvents)
	}
	wantSaid := []string{"go: downloading a/b v1", "# k8s.io/bad", "bad.go:1:2: no such thing"}
	if !slices.Equal(said, wantSaid) {
		t.Errorf("said %q, want %q", said, wantSaid)
	}
}
