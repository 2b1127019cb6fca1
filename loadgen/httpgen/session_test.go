package httpgen_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/httpgen"
)

// visits is what a server saw of one session, told apart by a header.
type visits struct {
	mu      sync.Mutex
	cookies map[string][]string // of each session, as sent
	remotes map[string]bool     // connections that requests without a cookie came over
	bare    int
}

func (v *visits) see(r *http.Request) (session string, first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	session = r.Header.Get("X-User")
	first = len(v.cookies[session]) == 0
	c := r.Header.Get("Cookie")
	v.cookies[session] = append(v.cookies[session], c)
	if c == "" {
		v.bare++
		v.remotes[r.RemoteAddr] = true
	}
	return session, first
}

func newVisits() *visits { return &visits{cookies: map[string][]string{}, remotes: map[string]bool{}} }

// Each session keeps what it is told, as it was told it, and sends it again; it has no other's. Nobody who is new shares a connection.
func TestSessions(t *testing.T) {
	v := newVisits()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s, first := v.see(r); first {
			w.Header().Add("Set-Cookie", fmt.Sprintf(`user="of-%s"; Max-Age=1800; Path=/shop; HttpOnly`, s))
			w.Header().Add("Set-Cookie", "elsewhere=1; Path=/other")
			w.Header().Add("Set-Cookie", "foreign=1; Domain=example.org")
		}
	}))
	defer server.Close()
	results := generate(t, loadgen.Profile{
		Name: "sessions", URL: server.URL + "/shop/cart?a=b", Host: "shop.example.com", Rate: 400, Duration: 300 * time.Millisecond,
		Sessions: 30, SessionHeader: "x-user", SessionQuery: "who", MaxWorkers: 1, // a session's second request is not to overtake its first
	}, httpgen.Options{})
	if len(results) != 120 {
		t.Fatalf("%d results", len(results))
	}
	for _, r := range results {
		want := int(r.Seq%30) + 1
		if r.Class != loadgen.OK || r.Session != want {
			t.Fatalf("result %+v, want session %d", r, want)
		}
		if first := r.Seq < 30; first != (r.Cookie == "") || first != (r.SetCookie != "") {
			t.Errorf("request %d sent %q and was told %q", r.Seq, r.Cookie, r.SetCookie)
		}
		if r.SetCookie != "" && !strings.HasPrefix(r.SetCookie, fmt.Sprintf("user=\"of-session-%d\"; Max-Age=1800; Path=/shop; HttpOnly\nelsewhere=1", want)) {
			t.Errorf("session %d was told %q", want, r.SetCookie)
		}
	}
	for s, cookies := range v.cookies {
		for i, c := range cookies {
			if want := `user="of-` + s + `"`; i > 0 && c != want {
				t.Errorf("%s sent %q, want %q", s, c, want)
			}
		}
	}
	if len(v.cookies) != 30 || v.bare != 30 || len(v.remotes) != 30 {
		t.Errorf("%d sessions, %d requests without a cookie over %d connections", len(v.cookies), v.bare, len(v.remotes))
	}
}

// A cookie is forgotten when its time is over, and then a new one is taken.
func TestSessionForgetsInTime(t *testing.T) {
	v := newVisits()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.see(r)
		if r.Header.Get("Cookie") == "" {
			w.Header().Set("Set-Cookie", "user=x; Max-Age=1")
		}
	}))
	defer server.Close()
	results := generate(t, loadgen.Profile{Name: "ttl", URL: server.URL, Rate: 20, Duration: 2500 * time.Millisecond, Sessions: 1, SessionHeader: "x-user", MaxWorkers: 1}, httpgen.Options{})
	var told []time.Time
	for _, r := range results {
		if r.SetCookie != "" {
			told = append(told, r.Done)
		}
	}
	if len(told) < 2 {
		t.Fatalf("told %d times in 2.5 s", len(told))
	}
	for i := 1; i < len(told); i++ {
		if d := told[i].Sub(told[i-1]); d < 950*time.Millisecond {
			t.Errorf("told again after %s", d)
		}
	}
}

func TestBadSessions(t *testing.T) {
	good := loadgen.Profile{Name: "x", URL: "http://a/", Rate: 1, Duration: 1, Sessions: 2, SessionHeader: "x-user", SessionQuery: "user"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*loadgen.Profile){
		"sessions: -1 is not":                              func(p *loadgen.Profile) { p.Sessions = -1 },
		"sessions: 100001 is not":                          func(p *loadgen.Profile) { p.Sessions = 100_001 },
		`sessionHeader: "x-user" has no meaning`:           func(p *loadgen.Profile) { p.Sessions = 0 },
		`sessionHeader: "x user" is not a header name`:     func(p *loadgen.Profile) { p.SessionHeader = "x user" },
		`sessionQuery: "a&b" is not a plain parameter`:     func(p *loadgen.Profile) { p.SessionQuery = "a&b" },
		"header: Cookie is what sessions fill in; leave o": func(p *loadgen.Profile) { p.Header = http.Header{"cookie": {"a=b"}} },
	} {
		p := good
		change(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// Each session goes from page to page in order, each at its own time, and takes its cookies along to those that they are for.
func TestPages(t *testing.T) {
	var (
		mu   sync.Mutex
		seen = map[string][]string{}
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		user := r.Header.Get("X-User")
		mu.Lock()
		seen[user] = append(seen[user], fmt.Sprintf("%s %s %s cookies=%q", r.Method, r.URL.Path, r.Form.Encode(), r.Header.Get("Cookie")))
		mu.Unlock()
		switch r.URL.Path {
		case "/":
			http.SetCookie(w, &http.Cookie{Name: "cart", Value: user, Path: "/cart"})
			w.Header().Set("X-Meshproof-Via", "catalog/v1/c-1/east")
		case "/cart":
			w.WriteHeader(http.StatusSeeOther)
		case "/cart/pay":
			fmt.Fprint(w, "paid")
		}
	}))
	defer server.Close()
	p := loadgen.Profile{
		Name: "shop", URL: server.URL, Rate: 40, Duration: 150 * time.Millisecond, MaxWorkers: 1, Sessions: 2, SessionHeader: "x-user", Header: http.Header{"A": {"b"}},
		Pages: []loadgen.Page{
			{Path: "/?q=mug", Attribute: "catalog"},
			{
				Method: "POST", Path: "/cart", Body: []byte("id=mug"), Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
				Accept: []int{303},
			},
			{Path: "/cart/pay", ExpectBody: "paid"},
		},
	}
	results := generate(t, p, httpgen.Options{})
	if len(results) != 6 {
		t.Fatalf("%d results", len(results))
	}
	for _, r := range results {
		if r.Class != loadgen.OK || p.Page(r.Seq) != int(r.Seq)/2 || (r.Cluster == "east") != (r.Seq < 2) {
			t.Errorf("%+v", r)
		}
	}
	for _, user := range []string{"session-1", "session-2"} {
		want := []string{`GET / q=mug cookies=""`, `POST /cart id=mug cookies="cart=` + user + `"`, `GET /cart/pay  cookies="cart=` + user + `"`}
		if got := seen[user]; strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s went %q, want %q", user, got, want)
		}
	}
}
