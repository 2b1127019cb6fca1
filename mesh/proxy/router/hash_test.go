package router

import (
	"fmt"
	"math/bits"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// stream is a request from 10.0.0.1:1234 to 10.0.0.2:80. fields are names and values in turn.
func stream(target string, fields ...string) *filter.Stream {
	s := &filter.Stream{Conn: &filter.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:1234"), Local: netip.MustParseAddrPort("10.0.0.2:80")}, HTTP: &conf.HTTP{}}
	s.Req.Method, s.Req.Target, s.Req.Host, s.Scheme = []byte("GET"), []byte(target), []byte("example.com"), []byte("http")
	for i := 0; i < len(fields); i += 2 {
		s.Req.Add([]byte(fields[i]), []byte(fields[i+1]))
	}
	return s
}

func header(name string) conf.HashPolicy {
	return conf.HashPolicy{Source: conf.HashHeader, Name: []byte(name)}
}

func cookie(name string) conf.HashPolicy {
	return conf.HashPolicy{Source: conf.HashCookie, Name: []byte(name)}
}

func query(name string) conf.HashPolicy {
	return conf.HashPolicy{Source: conf.HashQuery, Name: []byte(name)}
}

func terminal(p conf.HashPolicy) conf.HashPolicy { p.Terminal = true; return p }

// TestHash: what is hashed, after Envoy's hash_policy.cc. none is the absence of a hash.
func TestHash(t *testing.T) {
	const none = "none"
	sum := func(s string) string { return fmt.Sprintf("%016x", xxhash.Sum64String(s)) }
	both := func(a, b string) string {
		return fmt.Sprintf("%016x", bits.RotateLeft64(xxhash.Sum64String(a), 1)^xxhash.Sum64String(b))
	}
	seeded := xxhash.NewWithSeed(xxhash.Sum64String("a"))
	_, _ = seeded.WriteString("b")
	chained := fmt.Sprintf("%016x", seeded.Sum64())
	rewritten := header("x-user")
	rewritten.Rewrite = &conf.RegexRewrite{Regex: regexp.MustCompile(`^([a-z]+)-\d+$`), Subst: []byte("${1}")}
	source := conf.HashPolicy{Source: conf.HashSourceIP}
	list := func(p ...conf.HashPolicy) []conf.HashPolicy { return p }
	for _, c := range []struct {
		name     string
		s        *filter.Stream
		policies []conf.HashPolicy
		want     string
	}{
		{"nothing asked", stream("/"), nil, none},
		{"header", stream("/", "x-user", "anna"), list(header("x-user")), sum("anna")},
		{"empty header", stream("/", "x-user", ""), list(header("x-user")), sum("")},
		{"no header", stream("/"), list(header("x-user")), none},
		{"values in any order", stream("/", "x-user", "b", "x-user", "a"), list(header("x-user")), chained},
		{"rewritten header", stream("/", "x-user", "anna-17"), list(rewritten), sum("anna")},
		{"host", stream("/"), list(header("host")), sum("example.com")},
		{"cookie", stream("/", "cookie", "a=1; user=anna; b=2"), list(cookie("user")), sum("anna")},
		{"cookie in quotes", stream("/", "cookie", `user="anna"`), list(cookie("user")), sum("anna")},
		{"cookie in the second header", stream("/", "cookie", "a=1", "cookie", "user=anna"), list(cookie("user")), sum("anna")},
		{"first of two cookies", stream("/", "cookie", "user=anna;user=bert"), list(cookie("user")), sum("anna")},
		{"cookie with =", stream("/", "cookie", "user=a=b"), list(cookie("user")), sum("a=b")},
		{"cookies that are none", stream("/", "cookie", "user; xuser=1; user =2;;"), list(cookie("user")), none},
		{"empty cookie", stream("/", "cookie", "user=; user=anna"), list(cookie("user")), none},
		{"source", stream("/"), list(source), sum("10.0.0.1")},
		{"source behind a proxy", stream("/", "x-forwarded-for", "1.2.3.4, 5.6.7.8"), list(source), sum("5.6.7.8")},
		{"source that is no address", stream("/", "x-forwarded-for", "unknown"), list(source), sum("10.0.0.1")},
		{"query", stream("/a?x=1&user=anna&user=bert"), list(query("user")), sum("anna")},
		{"query as it stands", stream("/a?user=a%20b#user=c"), list(query("user")), sum("a%20b")},
		{"query without a value", stream("/a?user"), list(query("user")), sum("")},
		{"no query", stream("/a?x=user"), list(query("user")), none},
		{"two parts", stream("/", "x-user", "anna", "cookie", "c=1"), list(header("x-user"), cookie("c")), both("anna", "1")},
		{"equal parts", stream("/", "x-user", "anna"), list(header("x-user"), header("x-user")), both("anna", "anna")},
		{"terminal with a hash", stream("/", "x-user", "anna", "cookie", "c=1"), list(terminal(header("x-user")), cookie("c")), sum("anna")},
		{"terminal without", stream("/", "cookie", "c=1"), list(terminal(header("x-user")), cookie("c")), sum("1")},
	} {
		q, set := hashed(c.s, c.policies)
		got := none
		if q.HasHash {
			got = fmt.Sprintf("%016x", q.Hash)
		}
		if got != c.want || set != nil {
			t.Errorf("%s: %s (cookies %q), want %s", c.name, got, set, c.want)
		}
	}
}

// TestSource: whom x-forwarded-for names, by the trust that the connection manager has in it.
func TestSource(t *testing.T) {
	for _, c := range []struct {
		useRemote, skip bool
		hops            int
		xff, want       string
	}{
		{false, false, 0, "1.1.1.1,2.2.2.2", "2.2.2.2"},
		{false, false, 1, "1.1.1.1,2.2.2.2", "1.1.1.1"},
		{false, false, 2, "1.1.1.1,2.2.2.2", "10.0.0.1"},
		{true, false, 0, "1.1.1.1,10.0.0.1", "10.0.0.1"},
		{true, false, 1, "1.1.1.1,2.2.2.2,10.0.0.1", "2.2.2.2"},
		{true, true, 1, "1.1.1.1,2.2.2.2", "2.2.2.2"},
		{false, false, 0, "::1", "::1"},
	} {
		s := stream("/", "x-forwarded-for", c.xff)
		s.HTTP = &conf.HTTP{UseRemote: c.useRemote, SkipXFF: c.skip, TrustedHops: c.hops}
		if got := source(s).String(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
		if first, rest, ok := strings.Cut(c.xff, ","); ok {
			s := stream("/", "x-forwarded-for", first, "x-forwarded-for", rest)
			s.HTTP = &conf.HTTP{UseRemote: c.useRemote, SkipXFF: c.skip, TrustedHops: c.hops}
			if got := source(s).String(); got != c.want {
				t.Errorf("%+v on two lines: %s", c, got)
			}
		}
	}
}

// TestMakeCookie: the value that Envoy makes of both addresses, and the line that carries it.
func TestMakeCookie(t *testing.T) {
	value := fmt.Sprintf("%016x", xxhash.Sum64String("10.0.0.1:123410.0.0.2:80"))
	p := cookie("user")
	p.Make, p.TTL, p.Attributes = true, 30*time.Minute, "; Max-Age=1800; Path=/"
	q, set := hashed(stream("/"), []conf.HashPolicy{p})
	if want := `user="` + value + `"; Max-Age=1800; Path=/; HttpOnly`; len(set) != 1 || string(set[0]) != want {
		t.Errorf("%q, want %q", set, want)
	}
	if q.Hash != xxhash.Sum64String(value) || !q.HasHash {
		t.Errorf("hash %x", q.Hash)
	}
	// What comes back leads to the same place, and is not made again.
	back, again := hashed(stream("/", "cookie", `user="`+value+`"`), []conf.HashPolicy{p})
	if back != q || again != nil {
		t.Errorf("%v, %q", back, again)
	}
	p.Attributes = "" // a session cookie without a path
	if _, set := hashed(stream("/", "cookie", "user="), []conf.HashPolicy{p}); len(set) != 1 || string(set[0]) != `user="`+value+`"; HttpOnly` {
		t.Errorf("%q", set)
	}
}

func TestHashDoesNotAllocate(t *testing.T) {
	s := stream("/a?user=anna", "x-user", "anna", "cookie", "a=1; user=anna")
	list := []conf.HashPolicy{header("x-user"), cookie("user"), query("user"), {Source: conf.HashSourceIP}}
	if n := testing.AllocsPerRun(100, func() { hashed(s, list) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzHash: whatever a client sends, a hash is found without a crash, and equal requests have equal hashes.
func FuzzHash(f *testing.F) {
	f.Add("user=anna; a=b", "1.2.3.4, 5.6.7.8", "/a?user=x&user=y#z")
	f.Add(`;=;user="`, ",", "?")
	f.Add(`user=""`, "::1%eth0", "/?user=%")
	made := cookie("user")
	made.Make, made.Attributes = true, "; Max-Age=1"
	f.Fuzz(func(t *testing.T, cookies, xff, target string) {
		list := []conf.HashPolicy{made, query("user"), header("x-forwarded-for"), {Source: conf.HashSourceIP}}
		a, set := hashed(stream(target, "cookie", cookies, "x-forwarded-for", xff), list)
		b, _ := hashed(stream(target, "cookie", cookies, "x-forwarded-for", xff), list)
		if a != b || !a.HasHash || len(set) > 1 {
			t.Errorf("%v, %v, cookies %q", a, b, set)
		}
	})
}
