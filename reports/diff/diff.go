// Package diff says what changed from one run to the next. It judges nothing: two runs are two figures, and how much a figure
// wanders by itself is not known from them.
package diff

import (
	"fmt"
	"math"

	"github.com/meshproof/meshproof/reports/verdict"
)

// notable is the factor beyond which a latency is worth a line; runs of the same thing on a quiet host of two cores differ by less.
const notable = 1.5

// Runs lists what differs between two runs of the same scenarios, in the order of the later one: outcomes, the number that speaks for
// a scenario, and the 99th percentile of each stream's latency where it differs by half or more. Scenarios that only one has are left out.
func Runs(before, after verdict.Report) []verdict.Change {
	var out []verdict.Change
	for _, now := range after.Scenarios {
		for _, then := range before.Scenarios {
			if then.ID == now.ID {
				out = append(out, scenario(then, now)...)
			}
		}
	}
	return out
}

func scenario(then, now verdict.Scenario) []verdict.Change {
	var out []verdict.Change
	if then.Outcome != now.Outcome {
		out = append(out, verdict.Change{Scenario: now.ID, What: "outcome", Before: string(then.Outcome), After: string(now.Outcome)})
	}
	if a, b := claim(then, now.Key), claim(now, now.Key); a != nil && b != nil && a.Observed != b.Observed {
		out = append(out, verdict.Change{Scenario: now.ID, What: b.Statement, Before: a.Observed, After: b.Observed})
	}
	for _, st := range now.Streams {
		for _, old := range then.Streams {
			if old.Name != st.Name || old.Latency.P99 <= 0 || st.Latency.P99 <= 0 {
				continue
			}
			if r := st.Latency.P99 / old.Latency.P99; math.Max(r, 1/r) >= notable {
				out = append(out, verdict.Change{
					Scenario: now.ID, What: "p99 of " + st.Name, Before: verdict.Seconds(old.Latency.P99),
					After: fmt.Sprintf("%s (x %.2g)", verdict.Seconds(st.Latency.P99), r),
				})
			}
		}
	}
	for _, c := range now.Claims {
		if c.ID == now.Key {
			continue
		}
		if old := claim(then, c.ID); old != nil && old.Outcome != c.Outcome {
			out = append(out, verdict.Change{Scenario: now.ID, What: c.Statement, Before: string(old.Outcome), After: string(c.Outcome)})
		}
	}
	return out
}

func claim(s verdict.Scenario, id string) *verdict.Claim {
	for i := range s.Claims {
		if s.Claims[i].ID == id && id != "" {
			return &s.Claims[i]
		}
	}
	return nil
}

// Comparable says whether two runs asked for the same: the same mesh, cluster and profile, and neither or both as a control.
func Comparable(a, b verdict.Report) bool {
	return a.Mesh == b.Mesh && a.Cluster == b.Cluster && a.Profile == b.Profile && a.Control == b.Control
}
