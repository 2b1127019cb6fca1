package local

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The lab's own processes are this program, started under these names.
const (
	keeperName = "meshproof-lab-keeper"
	nodeName   = "meshproof-lab-node"
	probeName  = "meshproof-lab-probe"
)

// Main must be called first in main and in TestMain. If this process was started as one of a lab's own processes, Main does
// that work and reports true when it is over; the caller then returns at once.
func Main() (handled bool) {
	var err error
	if len(os.Args) > 1 && (os.Args[0] == keeperName || os.Args[0] == nodeName) {
		setProcessName(os.Args[0])
	}
	switch {
	case len(os.Args) == 2 && os.Args[0] == keeperName:
		err = runKeeper(os.Args[1])
	case len(os.Args) == 3 && os.Args[0] == nodeName:
		err = runNode(os.Args[1], os.Args[2])
	case len(os.Args) == 2 && os.Args[0] == probeName:
		err = runProbe()
	default:
		return false
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	return true
}

// setProcessName makes ps and top show what this is; the kernel would say "exe". Names are cut at 15 bytes.
func setProcessName(name string) {
	b := append([]byte(strings.TrimPrefix(name, "meshproof-")), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0) // only cosmetic
}
