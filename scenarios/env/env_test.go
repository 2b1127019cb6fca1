package env_test

import (
	"context"
	"testing"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// shared is a provider whose lab appears between an Open, which finds none, and the Up that waited for whoever made it.
type shared struct {
	clusters.Provider
	made bool // by the Up
	down int
}

func (s *shared) Open(context.Context, string) (clusters.Lab, error) {
	return nil, clusters.ErrNotFound
}

func (s *shared) Up(context.Context, clusters.Spec, clusters.Progress) (clusters.Lab, bool, error) {
	return bare{}, s.made, nil
}

func (s *shared) Down(context.Context, string) error {
	s.down++
	return nil
}

type bare struct{ clusters.Lab }

func TestDownLeavesTheLabOfAnother(t *testing.T) {
	for _, made := range []bool{false, true} {
		s := &shared{made: made}
		// There are no binaries, so it fails once the clusters are there.
		e, err := env.Up(t.Context(), env.Options{Lab: lab.Default(), Provider: s, Bin: t.TempDir(), Cache: t.TempDir(), Version: "test"})
		if err == nil || e == nil || e.Found == made {
			t.Fatalf("made %v: env %+v, error %v", made, e, err)
		}
		if err := e.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if removed := s.down > 0; removed != made {
			t.Errorf("made %v, removed %v", made, removed)
		}
	}
}

// weighed is a provider that measures.
type weighed struct{ shared }

func (*weighed) Memory(context.Context, string) (uint64, error) { return 7, nil }

func (bare) Name() string { return "bare" }

func TestMemory(t *testing.T) {
	for _, c := range []struct {
		provider clusters.Provider
		want     uint64
	}{{&shared{}, 0}, {&weighed{}, 7}} {
		e, _ := env.Up(t.Context(), env.Options{Lab: lab.Default(), Provider: c.provider, Bin: t.TempDir(), Cache: t.TempDir(), Version: "test"})
		if got, err := e.Memory(t.Context()); got != c.want || err != nil {
			t.Errorf("%T: %d bytes, error %v, want %d", c.provider, got, err, c.want)
		}
	}
}
