package objects

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files, and remove those without a case")

// TestDiagnostics reads files with mistakes and compares everything said about them.
func TestDiagnostics(t *testing.T) {
	in, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(in) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	known := map[string]bool{}
	for _, file := range in {
		golden := strings.TrimSuffix(file, ".yaml") + ".txt"
		known[filepath.Base(file)], known[filepath.Base(golden)] = true, true
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			objs, diags := Decode(filepath.Base(file), data)
			var got strings.Builder
			for _, d := range diags {
				got.WriteString(string(d.Problem.Severity) + " " + d.String() + "\n")
			}
			for _, o := range objs {
				got.WriteString("accepted " + o.Kind + " " + o.Object.GetName() + "\n")
			}
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !known[e.Name()] && !e.IsDir() {
			t.Errorf("testdata/%s belongs to no case", e.Name())
		}
	}
}

// Every supported path must be a field of the API, or it supports nothing.
func TestSupportedPathsExist(t *testing.T) {
	for kind, c := range map[string]struct {
		set  *fieldSet
		file string
	}{"VirtualService": {supportedVirtualService, ""}, "DestinationRule": {supportedDestinationRule, ""}, "Gateway": {supportedGateway, ""}} {
		walkPaths(c.set, "spec", func(path string) {
			if !pathExists(kind, path) {
				t.Errorf("%s: %s is no field", kind, path)
			}
		})
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"abc", "abc", 0}, {"reveiws", "reviews", 1}, {"review", "reviews", 1}, {"", "ab", 2}, {"kitten", "sitting", 3},
	} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// FuzzDecode: no input crashes, what is accepted has no errors, and every diagnostic names a line of the file.
func FuzzDecode(f *testing.F) {
	in, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range in {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, diags := Decode("f", data)
		for _, o := range objs {
			if HasErrors(Validate(o.Object)) {
				t.Errorf("accepted %s with errors", o.Kind)
			}
		}
		for _, d := range diags {
			if d.Line > bytes.Count(data, []byte("\n"))+1 {
				t.Errorf("line %d of a file with fewer", d.Line)
			}
		}
	})
}
