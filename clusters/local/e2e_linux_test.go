package local

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshproof/meshproof/clusters"
)

func TestMain(m *testing.M) {
	if Main() {
		return
	}
	os.Exit(m.Run())
}

func testProvider(t testing.TB) *Provider {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: nodes are made of namespaces")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{StateDir: t.TempDir(), CacheDir: filepath.Join(cache, "meshproof"), NodeSource: "node"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestUpDown(t *testing.T) {
	p := testProvider(t)
	t.Cleanup(func() {
		s := time.Now()
		if err := p.Down(context.Background(), "clu-t1"); err != nil {
			t.Error(err)
		}
		t.Log("down", time.Since(s))
	})
	s := time.Now()
	l, err := p.Up(t.Context(), clusters.Spec{Lab: "clu-t1", Clusters: []clusters.ClusterSpec{{Name: "east", Nodes: 1}}}, func(e clusters.Event) { t.Log(time.Since(s).Round(time.Millisecond), e.Phase, e.Detail) })
	if err != nil {
		t.Fatal(err)
	}
	_ = l
}
