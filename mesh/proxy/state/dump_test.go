package state

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/decode"
)

// What a control plane sends may hold extensions that this binary does not link: the dump names them and does not fail.
func TestDumpShowsWhatIsNotLinked(t *testing.T) {
	s := New(Options{Subscribe: func(string, []string) {}, Publish: func(*conf.Config) {}, Log: slog.New(slog.DiscardHandler)})
	raw := &clusterv3.Cluster{
		Name: "outbound|80||a.b.svc.cluster.local",
		TransportSocket: &corev3.TransportSocket{Name: "other", ConfigType: &corev3.TransportSocket_TypedConfig{
			TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/example.NotLinked", Value: []byte{8, 1}},
		}},
	}
	if _, err := decode.Cluster(raw); err == nil {
		t.Fatal("an unknown transport socket was accepted; the case below needs another unknown part")
	}
	s.clusters[raw.Name] = &clusterEntry{entry: entry[*conf.Cluster]{version: "1", raw: raw, at: time.Unix(1, 0)}}
	b, err := s.Dump(DumpOptions{Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) || !strings.Contains(string(b), "example.NotLinked") || !strings.Contains(string(b), raw.Name) {
		t.Errorf("dump:\n%s", b)
	}
}
