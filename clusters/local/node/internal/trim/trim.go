// Package trim gives memory back that a component needed for its start only. A lab is idle most of the time, and several may
// run side by side: half of what a Kubernetes component has resident after its start it never touches again.
package trim

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	first = 12 * time.Second // the node is up by then
	text  = 20 * time.Second
	again = 5 * time.Minute
)

// Start trims this process once it has started, and now and then after that, until it ends. Its text goes more often than its heap is
// looked through: the one costs next to nothing, the other a collection of garbage. gogc is GOGC from the first time on, less than at
// the start, which wants speed; 0 keeps it.
func Start(gogc int) {
	go func() {
		time.Sleep(first)
		if gogc > 0 {
			debug.SetGCPercent(gogc)
		}
		for {
			debug.FreeOSMemory()
			for end := time.Now().Add(again); time.Now().Before(end); time.Sleep(text) {
				dropText()
			}
		}
	}()
}

// dropText unmaps the pages of the program file. What is needed again comes back from the page cache, a few microseconds
// each time; nothing is read from disk.
func dropText() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close() //nolint:errcheck // read only
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// 00400000-01a2b000 r-xp 00000000 fe:00 1234   /path
		f := strings.Fields(lines.Text())
		if len(f) < 6 || f[5] != exe || !strings.HasPrefix(f[1], "r") || f[1][1] == 'w' {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		// Read-only pages of a file hold nothing of ours, so that the kernel may forget them. Best effort.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
	}
}
