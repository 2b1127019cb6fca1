package specs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

// unfailed says what is wrong with the claims that must fail: one that is not there, that does not fail, or fails for another reason.
// fails has the words of the reason by ID, or, with a slash at its end, by what the IDs of several begin with.
func unfailed(claims []verdict.Claim, fails map[string]string) []string {
	var wrong []string
	for _, id := range slices.Sorted(maps.Keys(fails)) {
		there := false
		for _, c := range claims {
			if c.ID != id && !(strings.HasSuffix(id, "/") && strings.HasPrefix(c.ID, id)) {
				continue
			}
			there = true
			switch words := fails[id]; {
			case c.Outcome != verdict.Fail:
				wrong = append(wrong, fmt.Sprintf("%s is %s: %s", c.ID, c.Outcome, c.Reason))
			case !strings.Contains(c.Reason, words):
				wrong = append(wrong, fmt.Sprintf("%s does not say %q: %s", c.ID, words, c.Reason))
			}
		}
		if !there {
			wrong = append(wrong, "no claim "+id)
		}
	}
	return wrong
}
