package local

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseHierarchies(t *testing.T) {
	for name, c := range map[string]struct {
		mountinfo string
		want      []hierarchy
	}{
		"v2": {"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", []hierarchy{{"/sys/fs/cgroup", true}}},
		"v1 and hybrid": {"1 2 0:3 / /proc rw - proc proc rw\n" +
			"31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
			"32 30 0:28 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw\n" +
			"33 30 0:29 / /mnt/with\\040blank rw - cgroup cgroup rw,memory\n",
			[]hierarchy{{"/sys/fs/cgroup/cpu,cpuacct", false}, {"/sys/fs/cgroup/unified", true}, {"/mnt/with blank", false}}},
		"none": {"garbage\n\n1 2 - cgroup x\n", nil},
	} {
		if got := parseHierarchies(c.mountinfo); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestProcess(t *testing.T) {
	self, err := findProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() || self.reaped() {
		t.Error("this process is not alive")
	}
	other := process{PID: os.Getpid(), Start: self.Start + "0"}
	if other.alive() || !other.reaped() {
		t.Error("a process that had our number before is taken for us")
	}
	other.kill() // must not kill us
	if (process{}).alive() {
		t.Error("process 0 is alive")
	}
}

// TestCgroup makes, joins and removes a group for real.
func TestCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root: cgroups")
	}
	name := cgroupName(t.TempDir())
	if err := makeCgroup(name + "/a/b"); err != nil {
		t.Fatal(err)
	}
	if err := makeCgroup(name + "/a/c"); err != nil {
		t.Fatal(err)
	}
	pids, err := cgroupProcs(name)
	if err != nil || len(pids) != 0 {
		t.Errorf("a new group holds %v, %v", pids, err)
	}
	if left, err := removeCgroup(name, 0); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if left, err := removeCgroup(name, 0); err != nil || len(left) > 0 {
		t.Errorf("a second time: left %v, %v", left, err)
	}
}

func TestControllersOf(t *testing.T) {
	v2 := func(controllers string) hierarchy {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(controllers+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return hierarchy{path: dir, v2: true}
	}
	v1 := func(name string) hierarchy { return hierarchy{path: "/sys/fs/cgroup/" + name} }
	for name, c := range map[string]struct {
		hs    []hierarchy
		lacks []string
	}{
		"v1":              {[]hierarchy{v1("cpu,cpuacct"), v1("cpuset"), v1("memory"), v1("pids")}, nil},
		"v1 without pids": {[]hierarchy{v1("cpu"), v1("cpuset"), v1("memory")}, []string{"pids"}},
		"v2":              {[]hierarchy{v2("cpuset cpu io memory hugetlb pids")}, nil},
		"v2, all taken":   {[]hierarchy{v2("hugetlb")}, []string{"cpu", "cpuset", "memory", "pids"}},
		"hybrid":          {[]hierarchy{v1("cpu"), v1("cpuset"), v2("memory pids")}, nil},
		"nothing mounted": {nil, []string{"cpu", "cpuset", "memory", "pids"}},
	} {
		_, lacks, err := controllersOf(c.hs)
		if err != nil || !slices.Equal(lacks, c.lacks) {
			t.Errorf("%s: lacks %v, %v; want %v", name, lacks, err, c.lacks)
		}
	}
	if _, _, err := controllersOf([]hierarchy{{path: t.TempDir(), v2: true}}); err == nil {
		t.Error("a folder that is no hierarchy is taken for one")
	}
}
