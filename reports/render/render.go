// Package render writes a verdict.Report for its readers: JSON and JUnit for machines, Markdown for a job summary, text
// for a terminal, and one self-contained HTML page. Every function is pure but for its writer.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
)

// SchemaV1 is the version that report.json names.
const SchemaV1 = "meshproof.dev/report/v1"

// The files that WriteDir writes, relative to the run's folder.
const (
	JSONFile     = "report.json"
	HTMLFile     = "report.html"
	JUnitFile    = "junit.xml"
	MarkdownFile = "summary.md"
)

// WriteDir writes every render into a run's folder, which it makes if needed. Each file appears whole or not at all. It
// writes what it can and returns the first error.
func WriteDir(dir string, r verdict.Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	var first error
	for _, f := range []struct {
		name   string
		render func(io.Writer, verdict.Report) error
	}{{JSONFile, JSON}, {JUnitFile, JUnit}, {MarkdownFile, Markdown}, {HTMLFile, HTML}} {
		var b bytes.Buffer
		err := f.render(&b, r)
		if err == nil {
			err = writeFile(filepath.Join(dir, f.name), b.Bytes())
		}
		if err != nil && first == nil {
			first = fmt.Errorf("write report: %s: %w", f.name, err)
		}
	}
	return first
}

// writeFile replaces a file atomically: a reader sees the old or the new one, also after a crash.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// JSON writes report.json, with every list and map present even where it is empty.
func JSON(w io.Writer, r verdict.Report) error {
	r.Schema = SchemaV1
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(filled(r)); err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	return nil
}

// filled replaces nil by empty where the schema promises a list or map. It copies what it changes.
func filled(r verdict.Report) verdict.Report {
	r.Host = orEmptyMap(r.Host)
	r.Setup = orEmpty(r.Setup)
	r.Scenarios = append([]verdict.Scenario{}, r.Scenarios...)
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		s.Claims, s.Events = orEmpty(s.Claims), orEmpty[evidence.Event](s.Events)
		s.Topology.Nodes, s.Topology.Edges = orEmpty(s.Topology.Nodes), orEmpty(s.Topology.Edges)
		s.Streams = append([]verdict.Stream{}, s.Streams...)
		for j := range s.Streams {
			st := &s.Streams[j]
			st.Failed = orEmptyMap(st.Failed)
			st.Seconds = append([]verdict.Second{}, st.Seconds...)
			for k := range st.Seconds {
				st.Seconds[k].Versions = orEmptyMap(st.Seconds[k].Versions)
			}
		}
	}
	return r
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func orEmptyMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}
