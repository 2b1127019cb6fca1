package local

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/clusters"
)

// TestListOfLabInTheMaking needs nothing that runs.
func TestListOfLabInTheMaking(t *testing.T) {
	p, err := New(Options{StateDir: t.TempDir(), CacheDir: t.TempDir(), Prebuilt: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lockLab(t.Context(), p.labDir("half"), nil)
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		list, err := p.List(t.Context())
		if err != nil || len(list) != 1 || list[0].State != want {
			t.Errorf("list %+v, error %v, want one lab that is %s", list, err, want)
		}
	}
	is("changing")
	if _, err := p.Open(t.Context(), "half"); !errors.Is(err, errChanging) {
		t.Errorf("open: %v, want %v", err, errChanging)
	}
	unlock()
	is("broken")
	if _, err := p.Open(t.Context(), "half"); !errors.Is(err, clusters.ErrNotFound) {
		t.Errorf("open: %v, want %v", err, clusters.ErrNotFound)
	}
}

// TestLogsOfBrokenLab needs nothing that runs: a lab whose keeper is gone tells why, and gives its logs away.
func TestLogsOfBrokenLab(t *testing.T) {
	st, err := plan(t.TempDir(), one("gone"), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	node := st.Clusters[0].Nodes[0]
	files := map[string]string{
		filepath.Join(st.dir, "keeper.log"):             "the last word\n",
		filepath.Join(node.Dir, "logs", "kubelet.log"):  "kubelet said\n",
		filepath.Join(node.Dir, "failed.json"):          "{}\n",
		filepath.Join(node.Dir, "logs", "init.log.tmp"): "not a log\n",
	}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{st: st}
	if err := l.Broken(); err == nil || !strings.Contains(err.Error(), "keeper ended") || !strings.Contains(err.Error(), "the last word") {
		t.Errorf("broken: %v, want the keeper and its last line", err)
	}
	to := filepath.Join(t.TempDir(), "logs")
	if err := l.Logs(to); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"keeper.log": "the last word\n", "one-1/kubelet.log": "kubelet said\n", "one-1/failed.json": "{}\n"} {
		if got, err := os.ReadFile(filepath.Join(to, path)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if list, _ := filepath.Glob(filepath.Join(to, "one-1", "*")); len(list) != 2 {
		t.Errorf("copied %v, want two files", list)
	}
}
