package state

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/xds"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

// TestRefusedListener: a listener that cannot be had is refused, and all of the old one stays, its routes too; so does what came
// with it. One that was prepared late, for it waited for routes, is shown to be refused.
func TestRefusedListener(t *testing.T) {
	var published []*conf.Config
	bad := map[*conf.Listener]bool{}
	refuse := func(*conf.Listener) bool { return false }
	var asked []string
	s := New(Options{
		Subscribe: func(typ string, names []string) {
			if typ == xds.RouteType {
				asked = names
			}
		},
		Prepare: func(c *conf.Config) map[string]error {
			out := map[string]error{}
			for name, l := range c.Listeners {
				if bad[l] || refuse(l) {
					bad[l] = true
					out[name] = errors.New("no such file")
				}
			}
			return out
		},
		Publish: func(c *conf.Config) { published = append(published, c) },
		Log:     slog.New(slog.DiscardHandler),
	})
	listeners := func(version, routes string, others ...client.Resource) client.Update {
		l := client.Resource{Name: "80", Version: version, Body: pack(t, listenerTo(t, routes))}
		return client.Update{Type: xds.ListenerType, Upserts: append(others, l)}
	}
	table := func(name string) client.Update {
		return client.Update{Type: xds.RouteType, Upserts: []client.Resource{{Name: name, Version: "1", Body: pack(t, &routev3.RouteConfiguration{Name: name})}}}
	}
	apply := func(u client.Update) {
		t.Helper()
		if err := s.Apply(u); err != nil {
			t.Fatal(err)
		}
	}
	serves := func(when string, old *conf.Listener) {
		t.Helper()
		for i, c := range published {
			if c.Listeners["80"] != old || c.Routes["80"] == nil {
				t.Errorf("%s: publication %d of %d has listener %p, want %p; its routes are there: %v", when, i, len(published), c.Listeners["80"], old, c.Routes["80"] != nil)
			}
		}
		if len(asked) != 1 || asked[0] != "80" {
			t.Errorf("%s: routes %v are asked for", when, asked)
		}
		published = nil
	}
	shown := func(when, version string) {
		t.Helper()
		r := s.Rejections()
		if len(r) != 1 || r[0].Name != "80" || r[0].Version != version || !strings.Contains(r[0].Reason, "no such file") {
			t.Errorf("%s: rejections %+v", when, r)
		}
		d := s.dumpListeners(nil).DynamicListeners
		if d[0].ActiveState == nil || d[0].ActiveState.VersionInfo != "1" || d[0].ErrorState == nil || d[0].ErrorState.VersionInfo != version {
			t.Errorf("%s: dump %v", when, d)
		}
	}

	apply(client.Update{Type: xds.ClusterType})
	apply(listeners("1", "80"))
	apply(table("80"))
	if len(published) != 1 {
		t.Fatalf("%d publications", len(published))
	}
	old := published[0].Listeners["80"]
	published = nil

	refuse = func(l *conf.Listener) bool { return l.Name == "80" && l != old }
	other := listenerTo(t, "80")
	other.Name = "other"
	err := s.Apply(listeners("2", "80", client.Resource{Name: "other", Version: "2", Body: pack(t, other)}))
	if err == nil || !strings.Contains(err.Error(), "no such file") || strings.Contains(err.Error(), "other") {
		t.Errorf("error %v", err)
	}
	if len(published) != 1 || published[0].Listeners["other"] == nil {
		t.Errorf("the other listener is not published: %v", published)
	}
	serves("refused", old)
	shown("refused", "2")

	apply(listeners("3", "81")) // waits for its routes
	published = nil
	apply(table("81"))
	serves("refused late", old)
	shown("refused late", "3")

	fresh := listenerTo(t, "80")
	fresh.Name = "fresh"
	refuse = func(l *conf.Listener) bool { return l.Name == "fresh" }
	if err := s.Apply(client.Update{Type: xds.ListenerType, Upserts: []client.Resource{{Name: "fresh", Version: "4", Body: pack(t, fresh)}}}); err == nil {
		t.Error("a new listener is not refused")
	}
	serves("a new one", old)

	refuse = func(*conf.Listener) bool { return false }
	apply(listeners("5", "80"))
	if len(published) != 1 || published[0].Listeners["80"] == old {
		t.Errorf("a good one is not published: %v", published)
	}
	for _, r := range s.Rejections() {
		if r.Name == "80" {
			t.Errorf("still shown as refused: %+v", r)
		}
	}
}
