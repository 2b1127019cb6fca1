package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

// peerEnv makes the test binary serve as one of the proxies of BenchmarkServe, in a process of its own whose CPU time can be
// told apart: NAME LISTEN UPSTREAM, where the upstream is the control plane's address for meshproxy.
const peerEnv = "MESHPROXY_BENCH_PEER"

// servePeer is the child's side; false means that this process is no child.
func servePeer() bool {
	f := strings.Fields(os.Getenv(peerEnv))
	if len(f) != 3 {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if f[0] == "meshproxy" {
		if err := Run(ctx, Bootstrap{NodeID: "sidecar~127.0.0.1~bench.d~d.svc.cluster.local", Workload: conf.Workload{Name: "bench"},
			Discovery: client.DialOptions{Address: f[2]}}); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return true
	}
	to := &url.URL{Scheme: "http", Host: f[2]}
	s := &http.Server{Addr: f[1], ReadHeaderTimeout: time.Minute, Handler: &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	}}
	go func() {
		<-ctx.Done()
		_ = s.Close()
	}()
	_ = s.ListenAndServe()
	return true
}

// nginxConf is a plain reverse proxy with keep-alive to its upstream, as meshproxy has.
const nginxConf = `daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
  access_log off; keepalive_requests 1000000000; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  upstream up { server %[3]s; keepalive 256; keepalive_requests 1000000000; }
  server { listen %[2]s; location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; } }
}
`

// BenchmarkServe gives the same load to meshproxy, to net/http's ReverseProxy and, when it is installed, to nginx, each a
// process of its own, turn by turn within one run: so that a busy machine is as busy for each. It reports the CPU time of
// each proxy, user and system, for a request, and how many times nginx's or ReverseProxy's that of meshproxy is.
func BenchmarkServe(b *testing.B) {
	const conns, turn = 32, 4000
	up := echoServer(b)
	a := newADS(b)
	type peer struct {
		name, addr string
		pid        int
		cpu        time.Duration
	}
	var peers []*peer
	run := func(name, addr string, cmd *exec.Cmd) {
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
		})
		peers = append(peers, &peer{name: name, addr: addr, pid: cmd.Process.Pid})
	}
	child := func(name, addr, to string) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), peerEnv+"="+name+" "+addr+" "+to)
		run(name, addr, cmd)
	}
	mesh := freeAddr(b).String()
	a.put(canary(b, mesh, up, up, 90, 10))
	child("meshproxy", mesh, a.addr)
	child("reverseproxy", freeAddr(b).String(), up)
	if nginx, err := exec.LookPath("nginx"); err == nil {
		dir, addr := b.TempDir(), freeAddr(b).String()
		file := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(file, fmt.Appendf(nil, nginxConf, dir, addr, up), 0o600); err != nil {
			b.Fatal(err)
		}
		run("nginx", addr, exec.Command(nginx, "-c", file, "-p", dir))
	}
	for _, p := range peers {
		drive(b, p.addr, conns, 10*conns) // warm, and up
	}
	b.ResetTimer()
	n := 0
	for b.Loop() {
		for _, p := range peers {
			before := cpuTime(b, p.pid)
			drive(b, p.addr, conns, turn)
			p.cpu += cpuTime(b, p.pid) - before
		}
		n += turn
	}
	for _, p := range peers {
		b.ReportMetric(float64(p.cpu.Microseconds())/float64(n), p.name+"-cpu-us/req")
		if p.name != "meshproxy" && p.cpu > 0 {
			b.ReportMetric(float64(peers[0].cpu)/float64(p.cpu), "x-"+p.name)
		}
	}
}

// drive sends n requests over some connections, one after the other on each.
func drive(b *testing.B, addr string, conns, n int) {
	b.Helper()
	var wg sync.WaitGroup
	for range conns {
		c := dialUp(b, addr)
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			r := bufio.NewReader(c)
			for range n / conns {
				if err := exchange(c, r); err != nil {
					b.Errorf("%s: %v", addr, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// dialUp waits for the listener of a process that has just been started.
func dialUp(b *testing.B, addr string) net.Conn {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
	}
}

var benchRequest = []byte("GET /index.html?a=b HTTP/1.1\r\nHost: reviews:9080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")

// exchange is one request with an answer that has a Content-Length.
func exchange(c net.Conn, r *bufio.Reader) error {
	if _, err := c.Write(benchRequest); err != nil {
		return err
	}
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.Contains(line, []byte(" 200 ")) {
			return fmt.Errorf("answer %q", line)
		}
		if len(line) == 2 {
			break
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(name, []byte("content-length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("no content-length")
	}
	_, err := io.CopyN(io.Discard, r, int64(length))
	return err
}

// cpuTime is a process's own user and system time (proc(5)), at the kernel's 100 ticks a second.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skipf("this system has no /proc: %v", err)
	}
	f := strings.Fields(string(s[bytes.LastIndexByte(s, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		b.Fatalf("stat of %d: %q", pid, s)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
