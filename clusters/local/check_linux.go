package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local/fabric"
)

// What a host must have free: binaries and build cache before the first lab, state of a lab afterwards.
const (
	diskToBuild = 6 << 30
	diskToRun   = 1 << 30
)

// Check implements clusters.Provider. What it tries, namespaces and a cgroup, is gone when it returns.
func (p *Provider) Check(ctx context.Context) []clusters.Check {
	checks := []clusters.Check{checkKernel(), checkRoot(), checkNamespaces(ctx), checkCgroups()}
	for _, b := range []string{"runc", "nft"} {
		checks = append(checks, checkBinary(b))
	}
	checks = append(checks, checkNFTables(ctx), checkOverlay(), checkInotify())
	built := p.opts.Prebuilt != ""
	if !built {
		toolchain := p.checkToolchain(ctx)
		built = toolchain.Name == nodeBinariesCheck && toolchain.State == "ok"
		checks = append(checks, toolchain)
	} else {
		checks = append(checks, checkPrebuilt(p.opts.Prebuilt))
	}
	need := uint64(diskToRun)
	if !built {
		need = diskToBuild
	}
	return append(checks, checkDisk("disk for state", p.opts.StateDir, diskToRun), checkDisk("disk for cache", p.opts.CacheDir, need))
}

func ok(name, format string, args ...any) clusters.Check {
	return clusters.Check{Name: name, State: "ok", Found: fmt.Sprintf(format, args...)}
}

func missing(name, cure, format string, args ...any) clusters.Check {
	return clusters.Check{Name: name, State: "missing", Found: fmt.Sprintf(format, args...), Cure: cure}
}

func checkKernel() clusters.Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return missing("kernel", "run on Linux, or use the provider kind, once meshproof up --help lists it", "%v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 5 || major == 5 && minor < 14 {
		return missing("kernel", "boot Linux 5.14 or newer (it spreads load balancer addresses over nodes), or use the provider kind, once meshproof up --help lists it", "Linux %s", release)
	}
	return ok("kernel", "Linux %s", release)
}

func checkRoot() clusters.Check {
	if uid := os.Geteuid(); uid != 0 {
		return missing("root", "run with sudo, or use the provider kind, once meshproof up --help lists it", "uid %d", uid)
	}
	return ok("root", "uid 0")
}

// checkNamespaces makes what a node is made of, for real.
func checkNamespaces(ctx context.Context) clusters.Check {
	const name = "namespaces"
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env = []string{probeName, "probe"}, baseEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return missing(name, "allow root to create namespaces and mounts (a container needs --privileged), or use the provider kind, once meshproof up --help lists it",
			"%v %s", err, strings.TrimSpace(string(out)))
	}
	return ok(name, "network, PID, mount, IPC and UTS namespaces, bridge and veth can be made")
}

func checkCgroups() clusters.Check {
	const name = "cgroups"
	hs, err := hierarchies()
	if err != nil {
		return missing(name, "mount /proc", "%v", err)
	}
	version, lacks, err := controllersOf(hs)
	if err != nil {
		return missing(name, "mount cgroup2 on /sys/fs/cgroup", "%v", err)
	}
	if len(lacks) > 0 {
		return missing(name, cgroupCure, "%s without %s", version, strings.Join(lacks, ", "))
	}
	if os.Geteuid() != 0 {
		return ok(name, "%s", version)
	}
	if err := tryCgroup(); err != nil {
		return missing(name, "run on the host rather than in a container, or move the processes of its root cgroup into a child cgroup first", "%s: %v", version, err)
	}
	return ok(name, "%s, groups can be made", version)
}

// controllersOf tells the cgroup version that kubelet will go by, and which of the controllers that pods need are mounted nowhere.
func controllersOf(hs []hierarchy) (version string, lacks []string, err error) {
	// Hybrid hosts spread the controllers over both versions; kubelet goes by what is mounted on /sys/fs/cgroup.
	version = "v1"
	have := map[string]bool{}
	for _, h := range hs {
		if !h.v2 {
			for c := range strings.SplitSeq(filepath.Base(h.path), ",") {
				have[c] = true
			}
			continue
		}
		if h.path == "/sys/fs/cgroup" {
			version = "v2"
		}
		b, err := os.ReadFile(filepath.Join(h.path, "cgroup.controllers"))
		if err != nil {
			return version, nil, err
		}
		for c := range strings.FieldsSeq(string(b)) {
			have[c] = true
		}
	}
	for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !have[c] {
			lacks = append(lacks, c)
		}
	}
	return version, lacks, nil
}

