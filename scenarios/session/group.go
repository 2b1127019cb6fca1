package session

import (
	"fmt"

	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// Group is a lab and the scenarios that run in it, one after the other.
type Group struct {
	Lab       *lab.Lab
	Scenarios []catalog.Scenario
}

// Groups puts scenarios that share a lab together, in the order of the first of each. labFor returns the lab of that name as the
// catalog calls it; it is called once for each.
func Groups(scenarios []catalog.Scenario, labFor func(name string) (*lab.Lab, error)) ([]Group, error) {
	var out []Group
	at := map[string]int{}
	for _, s := range scenarios {
		i, known := at[s.Lab]
		if !known {
			l, err := labFor(s.Lab)
			if err != nil {
				return nil, err
			}
			i = len(out)
			at[s.Lab] = i
			out = append(out, Group{Lab: l})
		}
		out[i].Scenarios = append(out[i].Scenarios, s)
	}
	for i := range out {
		if err := out[i].trim(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Together puts all scenarios into one lab.
func Together(l *lab.Lab, scenarios []catalog.Scenario) ([]Group, error) {
	g := Group{Lab: l, Scenarios: scenarios}
	err := g.trim()
	return []Group{g}, err
}

// trim checks that the lab can carry its scenarios, and takes out of it the apps that none of them looks at: all but those of
// scenarios that bring none themselves.
func (g *Group) trim() error {
	g.Lab = g.Lab.Clone()
	brought, needs := map[string]bool{}, false
	for _, s := range g.Scenarios {
		needs = needs || len(s.Apps) == 0
		for _, app := range s.Apps {
			brought[app] = true
		}
		embedded, err := lab.Embedded(s.Lab)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", s.ID, err)
		}
		if got, want := len(g.Lab.Clusters), len(embedded.Clusters); got < want {
			return fmt.Errorf("scenario %s needs a lab of %d clusters, as fixtures/labs/%s.yaml is; lab %q has %d", s.ID, want, s.Lab, g.Lab.Name, got)
		}
	}
	apps := []string{}
	for _, app := range g.Lab.Apps {
		if needs && !brought[app] {
			apps = append(apps, app)
		}
	}
	g.Lab.Apps = apps
	return nil
}
