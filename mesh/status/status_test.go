package status

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/objects"
)

type fake struct{}

var (
	key     = model.Key{Kind: "VirtualService", Namespace: "ns", Name: "a b"}
	at      = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	problem = model.ObjectProblem{Object: key, Generation: 3, InForce: "none", Problem: objects.Problem{Severity: objects.Error, Field: "spec", Message: "m"}}
)

func (fake) Proxies() []Proxy { return []Proxy{{Proxy: "p.ns", ClusterSent: "1", ConnectedAt: at}} }

func (fake) Push(k model.Key, generation int64) Push {
	if k != key || generation != Absent {
		return Push{Proxies: []ProxyPush{}}
	}
	return Push{Snapshot: 7, BuiltAt: at, Proxies: []ProxyPush{{Proxy: "p.ns", Type: "sidecar", Sent: true, Acked: true, AckedAt: at}}}
}

func (fake) Current() *model.Snapshot {
	return &model.Snapshot{Sequence: 7, Problems: []model.ObjectProblem{problem}, Objects: map[model.Key]model.Version{key: {Generation: 3}}}
}

// What the client reads is what the source said.
func TestRoundTrip(t *testing.T) {
	mux := http.NewServeMux()
	Register(mux, fake{})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	push, err := Pushz(t.Context(), srv.Client(), srv.URL, key, Absent)
	if d := cmp.Diff(fake{}.Push(key, Absent), push); d != "" || err != nil {
		t.Error(err, d)
	}
	if !push.Done() {
		t.Error("not done although all acknowledged")
	}
	if push, err = Pushz(t.Context(), srv.Client(), srv.URL+"/", key, 4); err != nil || push.Done() {
		t.Error("an object that is not there is done", err)
	}
	proxies, err := Syncz(t.Context(), srv.Client(), srv.URL)
	if d := cmp.Diff(fake{}.Proxies(), proxies); d != "" || err != nil {
		t.Error(err, d)
	}
	problems, err := Problems(t.Context(), srv.Client(), srv.URL)
	if d := cmp.Diff([]model.ObjectProblem{problem}, problems); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, q := range []string{"", "?kind=x&name=y", "?kind=x&name=y&generation=-2", "?generation=1"} {
		resp, err := srv.Client().Get(srv.URL + PushzPath + q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", q, resp.Status)
		}
	}
	srv.Config.Handler = http.NotFoundHandler()
	if _, err := Syncz(t.Context(), srv.Client(), srv.URL); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error is %v", err)
	}
}

func TestState(t *testing.T) {
	for _, tt := range []struct{ sent, acked, want string }{{"", "", "NOT SENT"}, {"1", "1", "SYNCED"}, {"2", "1", "STALE"}} {
		if got := State(tt.sent, tt.acked); got != tt.want {
			t.Errorf("State(%q, %q) = %s", tt.sent, tt.acked, got)
		}
	}
}
