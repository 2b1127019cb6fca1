package telemetry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Logs writes access logs. Lines are gathered and written every second, or when many are waiting.
type Logs struct {
	// Open opens a sink by its path; os.Stdout and os.Stderr are not closed.
	Open func(path string) (io.WriteCloser, error)

	mu    sync.Mutex
	sinks map[string]*sink
}

type sink struct {
	mu  sync.Mutex
	w   io.WriteCloser
	buf []byte
	bad error
}

// gathered is how many bytes of lines wait at most.
const gathered = 64 << 10

// OpenFile is the usual Open.
func OpenFile(path string) (io.WriteCloser, error) {
	switch path {
	case "/dev/stdout":
		return keepOpen{os.Stdout}, nil
	case "/dev/stderr":
		return keepOpen{os.Stderr}, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return f, nil
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// Write logs r to every sink of logs.
func (l *Logs) Write(logs []conf.AccessLog, r *Record) {
	for i := range logs {
		a := &logs[i]
		s := l.sink(a.Path)
		s.mu.Lock()
		if a.JSON != nil {
			s.buf = appendJSON(s.buf, a.JSON, r)
		} else {
			s.buf = AppendFormat(s.buf, a.Format, r, "-")
		}
		full := len(s.buf) >= gathered
		if full {
			s.flush()
		}
		s.mu.Unlock()
	}
}

func (l *Logs) sink(path string) *sink {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sinks[path]
	if s == nil {
		s = &sink{}
		s.w, s.bad = l.Open(path)
		if l.sinks == nil {
			l.sinks = map[string]*sink{}
		}
		l.sinks[path] = s
	}
	return s
}

// flush writes what waits; a sink that cannot be written loses its lines, as the traffic must go on.
func (s *sink) flush() {
	if s.bad == nil && len(s.buf) > 0 {
		_, s.bad = s.w.Write(s.buf)
	}
	s.buf = s.buf[:0]
}

// Run writes what waits every second, until ctx ends; then it writes the rest and closes the sinks.
func (l *Logs) Run(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			l.Flush()
		case <-ctx.Done():
			l.Flush()
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, s := range l.sinks {
				if s.w != nil {
					_ = s.w.Close()
				}
			}
			return nil
		}
	}
}

// Flush writes what waits.
func (l *Logs) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sinks {
		s.mu.Lock()
		s.flush()
		s.mu.Unlock()
	}
}

func appendJSON(b []byte, fields []conf.JSONField, r *Record) []byte {
	b = append(b, '{')
	for i, f := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		k, _ := json.Marshal(f.Key) // strings always marshal
		v, _ := json.Marshal(string(AppendFormat(nil, f.Format, r, "-")))
		b = append(append(append(b, k...), ':'), v...)
	}
	return append(b, '}', '\n')
}
