package evidence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStoreKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 500
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				r := Request{Stream: "north-south", Seq: uint64(w*each + i), Class: "ok", Version: "v1"}
				if err := s.Request(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	event := Event{Time: time.Unix(1, 2).UTC(), Kind: "apply", Name: "10/90", Detail: map[string]string{"generation": "4"}}
	if err := s.Event(event); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	if err := s.Event(event); err == nil {
		t.Error("Event after Close gave no error")
	}
	requests, torn := read[Request](t, filepath.Join(dir, RequestsFile("north-south")))
	if torn != 0 || len(requests) != writers*each {
		t.Fatalf("read %d requests, torn %d", len(requests), torn)
	}
	seen := map[uint64]bool{}
	for _, r := range requests {
		seen[r.Seq] = true
	}
	if len(seen) != writers*each {
		t.Errorf("%d different requests, want %d", len(seen), writers*each)
	}
	events, _ := read[Event](t, filepath.Join(dir, EventsFile))
	if d := cmp.Diff([]Event{event}, events); d != "" {
		t.Error(d)
	}
}

// A crash cuts a file anywhere: what was whole stays so, and appending goes on behind it.
func TestStoreSurvivesAnyCut(t *testing.T) {
	var whole bytes.Buffer
	for i := range 3 {
		fmt.Fprintf(&whole, `{"stream":"s","seq":%d,"intended":0,"sent":0,"done":0,"code":200,"class":"ok"}`+"\n", i)
	}
	for cut := range whole.Len() + 1 {
		dir := t.TempDir()
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, RequestsFile("s")), whole.Bytes()[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.Request(Request{Stream: "s", Seq: 99, Class: "ok"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		got, torn := read[Request](t, filepath.Join(dir, RequestsFile("s")))
		wantWhole := strings.Count(whole.String()[:cut]+"\n", "}\n")
		if len(got) != wantWhole+1 || got[len(got)-1].Seq != 99 {
			t.Fatalf("cut at %d: %d requests (torn %d), want %d and the new one", cut, len(got), torn, wantWhole)
		}
	}
}

// read returns the documents of a file, one a line, and how many lines are none.
func read[T any](t *testing.T, path string) (out []T, torn int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var v T
		switch {
		case len(bytes.TrimSpace(line)) == 0:
		case json.Unmarshal(line, &v) == nil:
			out = append(out, v)
		default:
			torn++
		}
	}
	return out, torn
}

func TestFileName(t *testing.T) {
	for in, want := range map[string]string{
		"share/hello/90-10/v2": "share-hello-90-10-v2", "../x": "%2E.-x", "a b": "a%20b", "": "%", "%": "%25",
	} {
		if got := FileName(in); got != want {
			t.Errorf("FileName(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzFileName(f *testing.F) {
	f.Add("../../etc/passwd")
	f.Fuzz(func(t *testing.T, name string) {
		if got := FileName(name); got == "" || got[0] == '.' || strings.ContainsAny(got, "/\\\x00") {
			t.Errorf("FileName(%q) = %q", name, got)
		}
	})
}
