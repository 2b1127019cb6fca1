package router

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
)

func regexRewrite(re, subst string) *conf.RegexRewrite {
	return &conf.RegexRewrite{Regex: regexp.MustCompile(re), Subst: []byte(subst)}
}

// TestRewrite: target and host that the upstream sees.
func TestRewrite(t *testing.T) {
	match := func(k conf.PathKind, v string) conf.RouteMatch { return conf.RouteMatch{Path: k, Value: []byte(v)} }
	for _, c := range []struct {
		name         string
		match        conf.RouteMatch
		f            conf.Forward
		w            *conf.WeightedCluster
		in, out      string
		host, xfhost string
	}{
		{"nothing", conf.RouteMatch{}, conf.Forward{}, nil, "/a?b", "/a?b", "example.com", ""},
		{"prefix", match(conf.PathPrefix, "/catalog"), conf.Forward{PrefixRewrite: []byte("/newcatalog")}, nil, "/catalog/1?b=/catalog", "/newcatalog/1?b=/catalog", "example.com", ""},
		{"prefix that every path has", match(conf.PathAny, "/"), conf.Forward{PrefixRewrite: []byte("/v2/")}, nil, "/a/b?c", "/v2/a/b?c", "example.com", ""},
		{"prefix by a slash", match(conf.PathPrefix, "/a/"), conf.Forward{PrefixRewrite: []byte("/")}, nil, "/a/b", "/b", "example.com", ""},
		{"exact", match(conf.PathExact, "/a"), conf.Forward{PrefixRewrite: []byte("/b")}, nil, "/a?c", "/b?c", "example.com", ""},
		{"separated prefix", match(conf.PathSeparatedPrefix, "/a"), conf.Forward{PrefixRewrite: []byte("/")}, nil, "/a/b", "/b", "example.com", ""},
		{"separated prefix that is all", match(conf.PathSeparatedPrefix, "/a"), conf.Forward{PrefixRewrite: []byte("/")}, nil, "/a?c", "/?c", "example.com", ""},
		{"regex", match(conf.PathRegex, ""), conf.Forward{RegexRewrite: regexRewrite(`^/service/([^/]+)(/.*)$`, "${2}/instance/${1}")}, nil, "/service/foo/v1/api?x", "/v1/api/instance/foo?x", "example.com", ""},
		{"host", conf.RouteMatch{}, conf.Forward{HostRewrite: []byte("other")}, nil, "/", "/", "other", ""},
		{"host of the share", conf.RouteMatch{}, conf.Forward{HostRewrite: []byte("other")}, &conf.WeightedCluster{HostRewrite: []byte("mine")}, "/", "/", "mine", ""},
		{"host from a header", conf.RouteMatch{}, conf.Forward{HostHeader: []byte("x-host")}, nil, "/", "/", "from-header", ""},
		{"host from a header that is not there", conf.RouteMatch{}, conf.Forward{HostHeader: []byte("x-none")}, nil, "/", "/", "example.com", ""},
		{"host from the path", conf.RouteMatch{}, conf.Forward{HostPathRegex: regexRewrite(`^/(.+)/.*$`, "${1}.example")}, nil, "/tenant/x?y", "/tenant/x?y", "tenant.example", ""},
		{"host, the old one kept", conf.RouteMatch{}, conf.Forward{HostRewrite: []byte("other"), AppendXFHost: true}, nil, "/", "/", "other", "example.com"},
	} {
		s := stream(c.in, "x-host", "from-header")
		rewrite(s, &conf.Route{Match: c.match, Forward: &c.f}, c.w)
		if string(s.Req.Target) != c.out || string(s.Req.Host) != c.host || string(s.Req.Get("x-forwarded-host")) != c.xfhost {
			t.Errorf("%s: %s at %s (%s)", c.name, s.Req.Target, s.Req.Host, s.Req.Get("x-forwarded-host"))
		}
		if changed := c.f.PrefixRewrite != nil || c.f.RegexRewrite != nil; changed && string(s.Req.Get("x-envoy-original-path")) != c.in {
			t.Errorf("%s: original path %q", c.name, s.Req.Get("x-envoy-original-path"))
		}
	}
}

type noChain struct{ filter.Chain }

func (noChain) Draining() bool { return false }

// answered runs f on a stream whose answer is written to a buffer, and returns that.
func answered(s *filter.Stream, f func()) string {
	var out bytes.Buffer
	w := http1.NewWriter(&out)
	s.Out, s.Conn.Chain = w, noChain{}
	s.Req.Minor = 1
	s.Begin(nil, func(*filter.Stream) {})
	f()
	_ = w.Flush()
	return out.String()
}

