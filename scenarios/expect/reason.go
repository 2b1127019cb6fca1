package expect

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

// Reason is why a scenario fails in a negative control, and what holds all the same. Claims are named by ID, or several by what
// their IDs begin with, up to a slash. Without a claim that must fail it is none: the scenario must pass.
type Reason struct {
	Fails map[string]string // each claim fails, and says these words
	Some  map[string]string // chance has its say: of the claims at least one fails, and each that does says these words
	Holds []string          // each claim passes
}

// None says whether nothing must fail.
func (r Reason) None() bool { return len(r.Fails)+len(r.Some) == 0 }

// excused is in the reason of a claim that failed, but on a host that was too busy to judge on.
const excused = "not counted as a failure"

// Check says what is wrong with the claims of a control: one that is not there, that does not fail, or fails for another reason, or
// that does not hold. A failure that a busy host excuses is one where it must be, since nothing else came of it; unjudged are those
// that must hold and have one.
func (r Reason) Check(claims []verdict.Claim) (wrong, unjudged []string) {
	failed := func(c verdict.Claim) bool { return c.Outcome == verdict.Fail || strings.Contains(c.Reason, excused) }
	note := func(list *[]string, c verdict.Claim) {
		*list = append(*list, fmt.Sprintf("%s is %s: %s: %s", c.ID, c.Outcome, c.Observed, c.Reason))
	}
	named := func(id string) []verdict.Claim {
		of := slices.DeleteFunc(slices.Clone(claims), func(c verdict.Claim) bool {
			return c.ID != id && !(strings.HasSuffix(id, "/") && strings.HasPrefix(c.ID, id))
		})
		if len(of) == 0 {
			wrong = append(wrong, "no claim "+id)
		}
		return of
	}
	says := func(c verdict.Claim, words string) {
		if !strings.Contains(c.Reason, words) {
			wrong = append(wrong, fmt.Sprintf("%s does not say %q: %s", c.ID, words, c.Reason))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.Fails)) {
		for _, c := range named(id) {
			if !failed(c) {
				note(&wrong, c)
				continue
			}
			says(c, r.Fails[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.Some)) {
		of := named(id)
		if len(of) > 0 && !slices.ContainsFunc(of, failed) {
			wrong = append(wrong, "no claim of "+id+" fails")
		}
		for _, c := range of {
			if failed(c) {
				says(c, r.Some[id])
			}
		}
	}
	for _, id := range r.Holds {
		for _, c := range named(id) {
			switch {
			case c.Outcome == verdict.Pass:
			case c.Outcome == verdict.Inconclusive && strings.Contains(c.Reason, excused):
				note(&unjudged, c)
			default:
				note(&wrong, c)
			}
		}
	}
	return wrong, unjudged
}