// tryCgroup makes a group and looks whether it has the controllers: in a container's root cgroup the kernel may refuse.
func tryCgroup() (err error) {
	name := fmt.Sprintf("meshproof/probe-%d", os.Getpid())
	defer func() {
		_, e := removeCgroup(name, time.Second)
		err = errors.Join(err, e)
	}()
	if err := makeCgroup(name); err != nil {
		return err
	}
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if !h.v2 {
			continue
		}
		want, err1 := os.ReadFile(filepath.Join(h.path, "cgroup.controllers"))
		got, err2 := os.ReadFile(filepath.Join(h.path, name, "cgroup.controllers"))
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
			if slices.Contains(strings.Fields(string(want)), c) && !slices.Contains(strings.Fields(string(got)), c) {
				return fmt.Errorf("controller %s cannot be passed on to new groups", c)
			}
		}
	}
	return nil
}

func checkBinary(name string) clusters.Check {
	path, err := exec.LookPath(name)
	if err != nil {
		return missing(name, aptCure, "not on PATH")
	}
	return ok(name, "%s", path)
}

// checkNFTables lists tables, which fails where the kernel has none.
func checkNFTables(ctx context.Context) clusters.Check {
	const name = "nf_tables"
	if _, err := exec.LookPath("nft"); err != nil {
		return missing(name, aptCure, "not tried: there is no nft")
	}
	out, err := exec.CommandContext(ctx, "nft", "list", "tables").CombinedOutput()
	if err != nil {
		return missing(name, "modprobe nf_tables", "%v %s", err, strings.TrimSpace(string(out)))
	}
	return ok(name, "in the kernel")
}

func checkOverlay() clusters.Check {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil || !slices.Contains(strings.Fields(string(b)), "overlay") {
		return clusters.Check{Name: "overlayfs", State: "warning", Found: "not loaded; the kernel loads it on demand if it can", Cure: "modprobe overlay"}
	}
	return ok("overlayfs", "in the kernel")
}

// checkInotify looks at a limit that all processes of a user share; a node takes about 30.
func checkInotify() clusters.Check {
	const name, file, want = "inotify", "/proc/sys/fs/inotify/max_user_instances", 256
	b, err := os.ReadFile(file)
	if err != nil {
		return missing(name, "use a kernel with inotify", "%v", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < want {
		return clusters.Check{
			Name: name, State: "warning", Found: fmt.Sprintf("max_user_instances %d: enough for a few nodes at a time", n),
			Cure: fmt.Sprintf("sysctl -w fs.inotify.max_user_instances=%d", 2*want),
		}
	}
	return ok(name, "max_user_instances %d", n)
}

const nodeBinariesCheck = "node binaries"

// checkToolchain asks for Go only as long as there is something to build.
func (p *Provider) checkToolchain(ctx context.Context) clusters.Check {
	const name = "go"
	version, err := goCommand(ctx, p.opts.NodeSource, "env", "GOVERSION").Output()
	if err != nil {
		return missing(name, "install Go 1.26 from https://go.dev/dl, or give a folder of prebuilt node binaries", "%v", commandError("go env", err))
	}
	dir, err := p.binDir(ctx)
	if err != nil {
		return missing(nodeBinariesCheck, "give the folder of the node module", "%v", err)
	}
	if complete(dir) == nil {
		return ok(nodeBinariesCheck, "%s", dir)
	}
	return ok(name, "%s (builds the node binaries once, 5 to 10 minutes)", strings.TrimSpace(string(version)))
}

func checkPrebuilt(dir string) clusters.Check {
	if err := complete(dir); err != nil {
		return missing(nodeBinariesCheck, "give a folder that has "+strings.Join(nodeBinaries, " "), "%v", err)
	}
	return ok(nodeBinariesCheck, "%s", dir)
}

// checkDisk looks at the nearest folder that exists.
func checkDisk(name, dir string, need uint64) clusters.Check {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if errors.Is(err, fs.ErrNotExist) && dir != "/" {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return missing(name, "choose another folder", "%s: %v", dir, err)
		}
		free := s.Bavail * uint64(s.Bsize)
		found := strconv.FormatFloat(float64(free)/(1<<30), 'f', 1, 64) + " GiB free in " + dir
		if free < need {
			return missing(name, fmt.Sprintf("free %d GiB, or choose another folder", need>>30), "%s", found)
		}
		return ok(name, "%s", found)
	}
}

// runProbe is checkNamespaces' other half, inside the new namespaces.
func runProbe() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	return fabric.Probe()
}
