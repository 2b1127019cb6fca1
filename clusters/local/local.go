// Package local is the embedded provider: real, upstream Kubernetes whose nodes are sets of Linux namespaces. It needs no
// Docker, no registry and no network.
//
// A lab is an outer network namespace without a route out, a bridge in it, and one set of network, PID, mount, IPC and UTS
// namespaces a node. A keeper process (this program, executed again) owns them all: when it ends, however it ends, the nodes
// end with it. What has a name on the host is one folder and one cgroup a lab; Down removes both.
package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/meshproof/meshproof/clusters"
)

// Options say where a provider keeps its things. All fields but Prebuilt are required.
type Options struct {
	StateDir   string // one folder a lab, named after it
	CacheDir   string // node binaries and images, one folder a content hash; safe to share and to delete when no lab runs
	NodeSource string // folder of the Go module that node binaries are built from
	Prebuilt   string // folder of ready node binaries; empty means build from NodeSource
}

// Provider implements clusters.Provider.
type Provider struct{ opts Options }

var _ clusters.Provider = (*Provider)(nil)

// ErrUnsupported means that this host cannot run embedded clusters at all; the message names the provider to use instead.
var ErrUnsupported = errors.New("embedded clusters are not possible here")

// New returns the embedded provider. Nothing is created before Up. Relative folders are taken from the working directory.
func New(o Options) (*Provider, error) {
	if o.StateDir == "" || o.CacheDir == "" {
		return nil, errors.New("local provider: StateDir and CacheDir are required")
	}
	if o.NodeSource == "" && o.Prebuilt == "" {
		return nil, errors.New("local provider: give NodeSource (to build node binaries) or Prebuilt (a folder of them)")
	}
	for _, p := range []*string{&o.StateDir, &o.CacheDir, &o.NodeSource, &o.Prebuilt} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("local provider: folder %q: %w", *p, err)
		}
		*p = abs
	}
	return &Provider{opts: o}, nil
}

// Name is "local".
func (p *Provider) Name() string { return "local" }

func (p *Provider) labDir(lab string) string { return filepath.Join(p.opts.StateDir, lab) }

// cgroupName is unique on the host even where two state folders hold labs of one name.
func cgroupName(labDir string) string {
	sum := sha256.Sum256([]byte(labDir))
	return "meshproof/" + filepath.Base(labDir) + "-" + hex.EncodeToString(sum[:4])
}

func report(progress clusters.Progress, phase, format string, args ...any) {
	if progress != nil {
		progress(clusters.Event{Phase: phase, Detail: fmt.Sprintf(format, args...)})
	}
}

func done(progress clusters.Progress, phase, format string, args ...any) {
	if progress != nil {
		progress(clusters.Event{Phase: phase, Detail: fmt.Sprintf(format, args...), Done: true})
	}
}
