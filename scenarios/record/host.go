package record

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Host is what the host was short of over a time. Shares are of that time, from 0 to 1; -1 where the kernel does not tell.
type Host struct {
	CPUStall    float64       // some task waited for a CPU (PSI cpu some)
	CPUStallMax float64       // the worst second of it
	IOStall     float64       // some task waited for I/O (PSI io some)
	MemoryStall float64       // some task waited for memory (PSI memory some)
	Steal       float64       // the hypervisor ran something else
	Busy        float64       // of all CPUs
	ClockJump   time.Duration // the largest disagreement of wall and monotonic clock
	CPUs        int
}

// Detail is h as the detail of an event.
func (h Host) Detail() map[string]string {
	share := func(f float64) string {
		if f < 0 {
			return "unknown"
		}
		return strconv.FormatFloat(f, 'f', 4, 64)
	}
	return map[string]string{
		"cpuStall": share(h.CPUStall), "cpuStallMax": share(h.CPUStallMax), "ioStall": share(h.IOStall),
		"memoryStall": share(h.MemoryStall), "steal": share(h.Steal), "busy": share(h.Busy),
		"clockJump": h.ClockJump.String(), "cpus": strconv.Itoa(h.CPUs),
	}
}

// reading is one look at the host.
type reading struct {
	wall               time.Time // without a monotonic part
	mono               time.Time
	cpu, io, memory    float64 // seconds stalled since boot, -1 unknown
	total, idle, steal float64 // clock ticks since boot
	cpus               int
}

// WatchHost looks at the host's pressure every second until ctx ends and then reports on the whole time. proc is the folder
// of procfs.
func WatchHost(ctx context.Context, proc string) Host {
	first := read(proc)
	last := first
	var stallMax float64 = -1
	var jump time.Duration
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		done := false
		select {
		case <-tick.C:
		case <-ctx.Done():
			done = true
		}
		now := read(proc)
		elapsed := now.mono.Sub(last.mono)
		if elapsed > 200*time.Millisecond || !done {
			stallMax = max(stallMax, rate(last.cpu, now.cpu, elapsed))
		}
		if d := (now.wall.Sub(last.wall) - elapsed).Abs(); d > jump {
			jump = d
		}
		last = now
		if done {
			break
		}
	}
	elapsed := last.mono.Sub(first.mono)
	h := Host{
		CPUStall: rate(first.cpu, last.cpu, elapsed), CPUStallMax: stallMax,
		IOStall: rate(first.io, last.io, elapsed), MemoryStall: rate(first.memory, last.memory, elapsed),
		Steal: -1, Busy: -1, ClockJump: jump, CPUs: last.cpus,
	}
	if total := last.total - first.total; total > 0 {
		h.Steal = (last.steal - first.steal) / total
		h.Busy = 1 - (last.idle-first.idle)/total
	}
	return h
}

func rate(from, to float64, over time.Duration) float64 {
	if from < 0 || to < 0 || over <= 0 {
		return -1
	}
	return (to - from) / over.Seconds()
}

func read(proc string) reading {
	now := time.Now()
	r := reading{wall: now.Round(0), mono: now}
	r.cpu = pressure(filepath.Join(proc, "pressure", "cpu"))
	r.io = pressure(filepath.Join(proc, "pressure", "io"))
	r.memory = pressure(filepath.Join(proc, "pressure", "memory"))
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return r
	}
	r.total, r.idle, r.steal, r.cpus = parseStat(stat)
	return r
}

// pressure returns the seconds of "some" stall since boot.
func pressure(file string) float64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	us, err := parsePressure(data)
	if err != nil {
		return -1
	}
	return us / 1e6
}

// parsePressure reads the total of the line "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234", in microseconds.
func parsePressure(data []byte) (float64, error) {
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "some ") {
			continue
		}
		_, total, ok := strings.Cut(strings.TrimSpace(line), "total=")
		if !ok {
			break
		}
		return strconv.ParseFloat(total, 64)
	}
	return 0, fmt.Errorf("no line \"some ... total=\" in %q", data)
}

// parseStat reads /proc/stat: all time, idle (with I/O wait) and stolen time in ticks, and the number of CPUs.
func parseStat(data []byte) (total, idle, steal float64, cpus int) {
	s := bufio.NewScanner(bytes.NewReader(data))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) == 0 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		// user nice system idle iowait irq softirq steal guest guest_nice; guest is part of user already.
		for i, v := range f[1:min(len(f), 9)] {
			n, err := strconv.ParseFloat(v, 64)
			if err != nil {
				continue
			}
			total += n
			switch i {
			case 3, 4:
				idle += n
			case 7:
				steal = n
			}
		}
	}
	return total, idle, steal, cpus
}
