package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters"
)

var _ clusters.Measured = (*Provider)(nil)

// Memory implements clusters.Measured.
func (p *Provider) Memory(_ context.Context, name string) (uint64, error) {
	if err := checkName("lab", name); err != nil {
		return 0, err
	}
	pids, err := cgroupProcs(cgroupName(p.labDir(name)))
	if err != nil {
		return 0, fmt.Errorf("lab %q: memory: %w", name, err)
	}
	var sum uint64
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) { // it has just ended
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("lab %q: memory of process %d: %w", name, pid, err)
		}
		sum += m["Pss"]
	}
	return sum, nil
}

// memoryOf returns the sizes of /proc/PID/smaps_rollup in bytes.
func memoryOf(pid int) (map[string]uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	out := map[string]uint64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if w := strings.Fields(lines.Text()); len(w) == 3 && w[2] == "kB" {
			kb, err := strconv.ParseUint(w[1], 10, 64)
			if err != nil {
				return nil, err
			}
			out[strings.TrimSuffix(w[0], ":")] = kb << 10
		}
	}
	return out, lines.Err()
}
