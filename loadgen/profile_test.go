package loadgen_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/loadgen"
)

func valid() loadgen.Profile {
	return loadgen.Profile{Name: "north-south", URL: "http://127.0.0.1:8080/productpage", Rate: 10, Duration: time.Second}
}

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*loadgen.Profile)
		want   []string // parts of the error; none means valid
	}{
		{"a plain one", func(*loadgen.Profile) {}, nil},
		{"steps", func(p *loadgen.Profile) {
			p.Rate, p.Duration, p.Steps = 0, 0, []loadgen.Step{{Rate: 0, For: time.Second}, {Rate: 5, For: time.Second}}
		}, nil},
		{"a ramp from nothing", func(p *loadgen.Profile) { p.Rate, p.RampTo = 0, 10 }, nil},
		{"no name", func(p *loadgen.Profile) { p.Name = "" }, []string{"name: is empty"}},
		{"relative address", func(p *loadgen.Profile) { p.URL = "127.0.0.1/x" }, []string{`url: "127.0.0.1/x" is not absolute`}},
		{"foreign scheme", func(p *loadgen.Profile) { p.URL = "ftp://x" }, []string{"url: "}},
		{"broken address", func(p *loadgen.Profile) { p.URL = "http://[::1" }, []string{"url: "}},
		{"pages without sessions", func(p *loadgen.Profile) { p.Pages = []loadgen.Page{{Path: "/"}} }, []string{"pages: have no meaning without sessions"}},
		{"a bad page", func(p *loadgen.Profile) {
			p.Sessions, p.ExpectBody = 2, "x"
			p.Pages = []loadgen.Page{{Path: "cart"}, {Path: "/", Method: "GE T", Accept: []int{7}}}
		}, []string{"pages: cannot stand beside", `pages[0].path: "cart" is not a path`, `pages[1]: profile`, `"GE T"`, "7 is not an HTTP status"}},
		{"bad method", func(p *loadgen.Profile) { p.Method = "GE T" }, []string{`method: "GE T"`}},
		{"tunnel", func(p *loadgen.Profile) { p.Method = "CONNECT" }, []string{"method: "}},
		{"no rate", func(p *loadgen.Profile) { p.Rate = 0 }, []string{"rate: 0 is not a rate"}},
		{"negative rate", func(p *loadgen.Profile) { p.Rate = -1 }, []string{"rate: -1"}},
		{"no duration", func(p *loadgen.Profile) { p.Duration = 0 }, []string{"duration: 0s"}},
		{"steps beside a rate", func(p *loadgen.Profile) { p.Steps = []loadgen.Step{{Rate: 1, For: 1}} }, []string{"steps: rate"}},
		{"a bad step", func(p *loadgen.Profile) { p.Rate, p.Duration, p.Steps = 0, 0, []loadgen.Step{{Rate: -3}} },
			[]string{"steps[0].rate: -3", "steps[0].for: 0s", "no step sends anything"}},
		{"header with a newline", func(p *loadgen.Profile) { p.Header = http.Header{"X": {"a\nb"}} }, []string{`header: X: the value "a\nb"`}},
		{"Host among the headers", func(p *loadgen.Profile) { p.Header = http.Header{"host": {"a"}} }, []string{"belongs in the field host"}},
		{"several at once", func(p *loadgen.Profile) { p.Timeout, p.MaxWorkers, p.Accept = -1, -1, []int{99} },
			[]string{"timeout: -1ns", "maxWorkers: -1", "accept: 99"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := valid()
			test.change(&p)
			err := p.Validate()
			if (err == nil) != (len(test.want) == 0) {
				t.Fatalf("error %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestProfileTravelsAsJSON(t *testing.T) {
	want := valid()
	want.Header = http.Header{"End-User": {"jason"}}
	want.Body = []byte{0, 1, 2}
	want.Accept = []int{200, 503}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got loadgen.Profile
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
