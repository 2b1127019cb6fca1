package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/image"
)

// upBudget bounds Up where the caller's context does not: a lab that is not there by then never will be.
const upBudget = 3 * time.Minute

// aptCure is the line that installs what a node takes from the operating system.
const aptCure = "apt-get install -y runc nftables"

const cgroupCure = "mount cgroup2 on /sys/fs/cgroup with these controllers, or use the provider kind, once meshproof up --help lists it"

// Up implements clusters.Provider. It needs root.
func (p *Provider) Up(ctx context.Context, spec clusters.Spec, progress clusters.Progress) (clusters.Lab, bool, error) {
	lab, made, err := p.up(ctx, spec, progress)
	if err != nil {
		return nil, false, fmt.Errorf("lab %q: %w", spec.Lab, err)
	}
	return lab, made, nil
}

func (p *Provider) up(ctx context.Context, spec clusters.Spec, progress clusters.Progress) (l *lab, made bool, err error) {
	dir := p.labDir(spec.Lab)
	if _, err := plan(dir, spec, "", time.Time{}); err != nil { // bad input is told before anything happens
		return nil, false, err
	}
	if os.Geteuid() != 0 {
		return nil, false, fmt.Errorf("%w: nodes are made of namespaces, which needs root: use sudo, or the provider kind, once meshproof up --help lists it", ErrUnsupported)
	}
	for _, b := range []string{"runc", "nft"} {
		if _, err := exec.LookPath(b); err != nil {
			return nil, false, fmt.Errorf("%w: run: %s", err, aptCure)
		}
	}
	// Without them nodes become Ready all the same, and no pod ever starts.
	hs, err := hierarchies()
	if err != nil {
		return nil, false, err
	}
	if version, lacks, err := controllersOf(hs); err != nil || len(lacks) > 0 {
		return nil, false, errors.Join(fmt.Errorf("%w: cgroup %s without %s: %s", ErrUnsupported, version, strings.Join(lacks, ", "), cgroupCure), err)
	}
	bin, err := p.binaries(ctx, progress)
	if err != nil {
		return nil, false, err
	}
	start := time.Now()
	unlock, err := lockLab(ctx, dir, func() { report(progress, "cluster", "waiting for another process that makes the lab or takes it down") })
	if err != nil {
		return nil, false, fmt.Errorf("wait for who is working on it: %w", err)
	}
	defer unlock()

	// The budget covers the making, not the waiting for a build or a lock.
	ctx, cancel := context.WithTimeout(ctx, upBudget)
	defer cancel()
	l, err = p.attach(spec.Lab)
	if err == nil && !l.st.sameShape(spec) {
		return nil, false, errors.New("it exists with other clusters or node counts: take it down first, or choose another name")
	}
	if err == nil {
		report(progress, "cluster", "lab is there already")
		if err = l.waitReady(ctx, progress); err == nil {
			done(progress, "cluster", "ready")
			return l, false, nil
		}
		if l.Broken() == nil { // not made by this call, so not removed by it
			return nil, false, err
		}
	}
	// There is none, or it is half made or broken.
	if !errors.Is(err, clusters.ErrNotFound) {
		why, _, _ := strings.Cut(err.Error(), "\n")
		report(progress, "cluster", "lab is broken, making it anew: %s", why)
	}
	if err := p.teardown(ctx, spec.Lab); err != nil {
		return nil, false, err
	}
	if l, err = p.make(ctx, spec, bin, progress); err != nil {
		return nil, false, p.giveUp(ctx, spec.Lab, err)
	}
	if err := l.waitReady(ctx, progress); err != nil {
		return nil, false, p.giveUp(ctx, spec.Lab, err)
	}
	done(progress, "cluster", "ready after %s", time.Since(start).Round(10*time.Millisecond))
	return l, true, nil
}

// giveUp removes a lab that did not come up.
func (p *Provider) giveUp(ctx context.Context, name string, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downBudget)
	defer cancel()
	return errors.Join(why, p.remove(ctx, name))
}

// make writes all of a lab's files and starts its keeper.
func (p *Provider) make(ctx context.Context, spec clusters.Spec, bin string, progress clusters.Progress) (*lab, error) {
	st, err := plan(p.labDir(spec.Lab), spec, bin, time.Now().UTC())
	if err != nil {
		return nil, err
	}
	var listeners []*os.File
	defer func() {
		for _, f := range listeners {
			_ = f.Close()
		}
	}()
	for i := range st.Clusters {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		f, err := l.(*net.TCPListener).File()
		st.Clusters[i].APIAddr = l.Addr().String()
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, err
		}
		listeners = append(listeners, f)
	}
	if err := st.save(); err != nil {
		return nil, err
	}
	pause := pauseArchive(p.opts.CacheDir, bin)
	if err := image.Archive(ctx, image.Spec{Ref: pauseImage, Binary: filepath.Join(bin, "pause"), User: "65535:65535"}, pause); err != nil {
		return nil, err
	}
	var g errgroup.Group
	for i := range st.Clusters {
		g.Go(func() error { return writeCluster(st, &st.Clusters[i], pause) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	report(progress, "cluster", "starting %d node(s)", nodeCount(st))
	keeper, err := startKeeper(st, listeners)
	if err != nil {
		return nil, err
	}
	return &lab{st: st, keeper: keeper}, nil
}

func writeCluster(st *labState, c *clusterState, pause string) error {
	if err := writePKI(c); err != nil {
		return fmt.Errorf("cluster %q: certificates: %w", c.Name, err)
	}
	archive, err := os.ReadFile(pause)
	if err != nil {
		return err
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if err := writeNode(c, n, st.CGroup); err != nil {
			return fmt.Errorf("node %q: %w", n.Name, err)
		}
		if err := writeFile(filepath.Join(n.Dir, "etc", "pause.tar"), archive, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func nodeCount(st *labState) (n int) {
	for _, c := range st.Clusters {
		n += len(c.Nodes)
	}
	return n
}

// attach finds a lab whose keeper and nodes all run.
func (p *Provider) attach(name string) (*lab, error) {
	dir := p.labDir(name)
	st, err := loadState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, clusters.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	l := &lab{st: st}
	if err := readJSON(filepath.Join(dir, "keeper.json"), &l.keeper); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return l, l.Broken()
}
