package local

import (
	"fmt"
	"os"
)

// The lab's own processes are this program, started under these names.
const (
	keeperName = "meshproof-lab-keeper"
	nodeName   = "meshproof-lab-node"
)

// Main must be called first in main and in TestMain. If this process was started as one of a lab's own processes, Main does
// that work and reports true when it is over; the caller then returns at once.
func Main() (handled bool) {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[0] == keeperName:
		err = runKeeper(os.Args[1])
	case len(os.Args) == 3 && os.Args[0] == nodeName:
		err = runNode(os.Args[1], os.Args[2])
	default:
		return false
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	return true
}
