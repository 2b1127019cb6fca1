// Package loadgen is open-loop load: requests leave when the schedule says so, whatever the answers do, and latency counts
// from the intended time. It knows nothing of Kubernetes.
package loadgen

import (
	"context"
	"time"
)

// Pacer is a schedule. Next returns how long to wait before request number sent (from 0), given the time elapsed since the
// start, and whether the schedule is over. Implementations are stateless and safe for concurrent use.
type Pacer interface {
	Next(elapsed time.Duration, sent uint64) (wait time.Duration, done bool)
}

// Class is why a request counts as failed, or OK.
type Class string

// The classes of a Result.
const (
	OK       Class = "ok"
	Connect  Class = "connect" // no connection: nothing was sent
	Reset    Class = "reset"   // the connection ended before the whole answer
	Timeout  Class = "timeout"
	Status   Class = "status"   // an answer whose status the profile does not accept
	Mismatch Class = "mismatch" // a body that is not what the target promises
	Canceled Class = "canceled" // the run was stopped; not evidence of anything
)

// Result is one request. Times are wall clock with the monotonic reading kept, so that differences are exact.
type Result struct {
	Seq      uint64    `json:"seq"`
	Stream   string    `json:"stream"` // name of the Profile: north-south, east-west...
	Intended time.Time `json:"intended"`
	Sent     time.Time `json:"sent"`
	Done     time.Time `json:"done"`
	Code     int       `json:"code"`              // HTTP status, 0 if none
	Class    Class     `json:"class"`             // OK or why not
	Err      string    `json:"err,omitempty"`     // text behind Class
	App      string    `json:"app,omitempty"`     // from the response: which app answered
	Version  string    `json:"version,omitempty"` // from the response: which version
	Pod      string    `json:"pod,omitempty"`     // from the response: which pod
	Cluster  string    `json:"cluster,omitempty"` // from the response: in which cluster, where the app knows
	// Session is the virtual user, from 1; 0 if the profile has none. Cookie is what it sent, SetCookie what it was told to keep, one
	// a line; both as on the wire, clipped.
	Session   int    `json:"session,omitempty"`
	Cookie    string `json:"cookie,omitempty"`
	SetCookie string `json:"setCookie,omitempty"`
	BytesIn   uint64 `json:"bytesIn"`
	BytesOut  uint64 `json:"bytesOut"`
}

// Latency is the time from the intended start to the end of the answer.
func (r Result) Latency() time.Duration { return r.Done.Sub(r.Intended) }

// ServiceTime is the time from the actual send to the end of the answer.
func (r Result) ServiceTime() time.Duration { return r.Done.Sub(r.Sent) }

// Lateness is how far behind its schedule the request left.
func (r Result) Lateness() time.Duration { return r.Sent.Sub(r.Intended) }

// Generator sends the load of one profile. Run returns when the schedule is over or ctx ends, after every request has an
// answer or was abandoned; it calls emit from one goroutine at a time. The error says that load could not be generated at
// all; failed requests are Results.
type Generator interface {
	Run(ctx context.Context, emit func(Result)) error
}
