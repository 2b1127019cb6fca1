package session

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshproof/meshproof/reports/render"
	"github.com/meshproof/meshproof/reports/verdict"
)

func TestCompareWithTheNewestOfItsKind(t *testing.T) {
	runs := t.TempDir()
	start := time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC)
	report := func(name, mesh string, hour int, observed string) verdict.Report {
		return verdict.Report{
			Schema: render.SchemaV1, Run: name, Mesh: mesh, Started: start.Add(time.Duration(hour) * time.Hour), Finished: start.Add(time.Duration(hour)*time.Hour + time.Minute),
			Scenarios: []verdict.Scenario{{ID: "canary", Key: "share", Claims: []verdict.Claim{{ID: "share", Statement: "share", Observed: observed}}}},
		}
	}
	for _, r := range []verdict.Report{
		report("a-first", "bundled", 1, "89%"), report("z-second", "bundled", 2, "90%"), report("b-other", "none", 3, "50%"), report("c-later", "bundled", 9, "1%"),
	} {
		if err := render.WriteDir(filepath.Join(runs, r.Run), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(runs, "torn"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(runs, "torn", render.JSONFile), []byte(`{"schema":`), 0o600); err != nil {
		t.Fatal(err)
	}
	now := report("now", "bundled", 4, "91%")
	compare(&now, filepath.Join(runs, "now"))
	if now.Previous != "z-second" || len(now.Changes) != 1 || now.Changes[0].Before != "90%" {
		t.Errorf("compared with %q: %+v", now.Previous, now.Changes)
	}
	alone := report("alone", "bundled", 0, "91%")
	compare(&alone, filepath.Join(t.TempDir(), "alone"))
	if alone.Previous != "" || alone.Changes != nil {
		t.Errorf("the first run is compared with %q", alone.Previous)
	}
}
