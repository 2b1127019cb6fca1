package encode_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/encode"
)

var start = time.Date(2026, 11, 20, 18, 0, 0, 123456789, time.UTC)

func results() []loadgen.Result {
	return []loadgen.Result{
		{Seq: 0, Stream: "north-south", Intended: start, Sent: start.Add(53), Done: start.Add(2_000_001), Code: 200, Class: loadgen.OK,
			App: "hello", Version: "v2", Pod: "hello-v2-abc", BytesIn: 27},
		{Seq: 18446744073709551615, Stream: "east-west", Intended: start, Sent: start, Done: start, Class: loadgen.Connect, Err: "line\nbreak, \"quote\", \x00", BytesOut: 7},
	}
}

func write(t testing.TB, list []loadgen.Result) []byte {
	t.Helper()
	var buf bytes.Buffer
	e := encode.NewEncoder(&buf)
	for _, r := range list {
		if err := e.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func read(r io.Reader) (list []loadgen.Result, err error) {
	for result, err := range encode.Decode(r) {
		if err != nil {
			return list, err
		}
		list = append(list, result)
	}
	return list, nil
}

func TestRoundTrip(t *testing.T) {
	want := results()
	data := write(t, want)
	if n := bytes.Count(data, []byte("\n")); n != len(want) {
		t.Errorf("%d lines for %d results", n, len(want))
	}
	got, err := read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Each result is there as soon as its line is, before the stream ends.
func TestDecodeStreams(t *testing.T) {
	in, out := io.Pipe()
	lines := bytes.SplitAfter(write(t, results()), []byte("\n"))
	go func() { out.Write(lines[0]) }()
	for result, err := range encode.Decode(in) {
		if err != nil || result.Seq != 0 {
			t.Fatalf("result %d, error %v", result.Seq, err)
		}
		break
	}
	in.CloseWithError(errors.New("the reader left"))
}

func TestBadLines(t *testing.T) {
	good := string(write(t, results()[:1]))
	for _, test := range []struct{ name, data, want string }{
		{"cut short", good + good[:40], "line 2: unexpected EOF"},
		{"unknown field", good + "\n" + `{"seq":1,"class":"ok","colour":"red"}`, `line 3: json: unknown field "colour"`},
		{"unknown class", `{"seq":1,"class":"fine"}`, `line 1: class: "fine" is not one of [ok connect`},
		{"no class", `{}`, `line 1: class: ""`},
		{"two on a line", strings.TrimSpace(good) + good, "line 1: more than one value"},
		{"a bad time", `{"class":"ok","sent":"yesterday"}`, "line 1: parsing time"},
		{"endless", `{"err":"` + strings.Repeat("x", 2<<20), "line 1: bufio.Scanner: token too long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := read(strings.NewReader(test.data)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestUnencodableTime(t *testing.T) {
	r := results()[0]
	r.Done = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := encode.NewEncoder(io.Discard).Encode(r); err == nil || !strings.Contains(err.Error(), "encode result 0") {
		t.Errorf("error %v", err)
	}
}

// Whatever decodes is written again so that it decodes to the same.
func FuzzDecode(f *testing.F) {
	f.Add(write(f, results()))
	f.Add([]byte(`{"class":"ok","intended":"2026-11-20T18:00:00.5+09:00"}`))
	f.Add([]byte("\n\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := read(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := read(bytes.NewReader(write(t, first)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again); diff != "" {
			t.Error(diff)
		}
	})
}

func TestHDRLog(t *testing.T) {
	h := hdrhistogram.New(1000, int64(time.Hour), 3)
	for _, d := range []time.Duration{time.Millisecond, 2 * time.Millisecond, 500 * time.Millisecond} {
		if err := h.RecordValue(int64(d)); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	err := encode.HDRLog(&buf,
		encode.Interval{Tag: "latency", Start: start, End: start.Add(time.Second), Histogram: h},
		encode.Interval{Tag: "service", Start: start, End: start.Add(time.Second), Histogram: h})
	if err != nil {
		t.Fatal(err)
	}
	reader := hdrhistogram.NewHistogramLogReader(&buf)
	for _, tag := range []string{"latency", "service"} {
		got, err := reader.NextIntervalHistogram()
		if err != nil || got == nil {
			t.Fatalf("%s: %v", tag, err)
		}
		if got.Tag() != tag || got.StartTimeMs() != start.UnixMilli() || got.TotalCount() != 3 || got.ValueAtPercentile(99) != h.ValueAtPercentile(99) {
			t.Errorf("tag %q, start %d, %d values, p99 %d", got.Tag(), got.StartTimeMs(), got.TotalCount(), got.ValueAtPercentile(99))
		}
	}
	if h.Tag() != "" {
		t.Error("the caller's histogram was changed")
	}
	if err := encode.HDRLog(io.Discard, encode.Interval{Tag: "two words", Histogram: h}); err == nil {
		t.Error("a tag with a space was accepted")
	}
}

func BenchmarkEncode(b *testing.B) {
	e := encode.NewEncoder(io.Discard)
	r := results()[0]
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Encode(r); err != nil {
			b.Fatal(err)
		}
	}
}
