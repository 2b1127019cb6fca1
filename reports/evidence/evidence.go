// Package evidence holds what a run observed, append-only: requests, events, artifacts. It judges nothing.
package evidence

import "time"

// Request is one observed request. Times are Unix nanoseconds.
type Request struct {
	Stream   string `json:"stream"`
	Seq      uint64 `json:"seq"`
	Intended int64  `json:"intended"`
	Sent     int64  `json:"sent"`
	Done     int64  `json:"done"`
	Code     int    `json:"code"`
	Class    string `json:"class"` // "ok" or why it failed
	Err      string `json:"err,omitempty"`
	App      string `json:"app,omitempty"`
	Version  string `json:"version,omitempty"`
	Pod      string `json:"pod,omitempty"`
	Cluster  string `json:"cluster,omitempty"`

	// Of a session: its number from 1, the Cookie header it sent, and the Set-Cookie headers it got, one a line.
	Session   int    `json:"session,omitempty"`
	Cookie    string `json:"cookie,omitempty"`
	SetCookie string `json:"setCookie,omitempty"`
}

// Event is something that happened to the lab at a time: a change applied, acked, a fault, a pod restart.
type Event struct {
	Time   time.Time         `json:"time"`
	Kind   string            `json:"kind"` // apply | ack | fault | step | note
	Name   string            `json:"name"` // short label for a mark on the timeline
	Detail map[string]string `json:"detail,omitempty"`
}
