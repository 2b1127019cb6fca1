package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters/local/fabric"
)

// The keeper lives in the lab's outer network namespace and owns the nodes: each holds the read end of a pipe whose write
// end only the keeper has, and dies with it. Its API listeners were made by Up in the host's namespace and handed down.

// startKeeper starts the keeper, detached from this process's session, with this network namespace as its descriptor 4 and the
// listeners as 5, 6, ... The
// keeper does nothing before it is in the lab's cgroup and its name is written down, and ends if we die before that: there is
// no moment at which Down could miss it.
func startKeeper(st *labState, listeners []*os.File) (process, error) {
	logFile, err := os.OpenFile(filepath.Join(st.dir, "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return process{}, err
	}
	defer logFile.Close() // the keeper has its own copy
	if err := makeCgroup(st.CGroup + "/keeper"); err != nil {
		return process{}, err
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return process{}, err
	}
	defer home.Close() // the keeper has its own copy
	r, w, err := os.Pipe()
	if err != nil {
		return process{}, err
	}
	defer w.Close() // its end is the message
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{keeperName, st.dir}, Dir: "/", Env: append(baseEnv(), "GOGC=50"),
		Stdout: logFile, Stderr: logFile, ExtraFiles: append([]*os.File{r, home}, listeners...),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET},
	}
	err = errors.Join(cmd.Start(), r.Close())
	if err != nil {
		return process{}, fmt.Errorf("start the lab's keeper: %w", err)
	}
	p, err := findProcess(cmd.Process.Pid)
	if err != nil {
		return process{}, fmt.Errorf("keeper: %w", err)
	}
	if err := joinCgroup(st.CGroup+"/keeper", p.PID); err != nil {
		return process{}, err
	}
	if err := writeJSON(filepath.Join(st.dir, "keeper.json"), p); err != nil {
		return process{}, err
	}
	if _, err := w.Write([]byte{'g'}); err != nil {
		return process{}, fmt.Errorf("start the lab's keeper: %w", err)
	}
	return p, cmd.Process.Release()
}

// runKeeper keeps the lab until it is told to end, which it does not return from, or something fails to start.
func runKeeper(labDir string) error {
	starter := os.NewFile(3, "starter")
	if _, err := io.ReadFull(starter, make([]byte, 1)); err != nil {
		return fmt.Errorf("ended before it was told to go on: %w", err)
	}
	if err := starter.Close(); err != nil {
		return err
	}
	st, err := loadState(labDir)
	if err != nil {
		return err
	}
	fab, err := fabric.New(st.sites())
	if err != nil {
		return err
	}
	defer fab.Close() // the namespaces go with the process
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// Nothing waits for the goroutines below: they end with the process, which must end on any error, for the nodes live as long as
	// it does. Whoever makes the lab finds the reason in the log.
	links := newLinkSet(st, fab)
	defer links.close()
	control, err := listenControl(labDir)
	if err != nil {
		return err
	}
	go serveControl(ctx, control, controlHandler(links))
	home := os.NewFile(4, "host network")
	defer home.Close() // read only
	fd := uintptr(5)
	for i := range st.Clusters {
		c := &st.Clusters[i]
		l, err := net.FileListener(os.NewFile(fd, c.Name))
		if err != nil {
			return fmt.Errorf("cluster %q: listener handed down: %w", c.Name, err)
		}
		fd++
		go forward(ctx, l, fmt.Sprintf("%s:%d", c.Nodes[0].IP, apiPort), dialDirect)
		go balance(ctx, c, fab, home)
		for j := range c.Nodes {
			if err := startNode(st, c, &c.Nodes[j], fab); err != nil {
				return fmt.Errorf("node %q: %w", c.Nodes[j].Name, err)
			}
		}
	}
	debug.FreeOSMemory() // from here on only the forwarder runs
	<-ctx.Done()
	os.Exit(0) // the nodes go with the pipes
	return nil
}

// startNode starts a node's init in fresh namespaces and connects it to the cluster's switch.
func startNode(st *labState, c *clusterState, n *nodeState, fab *fabric.Fabric) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() // the node has its own copy
	logFile, err := os.OpenFile(filepath.Join(n.Dir, "logs", "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close() // the node has its own copy
	if err := makeCgroup(st.CGroup + "/" + n.Name + "/system"); err != nil {
		return err
	}
	if err := makeCgroup(st.CGroup + "/" + n.Name + "/pods"); err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{nodeName, st.dir, n.Name}, Dir: "/", Env: append(baseEnv(), "GOGC=50"),
		Stdout: logFile, Stderr: logFile, ExtraFiles: []*os.File{r},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		},
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	go func() { // ends with the node or the process
		err := cmd.Wait()
		slog.Error("node ended", "node", n.Name, "err", err)
		_ = w.Close()
		// The init wrote why, unless it was killed.
		path := filepath.Join(n.Dir, "failed.json")
		if _, statErr := os.Stat(path); errors.Is(statErr, os.ErrNotExist) {
			f := failure{Node: n.Name, Component: "init", Exit: fmt.Sprint(err), Tail: tail(logFile.Name())}
			if err := writeJSON(path, f); err != nil {
				slog.Error("record failure", "err", err)
			}
		}
	}()
	p, err := findProcess(pid)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(n.Dir, "init.json"), p); err != nil {
		return err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close() // read only
	if err := fab.Join(c.Index, c.nodeIndex(n.Name), ns); err != nil {
		return err
	}
	_, err = w.Write([]byte{'g'}) // go: eth0 is there
	return err
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func dialDirect(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	return d.DialContext(ctx, network, addr)
}

// forward carries every connection that l accepts to addr until l is closed, and returns when the last one is over.
func forward(ctx context.Context, l net.Listener, addr string, dial dialFunc) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		in, err := l.Accept()
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
			slog.Warn("accept", "err", err)
			pause := time.NewTimer(20 * time.Millisecond) // until somebody closes a file
			<-pause.C
			continue
		}
		if err != nil {
			return
		}
		wg.Go(func() {
			defer in.Close() // the stream is over
			out, err := dial(ctx, "tcp", addr)
			if err != nil {
				slog.Debug("forward", "to", addr, "err", err)
				return
			}
			defer out.Close() // the stream is over
			defer context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })()
			pipe(in, out)
		})
	}
}

// pipe copies both ways and passes half-closes on.
func pipe(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, d := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(d[0], d[1])
			if c, ok := d[0].(interface{ CloseWrite() error }); ok {
				_ = c.CloseWrite()
			} else {
				_ = d[0].Close()
			}
		})
	}
	wg.Wait()
}

// baseEnv is the whole environment of the lab's processes: nothing of the caller's leaks in.
func baseEnv() []string {
	return []string{"PATH=" + inBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
}
