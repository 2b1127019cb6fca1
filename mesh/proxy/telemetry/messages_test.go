package telemetry

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// message is one frame of gRPC with n bytes.
func message(n int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), bytes.Repeat([]byte{1}, n)...)
}

func TestMessages(t *testing.T) {
	three := bytes.Join([][]byte{message(7), message(0), message(300)}, nil)
	for _, c := range []struct {
		name string
		body []byte
		want uint64
	}{
		{"nothing", nil, 0},
		{"an empty message", message(0), 1},
		{"three messages", three, 3},
		{"a message that has begun counts, as in Envoy", append(message(7), 1), 2},
		{"a cut message", message(100)[:50], 1},
		{"the longest length", append([]byte{0, 255, 255, 255, 255}, three...), 1},
	} {
		for step := 1; step <= max(1, len(c.body)); step++ {
			var m Messages
			for rest := c.body; len(rest) > 0; rest = rest[min(step, len(rest)):] {
				m.Add(rest[:min(step, len(rest))])
			}
			if m.N != c.want {
				t.Errorf("%s in pieces of %d: %d, want %d", c.name, step, m.N, c.want)
			}
		}
	}
}

// FuzzMessages: how the bytes are cut changes nothing, and it is what reading them whole finds.
func FuzzMessages(f *testing.F) {
	f.Add(append(message(7), message(0)...), uint8(3))
	f.Add([]byte{0, 255, 255, 255, 255, 1}, uint8(1))
	f.Add([]byte{1, 0, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, body []byte, cut uint8) {
		var want uint64
		for rest := body; len(rest) > 0; want++ {
			if len(rest) < 5 {
				rest = nil
				continue
			}
			rest = rest[min(5+uint64(binary.BigEndian.Uint32(rest[1:])), uint64(len(rest))):]
		}
		var m Messages
		step := int(cut) + 1
		for rest := body; len(rest) > 0; rest = rest[min(step, len(rest)):] {
			m.Add(rest[:min(step, len(rest))])
		}
		if m.N != want {
			t.Errorf("%d messages, want %d", m.N, want)
		}
	})
}

// TestMessageMetrics: messages have the labels of both ends alone, whatever the calls' outcomes; calls without any have no series.
func TestMessageMetrics(t *testing.T) {
	m := NewMetrics(conf.Workload{Name: "a"}, "1.2.3")
	call := func(in, out uint64, status int) {
		r := record()
		r.GRPC, r.Status = true, status
		r.MessagesIn.N, r.MessagesOut.N = in, out
		m.HTTP(r)
	}
	call(0, 0, 503)
	page := func() string {
		var b bytes.Buffer
		m.WritePrometheus(&b)
		return b.String()
	}
	if strings.Contains(page(), "_messages_total") {
		t.Error("calls without messages have a series of them")
	}
	call(2, 5, 200)
	call(1, 0, 503)
	got := page()
	for _, want := range []string{
		"# TYPE istio_request_messages_total counter\nistio_request_messages_total{reporter=\"source\"", "# TYPE istio_response_messages_total counter\n",
		`destination_cluster="east"} 3` + "\n", `destination_cluster="east"} 5` + "\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "_messages_total{"); n != 2 {
		t.Errorf("%d series of messages, want 2", n)
	}
	r := record()
	r.GRPC, r.MessagesIn.N = true, 1
	if n := testing.AllocsPerRun(100, func() { m.HTTP(r) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

// TestMessagesWhileACallGoesOn: messages that were reported while the call went on are not counted again at its end, and are in the
// same series. The peer of one that only goes on keeps its labels.
func TestMessagesWhileACallGoesOn(t *testing.T) {
	for _, way := range []conf.Direction{conf.Inbound, conf.Outbound} {
		m := NewMetrics(conf.Workload{Name: "a"}, "1.2.3")
		r := record()
		r.Direction, r.GRPC, r.Peer = way, true, &conf.Workload{Name: "peer"}
		for range 2 {
			r.MessagesIn.N += 3
			r.MessagesOut.N++
			m.Messages(r, r.MessagesIn.Untold(), r.MessagesOut.Untold())
		}
		if x := m.grpc[onlyKey(m.grpc)]; len(m.http.all) != 0 || x.in.Load() != 6 || x.out.Load() != 2 {
			t.Errorf("%v: %d in, %d out, and %d series of calls that did not end", way, x.in.Load(), x.out.Load(), len(m.http.all))
		}
		m.expire(time.Now())
		if len(m.grpc) != 1 || len(m.peers) != 1 {
			t.Errorf("%v: %d series and %d peers are left", way, len(m.grpc), len(m.peers))
		}
		r.MessagesIn.N++
		m.HTTP(r)
		if x := m.grpc[onlyKey(m.grpc)]; len(m.grpc) != 1 || x.in.Load() != 7 || x.out.Load() != 2 {
			t.Errorf("%v: %d in and %d out in one of %d series at the end", way, x.in.Load(), x.out.Load(), len(m.grpc))
		}
	}
}
