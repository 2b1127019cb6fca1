package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters"
)

// downBudget bounds what Down waits for the kernel to finish with killed processes.
const downBudget = 20 * time.Second

// Down implements clusters.Provider.
func (p *Provider) Down(ctx context.Context, name string) error {
	if err := checkName("lab", name); err != nil {
		return err
	}
	dir := p.labDir(name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		// Somebody may have removed the folder by hand: processes and cgroups are found without it.
		return p.sweep(ctx, name)
	}
	unlock, err := lockLab(ctx, dir, nil)
	if err != nil {
		return fmt.Errorf("lab %q: wait for who is working on it: %w", name, err)
	}
	defer unlock()
	return p.remove(ctx, name)
}

// remove takes down a locked lab together with its folder.
func (p *Provider) remove(ctx context.Context, name string) error {
	if err := p.teardown(ctx, name); err != nil {
		return err
	}
	if err := os.RemoveAll(p.labDir(name)); err != nil {
		return &clusters.LeftoverError{Lab: name, Left: []string{"folder " + p.labDir(name)}, Err: err}
	}
	return nil
}

// teardown removes all of a lab but its folder itself, which is the lock.
func (p *Provider) teardown(ctx context.Context, name string) error {
	if err := p.sweep(ctx, name); err != nil {
		return err
	}
	dir := p.labDir(name)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	left := &clusters.LeftoverError{Lab: name}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := os.RemoveAll(path); err != nil {
			left.Left, left.Err = append(left.Left, "file "+path), err
		}
	}
	if len(left.Left) > 0 {
		return left
	}
	return nil
}

// sweep ends every process of the lab, which ends its namespaces and the mounts and nft tables in them, and removes mounts
// and cgroups. Processes are found by the lab's cgroup, so it does not matter who died before.
func (p *Provider) sweep(ctx context.Context, name string) error {
	dir := p.labDir(name)
	cgroup := cgroupName(dir)
	inits, err := filepath.Glob(filepath.Join(dir, "clusters", "*", "nodes", "*", "init.json"))
	if err != nil {
		return err
	}
	// Nodes first: the keeper, where it still lives, reaps them.
	awaitReaped(killNamed(inits))
	keeper := killNamed([]string{filepath.Join(dir, "keeper.json")})
	left := &clusters.LeftoverError{Lab: name}
	pids, err := killAll(ctx, cgroup)
	for _, pid := range pids {
		left.Left = append(left.Left, fmt.Sprintf("process %d (%s)", pid, processName(pid)))
	}
	left.Err = err
	awaitReaped(keeper)
	mounts, err := unmountBelow(dir)
	left.Left, left.Err = append(left.Left, mounts...), errors.Join(left.Err, err)
	if len(pids) == 0 {
		groups, err := removeCgroup(cgroup, 2*time.Second)
		left.Left, left.Err = append(left.Left, groups...), errors.Join(left.Err, err)
	}
	if len(left.Left) > 0 || left.Err != nil {
		return left
	}
	return nil
}

// killAll kills what is in the cgroup until nothing is, and returns what stayed.
func killAll(ctx context.Context, cgroup string) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downBudget) // half a teardown helps nobody
	defer cancel()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := cgroupProcs(cgroup)
		if err != nil || len(pids) == 0 {
			return pids, err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return pids, fmt.Errorf("processes did not end within %s", downBudget)
		case <-tick.C:
		}
	}
}

// killNamed kills the processes that the files name, and returns them.
func killNamed(files []string) (ps []process) {
	for _, f := range files {
		var p process
		if readJSON(f, &p) == nil && p.PID > 0 {
			p.kill()
			ps = append(ps, p)
		}
	}
	return ps
}

// awaitReaped gives the parents of dead processes a moment to take note. A zombie that a careless process 1 never reaps holds
// nothing, and is not the lab's.
func awaitReaped(ps []process) {
	deadline := time.Now().Add(200 * time.Millisecond)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for _, p := range ps {
		for !p.reaped() && time.Now().Before(deadline) {
			<-again.C
		}
	}
}

// unmountBelow detaches host mounts inside the lab's folder. The lab makes none, but what is there must not be deleted into.
func unmountBelow(dir string) (left []string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if point := unescapeMount(f[4]); strings.HasPrefix(point, dir+"/") {
			if e := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && !errors.Is(e, unix.EINVAL) {
				left, err = append(left, "mount "+point), e
			}
		}
	}
	return left, err
}

// Open implements clusters.Provider.
func (p *Provider) Open(_ context.Context, name string) (clusters.Lab, error) {
	if err := checkName("lab", name); err != nil {
		return nil, err
	}
	l, err := p.attach(name)
	if err != nil && locked(p.labDir(name)) {
		err = errChanging
	}
	if err != nil {
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	return l, nil
}

var errChanging = errors.New("somebody makes it or takes it down just now")

// List implements clusters.Provider.
func (p *Provider) List(context.Context) ([]clusters.Status, error) {
	entries, err := os.ReadDir(p.opts.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []clusters.Status
	for _, e := range entries {
		if !e.IsDir() || checkName("lab", e.Name()) != nil {
			continue
		}
		s := clusters.Status{Lab: e.Name(), Provider: p.Name(), State: "running"}
		if st, err := loadState(p.labDir(e.Name())); err == nil {
			s.Created = st.Created
			for _, c := range st.Clusters {
				s.Clusters = append(s.Clusters, c.Name)
			}
		}
		_, err := p.attach(e.Name())
		switch {
		case locked(p.labDir(e.Name())): // what there is of it says nothing
			s.State, s.Detail = "changing", errChanging.Error()
		case errors.Is(err, clusters.ErrNotFound):
			s.State, s.Detail = "broken", "half made"
		case err != nil:
			s.State, s.Detail = "broken", err.Error()
		}
		out = append(out, s)
	}
	return out, nil
}
