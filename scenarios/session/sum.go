package session

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/series"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
)

// streams adds up the recorded load, a Stream each, and leaves their latencies in the folder dir of the evidence.
func streams(rec *record.Recorder, dir string) ([]verdict.Stream, error) {
	by := map[string][]evidence.Request{}
	for _, r := range rec.Requests() {
		by[r.Stream] = append(by[r.Stream], r)
	}
	var out []verdict.Stream
	for _, s := range rec.Streams() {
		v, err := series.Stream(by[s.Name], series.Options{Name: s.Name, Target: s.Target, Rate: s.Rate})
		if err != nil {
			return nil, fmt.Errorf("sum up stream %s: %w", s.Name, err)
		}
		out = append(out, v)
		if err := writeLog(filepath.Join(dir, evidence.LatencyFile(s.Name)), by[s.Name]); err != nil {
			return nil, fmt.Errorf("latencies of stream %s: %w", s.Name, err)
		}
	}
	return out, nil
}

func writeLog(path string, requests []evidence.Request) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(series.Log(f, requests), f.Close())
}

// topology is the traffic that was seen: sources, gateway, workloads, and the answers on each way.
func topology(e *env.Env, rec *record.Recorder) verdict.Topology {
	type edge struct{ from, to string }
	kinds, pods, edges := map[string]string{}, map[string]map[string]bool{}, map[edge]int{}
	places := map[string]map[string]bool{} // clusters of a workload, where requests tell
	via, sources := map[string]string{}, map[string]string{}
	for _, s := range rec.Streams() {
		via[s.Name], sources[s.Name] = s.Via, s.Source
		kinds[s.Source] = "load"
		if s.Via != "" {
			kinds[s.Via] = "gateway"
		}
	}
	for _, r := range rec.Requests() {
		if r.Class != expect.OK {
			continue
		}
		to := strings.TrimSpace(r.App + " " + r.Version)
		kinds[to] = "workload"
		if pods[to] == nil {
			pods[to] = map[string]bool{}
		}
		pods[to][r.Pod] = true
		if r.Cluster != "" {
			if places[to] == nil {
				places[to] = map[string]bool{}
			}
			places[to][r.Cluster] = true
		}
		from := sources[r.Stream]
		if gw := via[r.Stream]; gw != "" {
			edges[edge{from, gw}]++
			from = gw
		}
		edges[edge{from, to}]++
	}
	var t verdict.Topology
	for id, kind := range kinds {
		n := verdict.TopologyNode{ID: id, Kind: kind, Pods: len(pods[id])}
		if kind != "load" || id != "runner" {
			n.Cluster = e.Cluster.Name()
		}
		if in := slices.Sorted(maps.Keys(places[id])); len(in) > 0 {
			n.Cluster = strings.Join(in, ", ")
		}
		t.Nodes = append(t.Nodes, n)
	}
	slices.SortFunc(t.Nodes, func(a, b verdict.TopologyNode) int { return cmp.Compare(a.ID, b.ID) })
	for ed, n := range edges {
		t.Edges = append(t.Edges, verdict.TopologyEdge{From: ed.from, To: ed.to, Requests: n})
	}
	slices.SortFunc(t.Edges, func(a, b verdict.TopologyEdge) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return t
}

// hostFacts are what a reader needs to place the figures.
func hostFacts() map[string]string {
	facts := map[string]string{
		"os": runtime.GOOS, "arch": runtime.GOARCH, "cpus": strconv.Itoa(runtime.NumCPU()), "go": runtime.Version(),
		"timezone": time.Now().Format("MST"),
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		facts["kernel"] = strings.TrimSpace(string(data))
	}
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
				if kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB")); err == nil {
					facts["memory"] = strconv.Itoa(kb/1024) + " MiB"
				}
			}
		}
	}
	return facts
}
