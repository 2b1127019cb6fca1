package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/meshproof/meshproof/clusters"
)

// progress shows phases: on a terminal one line each, updated in place; elsewhere one line an event, with times. It is safe
// for concurrent use.
type progress struct {
	w     io.Writer
	live  bool
	width int
	marks marks
	begun time.Time

	mu     sync.Mutex
	phases []*phase // in order of their first event
	drawn  int      // unfinished lines on the screen, below what is final
	stop   chan struct{}
	ended  sync.WaitGroup
}

type phase struct {
	name, detail string
	start        time.Time
	took         time.Duration
	done, failed bool
	printed      bool      // final line is out
	counted      time.Time // when a count was last shown, where one is not redrawn
}

// countEvery is how often a moving count is worth a line of a log.
const countEvery = 15 * time.Second

// progress starts showing. The caller calls close.
func (a *app) progress() *progress {
	p := &progress{w: a.Err, live: a.live(), width: a.Width, marks: a.marks(), begun: time.Now(), stop: make(chan struct{})}
	if p.live {
		p.ended.Add(1)
		go p.tick()
	}
	return p
}

// tick redraws so that running times move.
func (p *progress) tick() {
	defer p.ended.Done()
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

// event is a clusters.Progress.
func (p *progress) event(e clusters.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ph := p.phase(e.Phase)
	if ph.done && !e.Done {
		return
	}
	if e.Detail == ph.detail && !e.Done {
		return
	}
	ph.detail = e.Detail
	if e.Count && !e.Done && !p.live {
		if time.Since(ph.counted) < countEvery {
			return
		}
		ph.counted = time.Now()
	}
	if e.Done && !ph.done {
		ph.done, ph.took = true, time.Since(ph.start)
	}
	p.show(ph)
}

func (p *progress) phase(name string) *phase {
	for _, ph := range p.phases {
		if ph.name == name && !ph.printed {
			return ph
		}
	}
	ph := &phase{name: name, start: time.Now()}
	p.phases = append(p.phases, ph)
	return ph
}

func (p *progress) show(ph *phase) {
	if p.live {
		p.draw()
		return
	}
	took := ""
	if ph.done {
		took = "  " + seconds(ph.took)
		ph.printed = true
	}
	fmt.Fprintf(p.w, "%s +%-6s %-10s %s%s\n", time.Now().Format("15:04:05"), seconds(time.Since(p.begun)), ph.name, ph.detail, took)
}

// draw replaces the unfinished lines: finished phases leave the block at its top, in order.
func (p *progress) draw() {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn)
	}
	p.drawn = 0
	for _, ph := range p.phases {
		if ph.printed {
			continue
		}
		mark, took := p.marks.busy(), time.Since(ph.start)
		switch {
		case ph.failed:
			mark, took = p.marks.bad(), ph.took
		case ph.done:
			mark, took = p.marks.ok(), ph.took
		}
		fmt.Fprintf(&b, " %s %-10s %s %6s\n", mark, ph.name, p.fit(ph.detail), seconds(took))
		if ph.done && p.drawn == 0 {
			ph.printed = true
		} else {
			p.drawn++
		}
	}
	_, _ = io.WriteString(p.w, b.String())
}

// fit makes a detail as wide as its column.
func (p *progress) fit(s string) string {
	width := 78
	if p.width > 0 {
		width = min(width, p.width-22)
	}
	width = max(width, 10)
	n := utf8.RuneCountInString(s)
	if n > width {
		return string([]rune(s)[:width-1]) + "…"
	}
	return s + strings.Repeat(" ", width-n)
}

// bar shows how much of something is done, on a terminal.
func (p *progress) bar(done float64) string {
	const cells = 12
	if !p.live || p.width > 0 && p.width < 100 {
		return ""
	}
	n := int(done*cells + 0.5)
	return strings.Repeat("▇", n) + strings.Repeat("░", cells-n) + "  "
}

// fail ends every unfinished phase as failed.
func (p *progress) fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ph := range p.phases {
		if ph.done {
			continue
		}
		ph.done, ph.failed, ph.took = true, true, time.Since(ph.start)
		if !p.live {
			fmt.Fprintf(p.w, "%s +%-6s %-10s failed: %s\n", time.Now().Format("15:04:05"), seconds(time.Since(p.begun)), ph.name, ph.detail)
		}
	}
	if p.live {
		p.draw()
	}
}

// close stops the redrawing and leaves the last state on the screen. Calling it again is harmless.
func (p *progress) close() {
	p.mu.Lock()
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.mu.Unlock()
	p.ended.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		p.draw()
		p.drawn = 0
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
