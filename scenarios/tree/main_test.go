package tree_test

import (
	"flag"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// child is the environment variable that makes the test's binary one of the processes that run a tree: there is one in each.
const child = "TREE_CHILD"

func TestMain(m *testing.M) {
	if name := os.Getenv(child); name != "" {
		flag.Parse() // ginkgo's
		processes[name]()
		return
	}
	goleak.VerifyTestMain(m)
}
