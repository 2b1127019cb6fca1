package httpgen

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"github.com/meshproof/meshproof/loadgen"
)

// sessions are the virtual users of a run. Request n belongs to session n mod their number, so that each comes back at even times
// whatever became of its last request; two of its requests may be in flight together, as in a browser.
type sessions struct {
	url    *url.URL // as a browser would know it: with the Host that is asked for
	header string   // that names the session in each request, or ""
	query  string   // parameter that does, or ""
	jars   []*cookiejar.Jar
}

// newSessions returns nil for a profile without sessions.
func newSessions(p loadgen.Profile) (*sessions, error) {
	if p.Sessions == 0 {
		return nil, nil
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		return nil, err
	}
	if p.Host != "" {
		u.Host = p.Host
	}
	s := &sessions{url: u, header: p.SessionHeader, query: p.SessionQuery, jars: make([]*cookiejar.Jar, p.Sessions)}
	for i := range s.jars {
		if s.jars[i], err = cookiejar.New(nil); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// of is the number of the session that request seq belongs to, from 1.
func (s *sessions) of(seq uint64) int {
	if s == nil {
		return 0
	}
	return int(seq%uint64(len(s.jars))) + 1
}

// at is where a browser would know to be with req.
func (s *sessions) at(req *http.Request) *url.URL {
	u := *s.url
	u.Path, u.RawPath = req.URL.Path, req.URL.RawPath
	return &u
}

// prepare makes req one of the session: its name, and the cookies that its jar holds for the URL by now. req must not share its
// header or URL. It returns the Cookie header.
func (s *sessions) prepare(req *http.Request, session int) string {
	name := loadgen.SessionName(session)
	if s.header != "" {
		req.Header.Set(s.header, name)
	}
	if s.query != "" {
		q := s.query + "=" + url.QueryEscape(name)
		if req.URL.RawQuery != "" {
			q = req.URL.RawQuery + "&" + q
		}
		req.URL.RawQuery = q
	}
	for _, c := range s.jars[session-1].Cookies(s.at(req)) {
		req.AddCookie(c)
	}
	return req.Header.Get("Cookie")
}

// keep stores what the answer sets, and returns it, one Set-Cookie a line.
func (s *sessions) keep(req *http.Request, resp *http.Response, session int) string {
	set := resp.Header.Values("Set-Cookie")
	if len(set) == 0 {
		return ""
	}
	s.jars[session-1].SetCookies(s.at(req), resp.Cookies())
	return clip(strings.Join(set, "\n"))
}
