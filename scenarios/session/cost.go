package session

import (
	"time"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/record"
)

// cost is what a lab took: the time, its memory at rest, 0 if it was not read, and what was read around the load of its scenarios.
func cost(lab string, took time.Duration, rest uint64, scenarios []verdict.Scenario) verdict.LabCost {
	m := verdict.LabMemory{Rest: rest, Highest: rest}
	for _, s := range scenarios {
		if s.Memory != nil {
			m.Highest = max(m.Highest, s.Memory.Before, s.Memory.After)
		}
	}
	out := verdict.LabCost{Lab: lab, Seconds: took.Seconds()}
	if m.Highest > 0 {
		out.Memory = &m
	}
	return out
}

// memory is what was read of the lab around the load, nil for nothing.
func memory(rec *record.Recorder) *verdict.LoadMemory {
	before, after := rec.Memory()
	if before == 0 && after == 0 {
		return nil
	}
	return &verdict.LoadMemory{Before: before, After: after}
}
