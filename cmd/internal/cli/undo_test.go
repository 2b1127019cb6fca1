package cli

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// imageless makes labs that fail as soon as their clusters are up.
type imageless struct {
	clusters.Provider
	made bool
	down []string
}

func (p *imageless) Up(context.Context, clusters.Spec, clusters.Progress) (clusters.Lab, bool, error) {
	return struct{ clusters.Lab }{}, p.made, nil
}

func (p *imageless) Down(ctx context.Context, lab string) error {
	p.down = append(p.down, lab)
	return ctx.Err()
}

func TestFailedUpIsUndone(t *testing.T) {
	for made, want := range map[bool]string{true: "was taken down again", false: "was up before and stays"} {
		p := &imageless{made: made}
		ctx, cancel := context.WithCancel(t.Context())
		e, err := env.Up(ctx, env.Options{Lab: lab.Default(), Provider: p, Bin: t.TempDir(), Cache: t.TempDir(), Version: "test"})
		cancel() // as an interrupt does
		got := undo(ctx, e, lab.Default().Name, err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("made %v: %v, want %v and %q", made, got, err, want)
		}
		if removed := len(p.down) > 0; removed != made {
			t.Errorf("made %v, removed %v", made, removed)
		}
	}
}
