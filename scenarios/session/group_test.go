package session_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/session"
)

func TestGroups(t *testing.T) {
	brings := catalog.Scenario{ID: "brings", Lab: "one", Apps: []string{"hello", "loadagent"}}
	takes := catalog.Scenario{ID: "takes", Lab: "one"}
	asked := map[string]int{}
	groups, err := session.Groups([]catalog.Scenario{brings, takes}, func(name string) (*lab.Lab, error) {
		asked[name]++
		return lab.Embedded(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) != 1 || len(groups[0].Scenarios) != 2 || asked["one"] != 1 {
		t.Fatalf("groups %+v, asked %v", groups, asked)
	}
	// What a scenario brings is not deployed a second time; what none brings is the lab's.
	if got := fmt.Sprint(groups[0].Lab.Apps); got != "[bookinfo]" {
		t.Errorf("apps of the lab: %s", got)
	}
	if got := fmt.Sprint(lab.Default().Apps); got != "[bookinfo hello]" {
		t.Errorf("the embedded lab was changed: %s", got)
	}
	groups, err = session.Groups([]catalog.Scenario{brings}, lab.Embedded)
	if err != nil || len(groups[0].Lab.Apps) != 0 {
		t.Errorf("apps that nobody looks at: %+v, error %v", groups, err)
	}
	if _, err := session.Groups([]catalog.Scenario{{ID: "x", Lab: "nowhere"}}, lab.Embedded); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a lab that is not there: %v", err)
	}
}

func TestTogether(t *testing.T) {
	small := &lab.Lab{Name: "small", Clusters: []lab.Cluster{{Name: "a", Nodes: 1}}}
	groups, err := session.Together(small, []catalog.Scenario{{ID: "x", Lab: "one"}})
	if err != nil || len(groups) != 1 || groups[0].Lab.Name != "small" {
		t.Errorf("groups %+v, error %v", groups, err)
	}
	_, err = session.Together(&lab.Lab{Name: "none"}, []catalog.Scenario{{ID: "x", Lab: "one"}})
	if err == nil || !strings.Contains(err.Error(), `needs a lab of 1 clusters, as fixtures/labs/one.yaml is; lab "none" has 0`) {
		t.Errorf("a lab that is too small: %v", err)
	}
}
