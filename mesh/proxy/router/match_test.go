package router

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func exact(v string) conf.StringMatch { return conf.StringMatch{Kind: conf.Exact, Value: v} }

// TestMatches: one route's conditions against one request, GET /a/b?x=1&y with header user: anna and two of tag.
func TestMatches(t *testing.T) {
	path := func(k conf.PathKind, v string) conf.RouteMatch {
		return conf.RouteMatch{Path: k, Value: []byte(v), Fraction: conf.Always}
	}
	folded := func(m conf.RouteMatch) conf.RouteMatch { m.IgnoreCase = true; return m }
	with := func(h conf.HeaderMatch) conf.RouteMatch {
		return conf.RouteMatch{Fraction: conf.Always, Headers: []conf.HeaderMatch{h}}
	}
	asked := func(q conf.QueryMatch) conf.RouteMatch {
		return conf.RouteMatch{Fraction: conf.Always, Query: []conf.QueryMatch{q}}
	}
	header := func(name string, m conf.StringMatch) conf.HeaderMatch {
		return conf.HeaderMatch{Name: []byte(name), Match: m}
	}
	present := func(name string, want bool) conf.HeaderMatch {
		return conf.HeaderMatch{Name: []byte(name), Kind: conf.HeaderPresent, Present: want}
	}
	invert := func(h conf.HeaderMatch) conf.HeaderMatch { h.Invert = true; return h }
	regex := path(conf.PathRegex, "")
	regex.Regex = regexp.MustCompile(`^(?:/a/[a-z]+)$`)
	grpc := conf.RouteMatch{Fraction: conf.Always, GRPC: true}
	some := conf.RouteMatch{Fraction: 1000}
	missing := header("none", exact(""))
	missing.MissingIsEmpty = true
	for name, c := range map[string]struct {
		m    conf.RouteMatch
		want bool
	}{
		"any":                                {conf.RouteMatch{Fraction: conf.Always}, true},
		"exact path, without the query":      {path(conf.PathExact, "/a/b"), true},
		"exact path, longer":                 {path(conf.PathExact, "/a/bc"), false},
		"exact path, other case":             {path(conf.PathExact, "/A/b"), false},
		"exact path, case ignored":           {folded(path(conf.PathExact, "/A/b")), true},
		"prefix":                             {path(conf.PathPrefix, "/a"), true},
		"prefix within a segment":            {path(conf.PathPrefix, "/a/"), true},
		"prefix into the query":              {path(conf.PathPrefix, "/a/b?x"), true},
		"prefix that is longer":              {path(conf.PathPrefix, "/a/b?x=1&y=2"), false},
		"separated prefix":                   {path(conf.PathSeparatedPrefix, "/a"), true},
		"separated prefix that is all":       {path(conf.PathSeparatedPrefix, "/a/b"), true},
		"separated prefix within a segment":  {path(conf.PathSeparatedPrefix, "/a/"), false},
		"separated prefix, case ignored":     {folded(path(conf.PathSeparatedPrefix, "/A")), true},
		"regex on the path":                  {regex, true},
		"fraction that the number is within": {some, true}, // random is 999
		"fraction of 999":                    {conf.RouteMatch{Fraction: 999}, false},
		"grpc":                               {grpc, false},
		"header":                             {with(header("user", exact("anna"))), true},
		"header with another value":          {with(header("user", exact("bert"))), false},
		"inverted":                           {with(invert(header("user", exact("bert")))), true},
		"inverted, missing":                  {with(invert(header("none", exact("bert")))), false},
		"missing":                            {with(header("none", exact(""))), false},
		"missing counts as empty":            {with(missing), true},
		"several values are joined":          {with(header("tag", exact("a,b"))), true},
		"present":                            {with(present("user", true)), true},
		"absent":                             {with(present("none", false)), true},
		"present and inverted":               {with(invert(present("user", true))), false},
		"range":                              {with(conf.HeaderMatch{Name: []byte("age"), Kind: conf.HeaderRange, From: 17, To: 18}), true},
		"end of the range":                   {with(conf.HeaderMatch{Name: []byte("age"), Kind: conf.HeaderRange, From: 0, To: 17}), false},
		"range of what is no number":         {with(conf.HeaderMatch{Name: []byte("user"), Kind: conf.HeaderRange, From: 0, To: 17}), false},
		"method":                             {with(header(":method", exact("GET"))), true},
		"authority":                          {with(header(":authority", exact("example.com"))), true},
		"scheme":                             {with(header(":scheme", exact("http"))), true},
		"path as a header":                   {with(header(":path", exact("/a/b?x=1&y"))), true},
		"query":                              {asked(conf.QueryMatch{Name: "x", Match: exact("1")}), true},
		"query with another value":           {asked(conf.QueryMatch{Name: "x", Match: exact("2")}), false},
		"query present":                      {asked(conf.QueryMatch{Name: "y", Present: true}), true},
		"query absent":                       {asked(conf.QueryMatch{Name: "z", Present: true}), false},
	} {
		s := stream("/a/b?x=1&y", "user", "anna", "tag", "a", "tag", "b", "age", "17")
		p, q, _ := bytes.Cut(s.Req.Target, []byte("?"))
		if got := matches(&c.m, &s.Req, p, q, s.Scheme, 5_000_999); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	s := stream("/a.B/C", "content-type", "application/grpc+proto")
	if !matches(&grpc, &s.Req, []byte("/a.B/C"), nil, s.Scheme, 0) {
		t.Error("gRPC is not seen")
	}
}

// TestFind: virtual hosts by authority, and the first route that matches.
func TestFind(t *testing.T) {
	host := func(name string, routes ...*conf.Route) *conf.VirtualHost {
		return &conf.VirtualHost{Name: name, Routes: routes}
	}
	route := func(name, prefix string) *conf.Route {
		return &conf.Route{Name: name, Match: conf.RouteMatch{Path: conf.PathPrefix, Value: []byte(prefix), Fraction: conf.Always}}
	}
	a := host("a", route("first", "/x"), route("second", "/x/y"), route("last", "/"))
	table := &conf.RouteTable{Exact: map[string]*conf.VirtualHost{"a.example.com": a}, Any: host("any", route("any", "/only")), IgnorePort: true}
	for _, c := range []struct{ authority, path, vhost, route string }{
		{"a.example.com", "/x/y", "a", "first"}, {"a.example.com:8080", "/z", "a", "last"}, {"A.Example.COM", "/x", "a", "first"},
		{"b", "/only/this", "any", "any"}, {"b", "/else", "any", ""}, {"", "/only", "any", "any"},
	} {
		s := stream(c.path)
		s.Req.Host = []byte(c.authority)
		vh, r := Find(table, &s.Req, s.Scheme, 0)
		name := ""
		if r != nil {
			name = r.Name
		}
		if vh == nil || vh.Name != c.vhost || name != c.route {
			t.Errorf("%q %s: %v %q", c.authority, c.path, vh, name)
		}
	}
	s := stream("/x/y?a=b")
	s.Req.Host = []byte("A.example.com:80")
	if n := testing.AllocsPerRun(100, func() { Find(table, &s.Req, s.Scheme, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if vh, r := Find(&conf.RouteTable{}, &s.Req, s.Scheme, 0); vh != nil || r != nil {
		t.Error("an empty table matches")
	}
}

// TestSplit: each value of the random number falls to the share that it lies in.
func TestSplit(t *testing.T) {
	list := []conf.WeightedCluster{{Name: "a", Weight: 10}, {Name: "none", Weight: 0}, {Name: "b", Weight: 89}, {Name: "c", Weight: 1}}
	got := map[string]int{}
	for r := range uint64(1000) {
		got[split(list, 100, r).Name]++
	}
	if got["a"] != 100 || got["b"] != 890 || got["c"] != 10 || got["none"] != 0 {
		t.Errorf("%v", got)
	}
	if split(list, 100, 9).Name != "a" || split(list, 100, 10).Name != "b" || split(list, 100, 99).Name != "c" {
		t.Error("bounds are off by one")
	}
	if n := split(list[:1], 10, 12345).Name; n != "a" {
		t.Errorf("the only one is %s", n)
	}
}
