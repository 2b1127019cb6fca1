package local

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/clusters"
)

// nodeBinaries are what a node runs; all have to be in a prebuilt folder.
var nodeBinaries = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns", "containerd",
	"containerd-shim-runc-v2", "pause", "image-import", "ptp", "host-local", "loopback", "portmap",
}

const kubeVersion = "v1.36.3" // what clusters/local/node/go.mod requires

// buildFlags are part of the cache key. The version stamps make the components, and kubeadm elsewhere, tell the truth.
func buildFlags() []string {
	const pkg = "-X k8s.io/component-base/version."
	ld := "-s -w " + pkg + "gitVersion=" + kubeVersion + " " + pkg + "gitMajor=1 " + pkg + "gitMinor=36 " +
		pkg + "gitCommit=unknown " + pkg + "gitTreeState=clean"
	return []string{"-trimpath", "-buildvcs=false", "-tags", "no_btrfs,no_zfs,no_devmapper,no_aufs", "-ldflags", ld}
}

// Build makes sure that the node binaries are there, so that a later Up starts at once, and returns their folder.
func (p *Provider) Build(ctx context.Context, progress clusters.Progress) (dir string, err error) {
	return p.binaries(ctx, progress)
}

// binaries returns the folder of node binaries, building them first if nobody did yet.
func (p *Provider) binaries(ctx context.Context, progress clusters.Progress) (string, error) {
	if p.opts.Prebuilt != "" {
		if err := complete(p.opts.Prebuilt); err != nil {
			return "", fmt.Errorf("prebuilt node binaries: %w", err)
		}
		return p.opts.Prebuilt, nil
	}
	dir, err := p.binDir(ctx)
	if err != nil {
		return "", err
	}
	if complete(dir) == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Dir(dir)+"/.lock", func() { report(progress, "build", "waiting for another process that builds the node binaries") })
	if err != nil {
		return "", fmt.Errorf("wait for another build of the node binaries: %w", err)
	}
	defer unlock()
	if complete(dir) == nil { // somebody else built it meanwhile
		return dir, nil
	}
	if err := build(ctx, p.opts.NodeSource, dir, progress); err != nil {
		return "", fmt.Errorf("build node binaries: %w", err)
	}
	return dir, nil
}

func complete(dir string) error {
	for _, b := range nodeBinaries {
		if _, err := os.Stat(filepath.Join(dir, b)); err != nil {
			return err
		}
	}
	return nil
}

// binDir names the folder by the content of all that goes into the binaries.
func (p *Provider) binDir(ctx context.Context) (string, error) {
	src := p.opts.NodeSource
	version, err := goCommand(ctx, src, "env", "GOVERSION", "GOARCH").Output()
	if err != nil {
		return "", fmt.Errorf("the Go toolchain is needed to build node binaries once: %w", err)
	}
	files := []string{filepath.Join(src, "go.mod"), filepath.Join(src, "go.sum")}
	for _, dir := range []string{"cmd", "internal"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(src, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".go") {
				files = append(files, path)
			}
			return err
		}))
	}
	if err != nil {
		return "", fmt.Errorf("node source: %w", err)
	}
	slices.Sort(files)
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00", version, strings.Join(buildFlags(), "\x00"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("node source: %w", err)
		}
		rel, err := filepath.Rel(src, f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s\x00%d\x00", rel, len(b))
		h.Write(b)
	}
	return filepath.Join(p.opts.CacheDir, "node", hex.EncodeToString(h.Sum(nil))[:16]), nil
}

func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off", "GOFLAGS=-mod=readonly")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that go ends its compilers too
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// build compiles into a folder beside dir and renames it when all is there.
func build(ctx context.Context, src, dir string, progress clusters.Progress) (err error) {
	report(progress, "build", "node binaries: upstream Kubernetes %s, etcd, containerd, CoreDNS, CNI plugins; once, about 5 to 10 minutes on 2 cores when nothing is cached", kubeVersion)
	start := time.Now()
	var deps bytes.Buffer
	list := goCommand(ctx, src, append([]string{"list", "-deps"}, append(buildFlags()[:4:4], "./cmd/...", "tool")...)...)
	list.Stdout = &deps
	if err := watch(ctx, list, 0, progress); err != nil { // it downloads the modules, which may take minutes
		return err
	}
	total := bytes.Count(deps.Bytes(), []byte("\n"))

	stale, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "building-*")) // of builds that were killed: we hold the lock
	if err != nil {
		return err
	}
	for _, d := range stale {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	args := append([]string{"build", "-v"}, buildFlags()...)
	cmd := goCommand(ctx, src, append(args, "-o", tmp+"/", "./cmd/...", "tool")...)
	if err := watch(ctx, cmd, total, progress); err != nil {
		return err
	}
	if err := complete(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	done(progress, "build", "node binaries built in %s", time.Since(start).Round(time.Second))
	return nil
}

// watch runs a go command and reports what it says; the error has its last lines.
func watch(ctx context.Context, cmd *exec.Cmd, total int, progress clusters.Progress) error {
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said := follow(pipe, total, progress)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args[:2], " "), err, strings.Join(said, "\n"))
	}
	return nil
}

// follow turns the lines of go build -v, a package each, into progress and returns the last lines that are no packages.
func follow(r io.Reader, total int, progress clusters.Progress) (said []string) {
	compiled, last := 0, time.Time{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.ContainsAny(line, " \t") || strings.HasPrefix(line, "#") {
			said = append(said, line)
			said = said[max(0, len(said)-40):]
			if strings.HasPrefix(line, "go: downloading") {
				report(progress, "build", "%s", line)
			}
			continue
		}
		compiled++
		if time.Since(last) > time.Second {
			last = time.Now()
			if progress != nil {
				progress(clusters.Event{Phase: "build", Count: true, Detail: fmt.Sprintf("compiled %d of at most %d packages: %s", compiled, total, line)})
			}
		}
	}
	return said
}

func commandError(what string, err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s: %w\n%s", what, err, bytes.TrimSpace(exit.Stderr))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// pauseArchive names the cached archive of the pause image after the folder of binaries.
func pauseArchive(cache, bin string) string {
	sum := sha256.Sum256([]byte(bin))
	return filepath.Join(cache, "images", "pause-"+hex.EncodeToString(sum[:6])+"-"+runtime.GOARCH+".tar")
}
