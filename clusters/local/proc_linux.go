package local

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process names a process beyond the reuse of its number.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // clock ticks since boot
}

func findProcess(pid int) (process, error) {
	_, start, err := procStat(pid)
	return process{PID: pid, Start: start}, err
}

// procStat returns the state letter and the start time of a process.
func procStat(pid int) (state, start string, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", "", err
	}
	// The command name may hold anything, also parentheses and blanks: count from the last one.
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b)[i+1:])
	if i < 0 || len(f) < 20 {
		return "", "", fmt.Errorf("/proc/%d/stat: unknown form", pid)
	}
	return f[0], f[19], nil
}

// alive reports whether it is still this very process and no zombie.
func (p process) alive() bool {
	state, start, err := procStat(p.PID)
	return p.PID > 0 && err == nil && start == p.Start && state != "Z" && state != "X"
}

// reaped reports whether not even a zombie is there any more. A child of ours is reaped by asking.
func (p process) reaped() bool {
	_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	_, start, err := procStat(p.PID)
	return err != nil || start != p.Start
}

// kill ends the process unless its number belongs to another one by now.
func (p process) kill() {
	if p.alive() {
		_ = unix.Kill(p.PID, unix.SIGKILL)
	}
}

func zombie(pid int) bool {
	state, _, err := procStat(pid)
	return err != nil || state == "Z" || state == "X"
}

func processName(pid int) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}
