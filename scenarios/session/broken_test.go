package session

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

// brittle is a lab that breaks when told so.
type brittle struct {
	clusters.Lab
	why error
}

func (b *brittle) Broken() error { return b.why }

func (b *brittle) Logs(dir string) error {
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "keeper.log"), []byte("last words"), 0o644))
}

func TestBrokenLabIsInconclusive(t *testing.T) {
	b := &brittle{}
	e := &env.Env{Spec: lab.Default(), Lab: b}
	s := catalog.Scenario{
		ID: "breaks", Budget: map[lab.Profile]time.Duration{e.Spec.Profile: time.Minute},
		Run: func(context.Context, *env.Env, *record.Recorder) ([]verdict.Claim, error) {
			b.why = errors.New("node one-1: kubelet ended: signal: killed\n  | a last line")
			return []verdict.Claim{{ID: "firm", Outcome: verdict.Fail, Firm: true}}, errors.New("timed out")
		},
	}
	o := Options{Dir: t.TempDir()}
	got, err := carryOut(t.Context(), o, e, s, true)
	if !errors.Is(err, errBroken) {
		t.Errorf("error %v, want that the lab broke: nothing else can run in it", err)
	}
	if got.Outcome != verdict.Inconclusive || got.Claims[0].Outcome != verdict.Inconclusive {
		t.Errorf("scenario is %s and its claim %s, want both inconclusive", got.Outcome, got.Claims[0].Outcome)
	}
	for _, want := range []string{"the lab broke: node one-1: kubelet ended", "a last line", "timed out"} {
		if !strings.Contains(got.Error, want) {
			t.Errorf("error %q lacks %q", got.Error, want)
		}
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "diagnostics", "breaks", "_lab", "keeper.log")); err != nil {
		t.Errorf("the lab's logs were not kept: %v", err)
	}
}
