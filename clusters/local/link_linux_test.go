package local

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/clusters"
)

// wire is a fabric of one link; it refuses to be parted or joined while it is told to.
type wire struct{ connected, refuse bool }

func (w *wire) Connect(_, _ int, connected bool) error {
	if w.refuse {
		w.refuse = false
		return errors.New("refused")
	}
	w.connected = connected
	return nil
}

func TestFailedLinkChange(t *testing.T) {
	st, err := plan(t.TempDir(), two("links"), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cut := func(s *clusters.LinkState) { s.Cut = true }
	heal := func(s *clusters.LinkState) { s.Cut, s.Slow = false, nil }
	// The devices that a relay needs are not there.
	slow := func(s *clusters.LinkState) { s.Slow = &clusters.Impairment{Delay: time.Millisecond} }
	w := &wire{connected: true}
	links := newLinkSet(st, w)
	state := func(want ...clusters.LinkState) {
		t.Helper()
		if want == nil {
			want = []clusters.LinkState{}
		}
		if d := cmp.Diff(want, links.list()); d != "" {
			t.Error(d)
		}
		if w.connected != (len(want) == 0) {
			t.Errorf("connected %v beside %+v", w.connected, want)
		}
	}
	if err := links.change("one", "two", slow); err == nil {
		t.Error("slowed without devices")
	}
	state()
	w.refuse = true
	if err := links.change("one", "two", cut); err == nil {
		t.Error("cut though refused")
	}
	state()
	if err := links.change("one", "two", cut); err != nil {
		t.Fatal(err)
	}
	isCut := clusters.LinkState{A: "one", B: "two", Cut: true}
	state(isCut)
	w.refuse = true
	if err := links.change("one", "two", heal); err == nil {
		t.Error("healed though refused")
	}
	state(isCut)
	if err := links.change("two", "one", heal); err != nil {
		t.Fatal(err)
	}
	state()
}
