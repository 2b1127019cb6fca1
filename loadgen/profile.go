package loadgen

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Defaults of a Profile.
const (
	DefaultTimeout    = 10 * time.Second
	DefaultMaxWorkers = 1024
)

// Profile is one stream of equal requests and its schedule. It travels as JSON to agents; durations are nanoseconds there.
type Profile struct {
	Name   string      `json:"name"`             // becomes Result.Stream
	Method string      `json:"method,omitempty"` // GET if empty
	URL    string      `json:"url"`              // absolute, http or https
	Host   string      `json:"host,omitempty"`   // Host header, that of URL if empty
	Header http.Header `json:"header,omitempty"`
	Body   []byte      `json:"body,omitempty"`

	// The schedule: Rate requests a second for Duration; with RampTo, changing evenly to that rate; or Steps alone.
	Rate     float64       `json:"rate,omitempty"`
	RampTo   float64       `json:"rampTo,omitempty"`
	Duration time.Duration `json:"duration,omitempty"`
	Steps    []Step        `json:"steps,omitempty"`

	// Sessions is the number of virtual users, 0 for none; request n is of user n mod Sessions. Each has a cookie jar of its own
	// (RFC 6265), and a connection of its own for requests without a cookie, as somebody new has. SessionHeader and SessionQuery name
	// a header and a query parameter that carry SessionName, where given.
	Sessions      int    `json:"sessions,omitempty"`
	SessionHeader string `json:"sessionHeader,omitempty"`
	SessionQuery  string `json:"sessionQuery,omitempty"`

	// Pages are what each session asks for, one after another and then over again: request n is page (n div Sessions) mod their
	// number. Without pages all requests are alike.
	Pages []Page `json:"pages,omitempty"`

	// Timeout bounds a request from its actual send to the end of its answer. DefaultTimeout if 0.
	Timeout time.Duration `json:"timeout,omitempty"`
	// MaxWorkers bounds the requests in flight. When it is reached requests leave late, and Result.Lateness shows it.
	// DefaultMaxWorkers if 0.
	MaxWorkers int `json:"maxWorkers,omitempty"`

	// Accept lists the statuses that are not failures; 200 to 299 if empty.
	Accept []int `json:"accept,omitempty"`
	// Attribute names an app below the answering one: Results then carry its version and pod, as the answer's evidence lists
	// them, in place of the answering app's. An answer that was made without it is a mismatch.
	Attribute string `json:"attribute,omitempty"`
	// ExpectApp is the app that must have answered; any if empty. ExpectBody must be part of the body.
	ExpectApp  string `json:"expectApp,omitempty"`
	ExpectBody string `json:"expectBody,omitempty"`
}

// Page is one kind of request of a Profile. Its fields stand in place of the profile's fields of the same name.
type Page struct {
	Method     string      `json:"method,omitempty"` // GET if empty
	Path       string      `json:"path"`             // and query, in place of that of the URL
	Header     http.Header `json:"header,omitempty"` // beside the profile's
	Body       []byte      `json:"body,omitempty"`
	Accept     []int       `json:"accept,omitempty"`
	Attribute  string      `json:"attribute,omitempty"`
	ExpectBody string      `json:"expectBody,omitempty"`
}

// Page is the number of the page that request seq asks for, from 0; 0 if there are none.
func (p Profile) Page(seq uint64) int {
	if len(p.Pages) == 0 {
		return 0
	}
	return int(seq / uint64(p.Sessions) % uint64(len(p.Pages)))
}

// OfPage is the profile of the requests for one page; p itself if it has no pages.
func (p Profile) OfPage(n int) (Profile, error) {
	if len(p.Pages) == 0 {
		return p, nil
	}
	page := p.Pages[n]
	u, err := url.Parse(p.URL)
	if err != nil {
		return p, err
	}
	if u, err = u.Parse(page.Path); err != nil {
		return p, err
	}
	out := p
	out.Pages, out.URL, out.Method, out.Body = nil, u.String(), page.Method, page.Body
	out.Accept, out.Attribute, out.ExpectBody = page.Accept, page.Attribute, page.ExpectBody
	if len(page.Header) > 0 {
		out.Header = p.Header.Clone()
		if out.Header == nil {
			out.Header = http.Header{}
		}
		for name, values := range page.Header {
			out.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	return out.WithDefaults(), nil
}

// SessionName is what session number n, from 1, calls itself in SessionHeader and SessionQuery.
func SessionName(n int) string { return "session-" + strconv.Itoa(n) }

// maxSessions bounds the memory of the jars.
const maxSessions = 100_000

// WithDefaults returns p with the documented default in every empty field that has one.
func (p Profile) WithDefaults() Profile {
	if p.Method == "" {
		p.Method = http.MethodGet
	}
	if p.Timeout == 0 {
		p.Timeout = DefaultTimeout
	}
	if p.MaxWorkers == 0 {
		p.MaxWorkers = DefaultMaxWorkers
	}
	return p
}

// Accepts reports whether a status counts as a good answer.
func (p Profile) Accepts(status int) bool {
	if len(p.Accept) == 0 {
		return status >= 200 && status <= 299
	}
	return slices.Contains(p.Accept, status)
}

// Pacer returns the schedule of a valid profile.
func (p Profile) Pacer() Pacer {
	switch {
	case len(p.Steps) > 0:
		return Steps(p.Steps)
	case p.RampTo > 0:
		return Ramp(p.Rate, p.RampTo, p.Duration)
	}
	return Constant(p.Rate, p.Duration)
}

// Validate names everything that is wrong, each with its field.
func (p Profile) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("profile %q: %s: %w", p.Name, field, fmt.Errorf(format, args...)))
	}
	if p.Name == "" {
		bad("name", "is empty; results carry it as their stream")
	}
	if !validMethod(p.Method) {
		bad("method", "%q is not an HTTP method that a load may use", p.Method)
	}
	switch u, err := url.Parse(p.URL); {
	case err != nil:
		bad("url", "%w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		bad("url", "%q is not absolute; write http://host:port/path", p.URL)
	}
	if !httpguts.ValidHostHeader(p.Host) {
		bad("host", "%q is not a host name", p.Host)
	}
	for name, values := range p.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			bad("header", "%q is not a header name", name)
		}
		if http.CanonicalHeaderKey(name) == "Host" {
			bad("header", "Host belongs in the field host")
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				bad("header", "%s: the value %q may not be in a header", name, v)
			}
		}
	}
	p.validateSchedule(bad)
	p.validateSessions(bad)
	p.validatePages(bad)
	if p.Timeout < 0 {
		bad("timeout", "%s is negative", p.Timeout)
	}
	if p.MaxWorkers < 0 {
		bad("maxWorkers", "%d is negative", p.MaxWorkers)
	}
	for _, status := range p.Accept {
		if status < 100 || status > 599 {
			bad("accept", "%d is not an HTTP status", status)
		}
	}
	return errors.Join(errs...)
}

