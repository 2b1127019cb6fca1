package outlier

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Event is one line of the event log, with the fields of envoy.data.cluster.v3.OutlierDetectionEvent as Envoy writes them.
type Event struct {
	Type      string // why; of returns it says nothing
	Timestamp time.Time
	// Since is how long ago the host was ejected, or had returned, in whole seconds; nil for the first time.
	Since     *int64
	Cluster   string
	URL       string // host:port
	Action    string // EJECT or UNEJECT
	Ejections uint32
	Enforced  bool

	SuccessRate *SuccessRateEvent
	Failures    *FailureEvent
}

// SuccessRateEvent is what an ejection by success rate was decided by, in percent.
type SuccessRateEvent struct {
	Host      uint32 `json:"host_success_rate"`
	Mean      uint32 `json:"cluster_average_success_rate"`
	Threshold uint32 `json:"cluster_success_rate_ejection_threshold"`
}

// FailureEvent is what an ejection by failure percentage was decided by.
type FailureEvent struct {
	Host uint32 `json:"host_success_rate"`
}

// MarshalJSON writes the proto's JSON: proto field names, 64-bit numbers as strings.
func (e Event) MarshalJSON() ([]byte, error) {
	out := struct {
		Type        string            `json:"type"`
		Timestamp   string            `json:"timestamp"`
		Since       *string           `json:"secs_since_last_action,omitempty"`
		Cluster     string            `json:"cluster_name"`
		URL         string            `json:"upstream_url"`
		Action      string            `json:"action"`
		Ejections   uint32            `json:"num_ejections"`
		Enforced    bool              `json:"enforced"`
		SuccessRate *SuccessRateEvent `json:"eject_success_rate_event,omitempty"`
		Consecutive *struct{}         `json:"eject_consecutive_event,omitempty"`
		Failures    *FailureEvent     `json:"eject_failure_percentage_event,omitempty"`
	}{Type: e.Type, Timestamp: e.Timestamp.UTC().Format(time.RFC3339Nano), Cluster: e.Cluster, URL: e.URL, Action: e.Action, Ejections: e.Ejections,
		Enforced: e.Enforced, SuccessRate: e.SuccessRate, Failures: e.Failures}
	if e.Since != nil {
		s := fmt.Sprint(*e.Since)
		out.Since = &s
	}
	if e.Action == "EJECT" && e.SuccessRate == nil && e.Failures == nil {
		out.Consecutive = &struct{}{}
	}
	return json.Marshal(out)
}

// kept is how many events are remembered.
const kept = 1000

// Events is the event log of every cluster: the newest events, oldest first. The zero value is empty.
type Events struct {
	mu   sync.Mutex
	ring []Event
	next int // where the oldest lies once the ring is full
}

func (l *Events) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < kept {
		l.ring = append(l.ring, e)
		return
	}
	l.ring[l.next] = e
	l.next = (l.next + 1) % kept
}

// All returns the events, oldest first.
func (l *Events) All() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(append([]Event(nil), l.ring[l.next:]...), l.ring[:l.next]...)
}

// Write writes one JSON object a line, oldest first.
func (l *Events) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	for _, ev := range l.All() {
		if err := e.Encode(ev); err != nil {
			return fmt.Errorf("outlier events: %w", err)
		}
	}
	return nil
}

var statNames = [conf.EjectionTypes]string{"consecutive_5xx", "consecutive_gateway_failure", "success_rate", "consecutive_local_origin_failure",
	"local_origin_success_rate", "failure_percentage", "local_origin_failure_percentage"}

// Each calls f with every counter under Envoy's name, "outlier_detection." in front.
func (s *Stats) Each(f func(name string, gauge bool, v int64)) {
	const p = "outlier_detection.ejections_"
	f(p+"active", true, s.Active.Load())
	f(p+"enforced_total", false, s.Enforced.Load())
	f(p+"overflow", false, s.Overflow.Load())
	for i, n := range statNames {
		f(p+"detected_"+n, false, s.DetectedBy[i].Load())
		f(p+"enforced_"+n, false, s.EnforcedBy[i].Load())
	}
}
