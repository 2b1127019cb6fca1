package local

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters/local/fabric"
)

// runNode is process 1 of a node. It ends when the keeper does, and takes the whole node with it.
func runNode(labDir, name string) error {
	st, err := loadState(labDir)
	if err != nil {
		return err
	}
	c, n, err := st.node(name)
	if err != nil {
		return err
	}
	if err := joinCgroup(st.CGroup+"/"+n.Name+"/system", 0); err != nil {
		return err
	}
	if err := raiseFileLimit(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(n.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := mountNode(st, c, n); err != nil {
		return err
	}
	keeper := os.NewFile(3, "keeper")
	if _, err := io.ReadFull(keeper, make([]byte, 1)); err != nil {
		return fmt.Errorf("keeper ended: %w", err)
	}
	if err := fabric.ConfigureNode(c.site(), c.nodeIndex(n.Name)); err != nil {
		return err
	}
	s := newSupervisor(n.Name)
	go func() { // ends with the process
		_, _ = keeper.Read(make([]byte, 1))
		os.Exit(1)
	}()
	s.run(components(c, n))
	return errors.New("all components ended")
}

// raiseFileLimit lets pods open as many files as the host allows at all, as other container runtimes do.
func raiseFileLimit() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("file limit: %w", err)
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("file limit: %w", err)
	}
	return nil
}

// mountNode gives the node its own /proc, /run and /var and makes the lab's folders visible at fixed places.
func mountNode(st *labState, c *clusterState, n *nodeState) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	binds := []struct{ from, to string }{
		{st.Bin, inBin}, {n.Dir, inNode}, {c.pkiDir(), inPKI}, {filepath.Join(n.Dir, "var"), "/var"},
	}
	// The folders may lie below /run or /var: hold them open while those are covered.
	var fds []int
	for _, b := range binds {
		fd, err := unix.Open(b.from, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", b.from, err)
		}
		fds = append(fds, fd)
	}
	resolv, _ := filepath.EvalSymlinks("/etc/resolv.conf")
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /run: %w", err)
	}
	for i, b := range binds {
		if err := os.MkdirAll(b.to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fds[i]), b.to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on %s: %w", b.from, b.to, err)
		}
		if err := unix.Close(fds[i]); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	for from, to := range map[string]string{"/etc/resolv.conf": resolv, "/etc/hosts": "/etc/hosts"} {
		if err := coverFile(filepath.Join(inNode, from), to); err != nil {
			return err
		}
	}
	if err := coverSysctls(); err != nil {
		return err
	}
	// Pods that ask for mount propagation need shared mounts; the group is the node's own.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("shared mounts: %w", err)
	}
	return nil
}

// coverFile binds from over to. A target that does not exist, or went with the host's /run, is made there if /run is ours.
func coverFile(from, to string) error {
	if to == "" {
		return nil
	}
	if _, err := os.Stat(to); errors.Is(err, os.ErrNotExist) {
		if !strings.HasPrefix(to, "/run/") {
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", from, to, err)
	}
	return nil
}

// coverSysctls shows kubelet the values that it insists on, which belong to the whole host and must stay as they are.
func coverSysctls() error {
	for name, v := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		target := "/proc/sys/" + name
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue
		}
		file := "/run/meshproof/sysctl/" + name
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(v+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s: %w", target, err)
		}
	}
	return nil
}
