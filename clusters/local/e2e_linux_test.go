package local

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/clustertest"
)

func TestMain(m *testing.M) {
	if Main() {
		return
	}
	if len(os.Args) == 3 && os.Args[0] == runnerName {
		if err := testRunner(os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// skip ends a test that this host cannot run: skipped, or failed where a run without it would prove nothing.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MESHPROOF_E2E") != "" {
		t.Fatal("MESHPROOF_E2E=required: " + why)
	}
	t.Skip(why)
}

func testProvider(t testing.TB) *Provider {
	t.Helper()
	if testing.Short() {
		skip(t, "a cluster takes seconds; run without -short")
	}
	if os.Geteuid() != 0 {
		skip(t, "needs root: nodes are made of namespaces")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{StateDir: t.TempDir(), CacheDir: filepath.Join(cache, "meshproof"), NodeSource: "node"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Check(t.Context()) {
		if c.State == "missing" {
			skip(t, fmt.Sprintf("this host lacks %s (%s)", c.Name, c.Cure))
		}
	}
	return p
}

// leftovers looks for a lab's things by other means than Down does: command lines, all mounts, all cgroups.
func leftovers(t testing.TB, p *Provider, lab string) (left []string) {
	t.Helper()
	dir := p.labDir(lab)
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range procs {
		pid := filepath.Base(filepath.Dir(f))
		if n, err := strconv.Atoi(pid); err != nil || zombie(n) { // holds nothing; the host's process 1 reaps when it likes
			continue
		}
		line, _ := os.ReadFile(f)
		mounts, _ := os.ReadFile("/proc/" + pid + "/mountinfo")
		groups, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		if strings.Contains(string(line)+string(mounts), dir) || strings.Contains(string(groups), cgroupName(dir)) {
			left = append(left, fmt.Sprintf("process %s: %q", pid, line))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		left = append(left, "mounts")
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, filepath.Base(cgroupName(dir))) {
			left = append(left, "cgroup "+path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); err == nil {
		left = append(left, "folder "+dir)
	}
	return left
}

func noLeftovers(t testing.TB, p *Provider, lab string) {
	t.Helper()
	for _, l := range leftovers(t, p, lab) {
		t.Errorf("left behind: %s", l)
	}
}

func one(lab string) clusters.Spec {
	return clusters.Spec{Lab: lab, Clusters: []clusters.ClusterSpec{{Name: "one", Nodes: 1}}}
}

func two(lab string) clusters.Spec {
	return clusters.Spec{Lab: lab, Clusters: []clusters.ClusterSpec{{Name: "one"}, {Name: "two", Network: "network2"}}}
}

func up(t testing.TB, p *Provider, spec clusters.Spec) *lab {
	t.Helper()
	t.Cleanup(func() {
		if err := p.Down(context.WithoutCancel(t.Context()), spec.Lab); err != nil {
			t.Error(err)
		}
		noLeftovers(t, p, spec.Lab)
	})
	l, _, err := p.Up(t.Context(), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*lab)
}

func TestSuite(t *testing.T) {
	for _, nodes := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			p := testProvider(t)
			name := fmt.Sprintf("suite-%d", nodes)
			clustertest.Run(t, p, name, nodes, func() []string { return leftovers(t, p, name) })
		})
	}
}

func TestNetworks(t *testing.T) {
	p := testProvider(t)
	clustertest.RunNetworks(t, p, "nets", func(lab string) []string { return leftovers(t, p, lab) })
}
