package catalog_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/lab"
)

func TestAllAreComplete(t *testing.T) {
	id := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := map[string]bool{}
	for _, s := range catalog.All() {
		if !id.MatchString(s.ID) || seen[s.ID] {
			t.Errorf("ID %q is not a new kebab-case word", s.ID)
		}
		seen[s.ID] = true
		if s.Title == "" || s.Proves == "" || s.Area == "" || len(s.Features) == 0 || len(s.Claims) == 0 || s.Run == nil {
			t.Errorf("%s: an empty field: %+v", s.ID, s)
		}
		for _, p := range lab.Profiles() {
			if s.Budget[lab.Profile(p)] <= 0 {
				t.Errorf("%s: no budget for profile %s", s.ID, p)
			}
		}
	}
}

func TestSelect(t *testing.T) {
	all := []catalog.Scenario{{ID: "canary"}, {ID: "mirror"}, {ID: "mirror-half"}}
	for _, c := range []struct {
		patterns string
		want     string // IDs, or the error's text after "error: "
	}{
		{"", "canary mirror mirror-half"},
		{"canary", "canary"},
		{"mirror", "mirror"},
		{"mirror.*", "mirror mirror-half"},
		{"!mirror", "canary mirror-half"},
		{"mirror.* !mirror-half", "mirror"},
		{"canari", `error: pattern "canari" matches no scenario; did you mean "canary"?`},
		{"!.*", "error: no scenario is left by !.*"},
		{"(", "error: pattern \"(\": error parsing regexp: missing closing ): `^(?:()$`"},
	} {
		got, err := catalog.Select(all, strings.Fields(c.patterns))
		text := ""
		for _, s := range got {
			text += s.ID + " "
		}
		text = strings.TrimSpace(text)
		if err != nil {
			text = "error: " + err.Error()
		}
		if text != c.want {
			t.Errorf("%q: got %s, want %s", c.patterns, text, c.want)
		}
	}
}
