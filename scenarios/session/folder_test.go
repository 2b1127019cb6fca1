package session

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

// TestEvidenceOfEachScenario has two scenarios name a stream alike.
func TestEvidenceOfEachScenario(t *testing.T) {
	e := &env.Env{Spec: lab.Default(), Lab: &brittle{}}
	o := Options{Dir: t.TempDir()}
	start := time.Unix(1_700_000_000, 0)
	for i, id := range []string{"first", "second"} {
		s := catalog.Scenario{
			ID: id, Budget: map[lab.Profile]time.Duration{e.Spec.Profile: time.Minute},
			Run: func(_ context.Context, _ *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
				rec.Stream(record.Stream{Name: "a/b", Source: "runner"})
				for seq := range i + 1 {
					due := start.Add(time.Duration(seq) * time.Second)
					rec.Result(loadgen.Result{Stream: "a/b", Seq: uint64(seq), Intended: due, Sent: due, Done: due.Add(time.Millisecond), Class: loadgen.Timeout})
				}
				files := []string{evidence.RequestsFile("a/b")}
				return []verdict.Claim{{ID: "c", Outcome: verdict.Pass, Evidence: files}, {ID: "d", Outcome: verdict.Pass, Evidence: files}}, nil
			},
		}
		got, err := carryOut(t.Context(), o, e, s, true)
		if err != nil || got.Outcome != verdict.Pass {
			t.Fatalf("%s: outcome %s, %s, error %v", id, got.Outcome, got.Error, err)
		}
		if d := cmp.Diff([]string{"evidence/" + id + "/requests-a-b.jsonl"}, got.Claims[1].Evidence); d != "" {
			t.Error(d)
		}
		data, err := os.ReadFile(filepath.Join(o.Dir, got.Claims[0].Evidence[0]))
		if lines := strings.Count(string(data), "\n"); err != nil || lines != i+1 {
			t.Errorf("%s: %d requests, error %v, want %d", id, lines, err, i+1)
		}
		if _, err := os.Stat(filepath.Join(o.Dir, "evidence", id, "latency-a-b.hlog")); err != nil {
			t.Error(err)
		}
	}
}

func TestFolderOfAnEarlierRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var folder *FolderError
	if r, err := New(Options{Dir: dir}).Finish(t.Context()); errors.As(err, &folder) {
		t.Fatalf("first run: %+v, %v", r, err)
	}
	if _, err := New(Options{Dir: dir}).Finish(t.Context()); !errors.As(err, &folder) || !strings.Contains(err.Error(), "holds an earlier run") {
		t.Errorf("second run: %v, want that the folder is taken", err)
	}
	if err := os.Remove(filepath.Join(dir, "report.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Dir: dir}).Finish(t.Context()); !errors.As(err, &folder) {
		t.Errorf("evidence without a report: %v, want that the folder is taken", err)
	}
	file := filepath.Join(dir, "report.html")
	if _, err := New(Options{Dir: filepath.Join(file, "below")}).Finish(t.Context()); !errors.As(err, &folder) {
		t.Errorf("folder below a file: %v, want a *FolderError", err)
	}
}
