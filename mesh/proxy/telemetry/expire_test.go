package telemetry

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// TestExpiry: series that nothing happens in go after a while, and those in use keep their counts.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(conf.Workload{Name: "a"}, "1.2.3")
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- m.Run(ctx) }()
		from := func(name string) *Record {
			r := record()
			r.Direction, r.Endpoint, r.GRPC = conf.Inbound, nil, true
			r.Peer = &conf.Workload{Name: name}
			r.MessagesIn.N = 1
			return r
		}
		connection := func(name string) *Record {
			r := record()
			r.Endpoint = &conf.Endpoint{Workload: &conf.Workload{Name: name}}
			return r
		}
		has := func(text string) bool {
			var b bytes.Buffer
			m.WritePrometheus(&b)
			return strings.Contains(b.String(), text)
		}
		for i := range maxPeers {
			m.HTTP(from("gone" + strconv.Itoa(i)))
		}
		m.HTTP(from("late"))
		if has(`"late"`) {
			t.Fatal("there is room for another peer")
		}
		open := connection("open")
		m.TCPOpened(open)
		m.TCPOpened(connection("closed"))
		m.TCPClosed(connection("closed"))
		quiet := from("gone0")
		quiet.MessagesIn.N = 0
		for range 10 { // five hours
			m.HTTP(quiet)
			time.Sleep(30 * time.Minute)
		}
		synctest.Wait()
		if len(m.http.all) != 1 || len(m.grpc) != 1 || len(m.tcp.all) != 1 || len(m.peers) != 1 {
			t.Errorf("%d series of HTTP, %d of messages, %d of TCP and %d peers are left, want one of each", len(m.http.all), len(m.grpc), len(m.tcp.all), len(m.peers))
		}
		m.HTTP(from("gone0"))
		if n := m.grpc[onlyKey(m.grpc)].in.Load(); n != 2 {
			t.Errorf("%d messages, want 2: a series in use lost its count", n)
		}
		if n := m.http.all[onlyKey(m.http.all)].requests.Load(); n != 12 {
			t.Errorf("%d requests, want 12", n)
		}
		m.HTTP(from("late"))
		if !has(`"late"`) {
			t.Error("there is no room for a peer though others are long gone")
		}
		m.TCPClosed(open)
		if !has(`destination_workload="open"`) || has(`destination_workload="closed"`) {
			t.Error("the series of an open connection is to stay, that of a closed one to go")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if len(m.http.all)+len(m.grpc)+len(m.tcp.all)+len(m.peers) != 0 {
			t.Error("series are left though nothing happens")
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

func onlyKey[V any](m map[string]V) string {
	for k := range m {
		return k
	}
	return ""
}
