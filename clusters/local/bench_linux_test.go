package local

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/clustertest"
	"github.com/meshproof/meshproof/clusters/kube"
)

// downAtEnd removes the lab also when the benchmark gives up.
func downAtEnd(b *testing.B, p *Provider, lab string) {
	b.Helper()
	b.Cleanup(func() {
		if err := p.Down(context.WithoutCancel(b.Context()), lab); err != nil {
			b.Error(err)
		}
		noLeftovers(b, p, lab)
	})
}

// BenchmarkUpDown measures a one-node cluster from nothing to API, node and DNS ready, the parts of that, and its removal.
func BenchmarkUpDown(b *testing.B) {
	p := testProvider(b)
	var downs time.Duration
	downAtEnd(b, p, "bench")
	steps := map[string]time.Duration{}
	for b.Loop() {
		start := time.Now()
		_, err := p.Up(b.Context(), one("bench"), func(e clusters.Event) {
			if name, _, ok := strings.Cut(strings.TrimPrefix(e.Detail, "one: "), " ready after"); ok {
				steps[name] += time.Since(start)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		if err := p.Down(b.Context(), "bench"); err != nil {
			b.Fatal(err)
		}
		downs += time.Since(start)
	}
	n := float64(b.N)
	for name, metric := range map[string]string{"API server": "api-s", "nodes": "node-s", "cluster DNS": "dns-s"} {
		b.ReportMetric(steps[name].Seconds()/n, metric)
	}
	b.ReportMetric(downs.Seconds()/n, "down-s")
}

// BenchmarkFirstPod measures load of an image and a Deployment of three pods, from apply to Ready, on a warm cluster.
func BenchmarkFirstPod(b *testing.B) {
	p := testProvider(b)
	archive := clustertest.Archive(b)
	downAtEnd(b, p, "bench-pod")
	var load, ready time.Duration
	for b.Loop() {
		b.StopTimer()
		l, err := p.Up(b.Context(), one("bench-pod"), nil)
		if err != nil {
			b.Fatal(err)
		}
		c := l.Clusters()[0]
		cfg, err := c.RESTConfig()
		if err != nil {
			b.Fatal(err)
		}
		client, err := kube.New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		start := time.Now()
		if err := c.LoadImages(b.Context(), archive); err != nil {
			b.Fatal(err)
		}
		load += time.Since(start)
		start = time.Now()
		if _, err := client.Apply(b.Context(), "clustertest", clustertest.Echo()); err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		if err := client.WaitReady(ctx, "clustertest"); err != nil {
			b.Fatal(err)
		}
		cancel()
		ready += time.Since(start)
		b.StopTimer()
		if err := p.Down(b.Context(), "bench-pod"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(load.Seconds()/float64(b.N), "load-s")
	b.ReportMetric(ready.Seconds()/float64(b.N), "ready-s")
}

// BenchmarkAtRest reports the memory of all processes of a one-node cluster that has had nothing to do for 25 s: the sum of
// proportional set sizes, and of it the anonymous pages. The time per operation means nothing here.
func BenchmarkAtRest(b *testing.B) {
	p := testProvider(b)
	downAtEnd(b, p, "bench-rest")
	for b.Loop() {
		l, err := p.Up(b.Context(), one("bench-rest"), nil)
		if err != nil {
			b.Fatal(err)
		}
		timer := time.NewTimer(25 * time.Second)
		<-timer.C
		pids, err := cgroupProcs(l.(*lab).st.CGroup)
		if err != nil {
			b.Fatal(err)
		}
		var pss, anon float64
		for _, pid := range pids {
			m := rollup(b, pid)
			pss, anon = pss+m["Pss"], anon+m["Pss_Anon"]
			b.Logf("%-24s PSS %6.1f MiB, anonymous %6.1f MiB", commandOf(pid), m["Pss"], m["Pss_Anon"])
		}
		b.ReportMetric(pss, "PSS-MiB")
		b.ReportMetric(anon, "anon-MiB")
		if err := p.Down(b.Context(), "bench-rest"); err != nil {
			b.Fatal(err)
		}
	}
}

func commandOf(pid int) string {
	line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	name, _, _ := strings.Cut(string(line), "\x00")
	return filepath.Base(name)
}

// rollup returns the sizes of /proc/PID/smaps_rollup in MiB.
func rollup(b *testing.B, pid int) map[string]float64 {
	b.Helper()
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close() // read only
	out := map[string]float64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) == 3 && w[2] == "kB" {
			kb, err := strconv.ParseFloat(w[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			out[strings.TrimSuffix(w[0], ":")] = kb / 1024
		}
	}
	return out
}