func (p Profile) validatePages(bad func(field, format string, args ...any)) {
	if len(p.Pages) == 0 {
		return
	}
	if p.Sessions <= 0 {
		bad("pages", "have no meaning without sessions, which go from one to the next")
		return
	}
	if p.Method != "" && p.Method != http.MethodGet || len(p.Body) > 0 || len(p.Accept) > 0 || p.Attribute != "" || p.ExpectBody != "" {
		bad("pages", "cannot stand beside method, body, accept, attribute and expectBody: each page has its own")
	}
	for i := range p.Pages {
		if !strings.HasPrefix(p.Pages[i].Path, "/") || strings.HasPrefix(p.Pages[i].Path, "//") {
			bad(fmt.Sprintf("pages[%d].path", i), "%q is not a path; write /path?query", p.Pages[i].Path)
			continue
		}
		page, err := p.OfPage(i)
		if err == nil {
			err = page.Validate()
		}
		if err != nil {
			bad(fmt.Sprintf("pages[%d]", i), "%w", err)
		}
	}
}

func (p Profile) validateSessions(bad func(field, format string, args ...any)) {
	if p.Sessions < 0 || p.Sessions > maxSessions {
		bad("sessions", "%d is not a number of sessions; use 0 to %d", p.Sessions, maxSessions)
	}
	for name := range p.Header {
		if http.CanonicalHeaderKey(name) == "Cookie" && p.Sessions > 0 {
			bad("header", "Cookie is what sessions fill in; leave out one of the two")
		}
	}
	for _, f := range []struct{ field, value string }{{"sessionHeader", p.SessionHeader}, {"sessionQuery", p.SessionQuery}} {
		if f.value != "" && p.Sessions == 0 {
			bad(f.field, "%q has no meaning without sessions", f.value)
		}
	}
	if p.SessionHeader != "" && !httpguts.ValidHeaderFieldName(p.SessionHeader) {
		bad("sessionHeader", "%q is not a header name", p.SessionHeader)
	}
	if p.SessionQuery != url.QueryEscape(p.SessionQuery) {
		bad("sessionQuery", "%q is not a plain parameter name", p.SessionQuery)
	}
}

func (p Profile) validateSchedule(bad func(field, format string, args ...any)) {
	if len(p.Steps) > 0 {
		if p.Rate != 0 || p.RampTo != 0 || p.Duration != 0 {
			bad("steps", "rate, rampTo and duration cannot stand beside steps")
		}
		for i, s := range p.Steps {
			field := fmt.Sprintf("steps[%d]", i)
			if !validRate(s.Rate) {
				bad(field+".rate", "%v is not a rate; use 0 or more requests a second", s.Rate)
			}
			if s.For <= 0 {
				bad(field+".for", "%s is not a length; use more than 0", s.For)
			}
		}
		if !slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Rate > 0 }) {
			bad("steps", "no step sends anything")
		}
		return
	}
	if !validRate(p.Rate) || p.Rate == 0 && p.RampTo == 0 {
		bad("rate", "%v is not a rate; use more than 0 requests a second", p.Rate)
	}
	if !validRate(p.RampTo) {
		bad("rampTo", "%v is not a rate; use more than 0 requests a second", p.RampTo)
	}
	if p.Duration <= 0 {
		bad("duration", "%s is not a length; use more than 0", p.Duration)
	}
}

// maxRate keeps due times meaningful: a microsecond between requests.
const maxRate = 1e6

func validRate(r float64) bool { return r >= 0 && r <= maxRate && !math.IsNaN(r) }

// validMethod takes tokens other than CONNECT, which is not a request to an app, and TRACE, which may not carry headers on.
func validMethod(m string) bool {
	return m == "" || httpguts.ValidHeaderFieldName(m) && m != http.MethodConnect && m != http.MethodTrace
}
