package local

import (
	"os"
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
		t.Skip("needs root: cgroups")
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
