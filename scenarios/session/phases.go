package session

import (
	"sync"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/reports/verdict"
)

// phases notes how long each phase of a lab took.
type phases struct {
	lab  string
	next clusters.Progress

	mu    sync.Mutex
	order []string
	begun map[string]time.Time
	done  map[string]verdict.Phase
}

func newPhases(lab string, next clusters.Progress) *phases {
	return &phases{lab: lab, next: next, begun: map[string]time.Time{}, done: map[string]verdict.Phase{}}
}

func (p *phases) hear(e clusters.Event) {
	p.mu.Lock()
	if _, known := p.begun[e.Phase]; !known {
		p.begun[e.Phase] = time.Now()
		p.order = append(p.order, e.Phase)
	}
	if _, over := p.done[e.Phase]; !over && e.Done {
		p.done[e.Phase] = verdict.Phase{Lab: p.lab, Name: e.Phase, Detail: e.Detail, Seconds: time.Since(p.begun[e.Phase]).Seconds()}
	}
	p.mu.Unlock()
	if p.next != nil {
		p.next(e)
	}
}

func (p *phases) list() []verdict.Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []verdict.Phase
	for _, name := range p.order {
		if ph, ok := p.done[name]; ok {
			out = append(out, ph)
			continue
		}
		out = append(out, verdict.Phase{Lab: p.lab, Name: name, Detail: "not finished", Seconds: time.Since(p.begun[name]).Seconds()})
	}
	return out
}
