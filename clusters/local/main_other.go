//go:build !linux

package local

import (
	"context"
	"fmt"
	"runtime"

	"github.com/meshproof/meshproof/clusters"
)

// Main must be called first in main and in TestMain: it runs the lab's own processes and reports whether this was one.
func Main() (handled bool) { return false }

func unsupported() error {
	return fmt.Errorf("%w: they need Linux and this is %s: run on Linux, or use the provider kind, once meshproof up --help lists it", ErrUnsupported, runtime.GOOS)
}

// Up fails: nodes are Linux namespaces.
func (p *Provider) Up(context.Context, clusters.Spec, clusters.Progress) (clusters.Lab, bool, error) {
	return nil, false, unsupported()
}

// Open finds nothing.
func (p *Provider) Open(context.Context, string) (clusters.Lab, error) {
	return nil, fmt.Errorf("%w (%w)", clusters.ErrNotFound, unsupported())
}

// List is empty.
func (p *Provider) List(context.Context) ([]clusters.Status, error) { return nil, nil }

// Down has nothing to remove.
func (p *Provider) Down(context.Context, string) error { return nil }

// Check says that this is not Linux.
func (p *Provider) Check(context.Context) []clusters.Check {
	return []clusters.Check{{Name: "linux", State: "missing", Found: runtime.GOOS, Cure: "run on Linux, or use the provider kind, once meshproof up --help lists it"}}
}
