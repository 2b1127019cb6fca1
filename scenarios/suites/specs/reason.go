package specs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

// excused is in the reason of a claim that failed, but on a host that was too busy to judge on.
const excused = "not counted as a failure"

// unfailed says what is wrong with the claims that must fail: one that is not there, that does not fail, or fails for another reason.
// fails has the words of the reason by ID, or, with a slash at its end, by what the IDs of several begin with. A failure that a busy
// host excuses is one here.
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
			case c.Outcome != verdict.Fail && !strings.Contains(c.Reason, excused):
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
