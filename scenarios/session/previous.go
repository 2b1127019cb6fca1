package session

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/meshproof/meshproof/reports/diff"
	"github.com/meshproof/meshproof/reports/render"
	"github.com/meshproof/meshproof/reports/verdict"
)

// compare notes in r what changed since the newest earlier run beside the folder dir that asked for the same and has a scenario in
// common. Folders that hold no report that this version reads are passed over: they are nobody's business here.
func compare(r *verdict.Report, dir string) {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*", render.JSONFile))
	if err != nil {
		return // the pattern is a path with a meta character in it; then there is nothing to compare with
	}
	var last *verdict.Report
	for _, f := range files {
		if filepath.Base(filepath.Dir(f)) == filepath.Base(dir) {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var old verdict.Report
		if json.Unmarshal(data, &old) != nil || old.Schema != render.SchemaV1 || !old.Finished.Before(r.Started) {
			continue
		}
		if diff.Comparable(old, *r) && common(old, *r) && (last == nil || old.Finished.After(last.Finished)) {
			last = &old
		}
	}
	if last != nil {
		r.Previous, r.Changes = last.Run, diff.Runs(*last, *r)
	}
}

// common says whether two runs have a scenario in common that was carried out in both.
func common(a, b verdict.Report) bool {
	for _, x := range a.Scenarios {
		for _, y := range b.Scenarios {
			if x.ID == y.ID && len(x.Claims) > 0 && len(y.Claims) > 0 {
				return true
			}
		}
	}
	return false
}
