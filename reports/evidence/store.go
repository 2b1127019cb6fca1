package evidence

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// The layout of a run's folder, which has one for all evidence, and of a Store's in there.
const (
	Dir        = "evidence"
	EventsFile = "events.jsonl"
)

// ScenarioDir is the folder of a scenario's Store, relative to the run's: scenarios name their streams as they like.
func ScenarioDir(id string) string { return Dir + "/" + FileName(id) }

// RequestsFile is where the requests of a stream lie in the folder of a Store.
func RequestsFile(stream string) string { return "requests-" + FileName(stream) + ".jsonl" }

// LatencyFile is where a scenario's run leaves the latencies of a stream, beside its requests.
func LatencyFile(stream string) string { return "latency-" + FileName(stream) + ".hlog" }

// FileName makes a name of a scenario or stream safe as the name of a file: letters, digits, dot, dash and underscore stay,
// a slash becomes a dash, and everything else is written as its hex value, so that different names rarely meet.
func FileName(name string) string {
	var b strings.Builder
	for i, r := range name {
		switch {
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' && i > 0:
			b.WriteRune(r)
		case r == '/':
			b.WriteByte('-')
		default:
			fmt.Fprintf(&b, "%%%02X", r)
		}
	}
	if b.Len() == 0 {
		return "%"
	}
	return b.String()
}

// Store appends the evidence of one scenario to a folder, one JSON document a line. Its methods may be called concurrently; lines never
// mix. Lines reach the files when a buffer fills, on Flush and on Close: after a crash a file ends early, possibly within
// a line.
type Store struct {
	dir   string
	mu    sync.Mutex
	files map[string]*appender // by path relative to dir
	err   error                // the first error of a write; later writes return it too
}

type appender struct {
	file *os.File
	buf  *bufio.Writer
}

// Open makes the folder if needed and returns a Store that appends to it. The caller must Close it.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	return &Store{dir: dir, files: map[string]*appender{}}, nil
}

// Request appends to the file of its stream.
func (s *Store) Request(r Request) error { return s.append(RequestsFile(r.Stream), r) }

// Event appends to the events and flushes them: events are few, and after a crash they are what is asked for first.
func (s *Store) Event(e Event) error {
	if err := s.append(EventsFile, e); err != nil {
		return err
	}
	return s.Flush()
}

func (s *Store) append(path string, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("append to %s: %w", path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	a, err := s.open(path)
	if err == nil {
		_, err = a.buf.Write(append(line, '\n'))
	}
	if err != nil {
		s.err = fmt.Errorf("append to %s: %w", path, err)
	}
	return s.err
}

// open returns the appender of a path. A file that ends within a line, left by a crash, first gets the end of that line,
// so that the next one is whole.
func (s *Store) open(path string) (*appender, error) {
	if s.files == nil {
		return nil, os.ErrClosed
	}
	if a := s.files[path]; a != nil {
		return a, nil
	}
	f, err := os.OpenFile(filepath.Join(s.dir, path), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	a := &appender{file: f, buf: bufio.NewWriterSize(f, 64<<10)}
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			_ = a.buf.WriteByte('\n') // an error stays in the buffer and shows at the next write
		}
	}
	s.files[path] = a
	return a, nil
}

// Flush hands everything to the operating system.
func (s *Store) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush()
}

func (s *Store) flush() error {
	for path, a := range s.files {
		if err := a.buf.Flush(); err != nil && s.err == nil {
			s.err = fmt.Errorf("flush %s: %w", path, err)
		}
	}
	return s.err
}

// Close flushes, syncs and closes every file. A second Close does nothing; appending after it is an error.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.flush()
	for path, a := range s.files {
		if e := a.file.Sync(); e != nil && err == nil {
			err = fmt.Errorf("sync %s: %w", path, e)
		}
		if e := a.file.Close(); e != nil && err == nil {
			err = fmt.Errorf("close %s: %w", path, e)
		}
	}
	s.files = nil
	return err
}
