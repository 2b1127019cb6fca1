package local

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
func BenchmarkUpDown(b *testing.B) { benchUpDown(b, one("bench")) }

// BenchmarkUpDownTwo does so with a lab of two one-node clusters on networks of their own.
func BenchmarkUpDownTwo(b *testing.B) { benchUpDown(b, two("bench-two")) }

func benchUpDown(b *testing.B, spec clusters.Spec) {
	p := testProvider(b)
	var downs time.Duration
	downAtEnd(b, p, spec.Lab)
	steps := map[string]time.Duration{} // when the last cluster was there
	for b.Loop() {
		start := time.Now()
		var mu sync.Mutex
		latest := map[string]time.Duration{}
		_, _, err := p.Up(b.Context(), spec, func(e clusters.Event) {
			_, text, _ := strings.Cut(e.Detail, ": ")
			if name, _, ok := strings.Cut(text, " ready after"); ok {
				mu.Lock()
				defer mu.Unlock()
				latest[name] = time.Since(start)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		for name, d := range latest {
			steps[name] += d
		}
		start = time.Now()
		if err := p.Down(b.Context(), spec.Lab); err != nil {
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
		l, _, err := p.Up(b.Context(), one("bench-pod"), nil)
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
func BenchmarkAtRest(b *testing.B) { benchAtRest(b, one("bench-rest")) }

// BenchmarkAtRestTwo does so with a lab of two one-node clusters.
func BenchmarkAtRestTwo(b *testing.B) { benchAtRest(b, two("bench-rest-two")) }

func benchAtRest(b *testing.B, spec clusters.Spec) {
	p := testProvider(b)
	downAtEnd(b, p, spec.Lab)
	const mib = 1 << 20
	for b.Loop() {
		l, _, err := p.Up(b.Context(), spec, nil)
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
			m, err := memoryOf(pid)
			if err != nil {
				b.Fatal(err)
			}
			p, a := float64(m["Pss"])/mib, float64(m["Pss_Anon"])/mib
			pss, anon = pss+p, anon+a
			b.Logf("%-24s PSS %6.1f MiB, anonymous %6.1f MiB", commandOf(pid), p, a)
		}
		b.ReportMetric(pss, "PSS-MiB")
		b.ReportMetric(anon, "anon-MiB")
		if err := p.Down(b.Context(), spec.Lab); err != nil {
			b.Fatal(err)
		}
	}
}

func commandOf(pid int) string {
	line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	name, _, _ := strings.Cut(string(line), "\x00")
	return filepath.Base(name)
}
