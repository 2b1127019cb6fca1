package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup tree: all of cgroup v2, or one controller of v1.
type hierarchy struct {
	path string
	v2   bool
}

// hierarchies lists what is mounted, from the kernel's table.
func hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(b)), nil
}

func parseHierarchies(mountinfo string) []hierarchy {
	var out []hierarchy
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		kind, _, _ := strings.Cut(after, " ")
		if !ok || len(f) < 5 || (kind != "cgroup" && kind != "cgroup2") {
			continue
		}
		out = append(out, hierarchy{path: unescapeMount(f[4]), v2: kind == "cgroup2"})
	}
	return out
}

// unescapeMount undoes the octal escapes of /proc/self/mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// makeCgroup makes the group name (a/b/c) in every hierarchy, with every controller usable in it.
func makeCgroup(name string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if err := h.make(name); err != nil {
			return fmt.Errorf("cgroup %s: %w", filepath.Join(h.path, name), err)
		}
	}
	return nil
}

func (h hierarchy) make(name string) error {
	dir := h.path
	for part := range strings.SplitSeq(name, "/") {
		if h.v2 {
			h.delegate(dir)
		}
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if h.v2 {
			continue
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // new v1 groups start without any
			if err := inherit(filepath.Join(parent, f), filepath.Join(dir, f)); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate turns every controller on for the children of a v2 group. One that cannot be is missed by kubelet, by name.
func (h hierarchy) delegate(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for c := range strings.FieldsSeq(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

func inherit(from, to string) error {
	have, err := os.ReadFile(to)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(strings.TrimSpace(string(have))) > 0) {
		return nil
	}
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// joinCgroup moves a process, and with it all that it starts later, into the group; 0 means this process.
func joinCgroup(name string, pid int) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if err := os.WriteFile(filepath.Join(h.path, name, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// cgroupProcs lists the processes of a group and of all below it, zombies left out.
func cgroupProcs(name string) ([]int, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	for _, h := range hs {
		err := filepath.WalkDir(filepath.Join(h.path, name), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return ignoreGone(err)
			}
			b, err := os.ReadFile(p)
			for f := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !zombie(pid) {
					seen[pid] = true
				}
			}
			return ignoreGone(err)
		})
		if err != nil {
			return nil, err
		}
	}
	var pids []int
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// removeCgroup removes the group from every hierarchy and returns the folders that stayed, with the last reason.
func removeCgroup(name string, budget time.Duration) (left []string, err error) {
	hs, err := hierarchies()
	if err != nil {
		return []string{"cgroup " + name}, err
	}
	deadline := time.Now().Add(budget)
	// The kernel empties groups of dead processes a little later.
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for ; ; <-again.C {
		left, err = nil, nil
		for _, h := range hs {
			dir := filepath.Join(h.path, name)
			if e := removeTree(dir); e != nil {
				left, err = append(left, "cgroup "+dir), e
			}
			_ = unix.Rmdir(filepath.Join(h.path, filepath.Dir(name))) // stays while another lab is in it
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left, err
		}
	}
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		return ignoreGone(fmt.Errorf("rmdir %s: %w", dir, err))
	}
	return nil
}