func TestRedirect(t *testing.T) {
	match := conf.RouteMatch{Path: conf.PathPrefix, Value: []byte("/a")}
	for _, c := range []struct {
		name     string
		d        conf.Redirect
		host, in string
		want     string
	}{
		{"to https", conf.Redirect{HTTPS: true}, "example.com", "/a?b", "https://example.com/a?b"},
		{"to https, default port dropped", conf.Redirect{HTTPS: true}, "example.com:80", "/a", "https://example.com/a"},
		{"to https, other port kept", conf.Redirect{HTTPS: true}, "example.com:8080", "/a", "https://example.com:8080/a"},
		{"host and port", conf.Redirect{Host: []byte("other"), Port: 9000}, "example.com:8080", "/a", "http://other:9000/a"},
		{"port and address", conf.Redirect{Port: 1}, "[::1]", "/a", "http://[::1]:1/a"},
		{"path", conf.Redirect{Path: []byte("/new")}, "h", "/a?b=c", "http://h/new?b=c"},
		{"path with a query", conf.Redirect{Path: []byte("/new?x=y")}, "h", "/a?b=c", "http://h/new?x=y"},
		{"without the query", conf.Redirect{StripQuery: true}, "h", "/a?b=c", "http://h/a"},
		{"prefix", conf.Redirect{Prefix: []byte("/z")}, "h", "/a/b", "http://h/z/b"},
		{"any path's prefix", conf.Redirect{Prefix: []byte("/z/")}, "h", "/a/b", "http://h/z/a/b"},
		{"regex", conf.Redirect{Regex: regexRewrite(`/a`, "/q")}, "h", "/a/b", "http://h/q/b"},
		{"scheme", conf.Redirect{Scheme: "ws"}, "h", "/a", "ws://h/a"},
	} {
		c.d.Code = 301
		s := stream(c.in)
		s.Req.Host = []byte(c.host)
		set := conf.HeaderOps{RespAdd: []conf.HeaderOp{{Name: []byte("cache-control"), Value: []byte("no-store")}}}
		m := match
		if strings.HasPrefix(c.name, "any") {
			m = conf.RouteMatch{Path: conf.PathAny, Value: []byte("/")}
		}
		got := answered(s, func() { redirect(s, &conf.Route{Match: m, Redirect: &c.d}, &levels{&set}) })
		if !strings.HasPrefix(got, "HTTP/1.1 301 ") || !strings.Contains(got, "\r\ncache-control: no-store\r\n") || !strings.Contains(got, "\r\nlocation: "+c.want+"\r\n") {
			t.Errorf("%s: %q, want %s", c.name, got, c.want)
		}
	}
}

// TestLevels: header changes from the weighted cluster out to the table, or the other way round; additions before removals.
func TestLevels(t *testing.T) {
	ops := func(name string) conf.HeaderOps {
		return conf.HeaderOps{
			Add:    []conf.HeaderOp{{Name: []byte("order"), Value: []byte(name)}, {Name: []byte("last"), Value: []byte(name), Mode: conf.Overwrite}},
			Remove: [][]byte{[]byte("gone-" + name)}, RespAdd: []conf.HeaderOp{{Name: []byte("order"), Value: []byte(name)}},
		}
	}
	table, vh, r, w := &conf.RouteTable{Headers: ops("table")}, &conf.VirtualHost{Headers: ops("vhost")}, &conf.Route{Headers: ops("route")}, &conf.WeightedCluster{Headers: ops("share")}
	for specific, want := range map[bool]string{false: "share,route,vhost,table last table", true: "table,vhost,route,share last share"} {
		table.SpecificWins = specific
		s := stream("/", "gone-table", "x", "gone-share", "x", "kept", "x")
		var l levels
		l.order(table, vh, r, w)
		l.request(s)
		l.response(s)
		order, _ := s.Req.Joined([]byte("order"))
		back, _ := s.Resp.Joined([]byte("order"))
		if got := fmt.Sprintf("%s last %s", order, s.Req.Get("last")); got != want || !strings.HasPrefix(want, string(back)) || s.Req.Has("gone-table") || s.Req.Has("gone-share") || !s.Req.Has("kept") {
			t.Errorf("specific %v: %s, response %s", specific, got, back)
		}
	}
}

// TestHeaderModes: Envoy's append actions, on a header that is there and on one that is not.
func TestHeaderModes(t *testing.T) {
	for mode, want := range map[conf.AppendMode][2]string{
		conf.Append: {"old,new", "new"}, conf.AddIfAbsent: {"old", "new"}, conf.Overwrite: {"new", "new"}, conf.OverwriteIfExists: {"new", ""},
	} {
		s := stream("/", "there", "old")
		for _, name := range []string{"there", "missing"} {
			apply(&s.Req.Header, &conf.HeaderOp{Name: []byte(name), Value: []byte("new"), Mode: mode}, s, &s.Req)
		}
		there, _ := s.Req.Joined([]byte("there"))
		if string(there) != want[0] || string(s.Req.Get("missing")) != want[1] {
			t.Errorf("mode %d: %q, %q", mode, there, s.Req.Get("missing"))
		}
	}
	s := stream("/", "x", "1")
	apply(&s.Req.Header, &conf.HeaderOp{Name: []byte("x"), Mode: conf.Overwrite}, s, &s.Req)
	if string(s.Req.Get("x")) != "1" {
		t.Error("an empty value was set")
	}
	apply(&s.Req.Header, &conf.HeaderOp{Name: []byte("host"), Value: []byte("h")}, s, &s.Req)
	f, err := conf.ParseFormat("%REQ(x)%-%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")
	if err != nil {
		t.Fatal(err)
	}
	s.Rec.Req, s.Rec.Remote = &s.Req, s.Conn.Remote
	apply(&s.Req.Header, &conf.HeaderOp{Name: []byte("y"), Format: f}, s, &s.Req)
	if string(s.Req.Host) != "h" || string(s.Req.Get("y")) != "1-10.0.0.1" {
		t.Errorf("host %s, y %s", s.Req.Host, s.Req.Get("y"))
	}
}
