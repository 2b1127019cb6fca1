package render

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/reports/verdict"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestGolden(t *testing.T) {
	pass := sample(t)
	pass.Scenarios = pass.Scenarios[:1]
	verdict.JudgeRun(&pass)
	setup := verdict.Report{Schema: SchemaV1, Run: "r", Started: pass.Started, Finished: pass.Started.Add(time.Second), Error: "cluster east: API server did not answer in 60 s\nlast line: bind: address in use"}
	verdict.JudgeRun(&setup)
	text := func(o TextOptions) func(io.Writer, verdict.Report) error {
		return func(w io.Writer, r verdict.Report) error { return Text(w, r, o) }
	}
	for name, r := range map[string]verdict.Report{"fail": sample(t), "pass": pass, "setup": setup} {
		for ext, f := range map[string]func(io.Writer, verdict.Report) error{"report.json": JSON, "junit.xml": JUnit, "summary.md": Markdown, "report.html": HTML,
			"100.txt": text(TextOptions{Path: "runs/x/report.html"}), "160.txt": text(TextOptions{Width: 160}), "color.txt": text(TextOptions{Width: 160, Color: true})} {
			t.Run(name+"."+ext, func(t *testing.T) {
				var b, again bytes.Buffer
				if err := f(&b, r); err != nil {
					t.Fatal(err)
				}
				if err := f(&again, r); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
					t.Fatalf("two renders differ (error %v)", err)
				}
				path := filepath.Join("testdata", name+"."+ext)
				if *update {
					if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(string(want), b.String()); d != "" {
					t.Errorf("differs from %s (rewrite with -update):\n%.3000s", path, d)
				}
			})
		}
	}
}

func TestWriteDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	for range 2 {
		if err := WriteDir(dir, sample(t)); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if d := cmp.Diff([]string{"junit.xml", "report.html", "report.json", "summary.md"}, names); d != "" {
		t.Error(d)
	}
	data, err := os.ReadFile(filepath.Join(dir, JSONFile))
	if err != nil {
		t.Fatal(err)
	}
	var back verdict.Report
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(t), back, cmp.Transformer("utc", func(x time.Time) int64 { return x.UnixNano() })); d != "" {
		t.Errorf("report.json does not read back:\n%.2000s", d)
	}
}

// Text from a cluster is hostile: it must not become markup, and must not break a format.
func FuzzHostileText(f *testing.F) {
	f.Add("</script><script>alert(1)</script>|`\x00\x1b[31m\"'&\uFFFE")
	f.Fuzz(func(t *testing.T, s string) {
		now := time.Unix(0, 0).UTC()
		r := verdict.Report{Outcome: verdict.Fail, Error: s, Run: s, Command: s, Host: map[string]string{s: s}, Started: now, Finished: now, Scenarios: []verdict.Scenario{{ID: s, Title: s, Outcome: verdict.Fail,
			Claims: []verdict.Claim{{ID: s, Statement: s, Outcome: verdict.Fail, Observed: s, Bound: s, Reason: s, Confounder: s}}, Topology: verdict.Topology{Nodes: []verdict.TopologyNode{{ID: s, Kind: s}}},
			Streams: []verdict.Stream{{Name: s, Seconds: []verdict.Second{{Start: now, Width: 1, Requests: 1, Versions: map[string]int{s: 1}}}}}}}}
		for _, render := range []func(io.Writer, verdict.Report) error{JSON, JUnit, Markdown, HTML, func(w io.Writer, r verdict.Report) error { return Text(w, r, TextOptions{}) }} {
			if err := render(io.Discard, r); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if err := JUnit(&b, r); err != nil {
			t.Fatal(err)
		}
		d := xml.NewDecoder(&b)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("junit.xml is not well-formed: %v", err)
			}
		}
		b.Reset()
		if err := HTML(&b, r); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(b.String(), "<script"); n != 2 {
			t.Errorf("%d script elements, want 2", n)
		}
	})
}
