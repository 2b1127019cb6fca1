package expect

import (
	"cmp"
	"slices"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
)

// OK is the class of a request that did not fail.
const OK = "ok"

// canceled is the class of a request that the end of the load cut off; it says nothing about the mesh.
const canceled = "canceled"

// Window is a span of time, From included, To not.
type Window struct{ From, To time.Time }

// Sent returns the requests of the named streams that left inside the window, and were not cut off by the end of the load.
func Sent(all []evidence.Request, w Window, streams ...string) []evidence.Request {
	from, to := w.From.UnixNano(), w.To.UnixNano()
	var in []evidence.Request
	for _, r := range all {
		if r.Sent >= from && r.Sent < to && r.Class != canceled && slices.Contains(streams, r.Stream) {
			in = append(in, r)
		}
	}
	return in
}

// Of returns the requests of the named streams, without those that the end of the load cut off.
func Of(all []evidence.Request, streams ...string) []evidence.Request {
	return Sent(all, Window{From: time.Unix(0, 0), To: time.Unix(1<<33, 0)}, streams...)
}

// Versions counts the answers by version. Failed requests are not answers of a version.
func Versions(rs []evidence.Request) map[string]int {
	n := map[string]int{}
	for _, r := range rs {
		if r.Class == OK {
			n[r.Version]++
		}
	}
	return n
}

// Answered counts the requests that did not fail.
func Answered(rs []evidence.Request) int {
	n := 0
	for _, r := range rs {
		if r.Class == OK {
			n++
		}
	}
	return n
}

// Lost returns the requests that failed, in the order in which they were sent.
func Lost(rs []evidence.Request) []evidence.Request {
	return inOrder(rs, func(r evidence.Request) bool { return r.Class != OK })
}

// Strays returns the answers of versions that are not listed, in the order in which they were sent.
func Strays(rs []evidence.Request, listed ...string) []evidence.Request {
	return inOrder(rs, func(r evidence.Request) bool { return r.Class == OK && !slices.Contains(listed, r.Version) })
}

// First returns when the first request that was answered by version after the moment since was sent, and whether there is one.
func First(rs []evidence.Request, version string, since time.Time) (time.Time, bool) {
	hits := inOrder(rs, func(r evidence.Request) bool {
		return r.Class == OK && r.Version == version && r.Sent >= since.UnixNano()
	})
	if len(hits) == 0 {
		return time.Time{}, false
	}
	return time.Unix(0, hits[0].Sent), true
}

// Last is like First for the last such request.
func Last(rs []evidence.Request, version string, since time.Time) (time.Time, bool) {
	hits := inOrder(rs, func(r evidence.Request) bool {
		return r.Class == OK && r.Version == version && r.Sent >= since.UnixNano()
	})
	if len(hits) == 0 {
		return time.Time{}, false
	}
	return time.Unix(0, hits[len(hits)-1].Sent), true
}

func inOrder(rs []evidence.Request, keep func(evidence.Request) bool) []evidence.Request {
	var out []evidence.Request
	for _, r := range rs {
		if keep(r) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b evidence.Request) int { return cmp.Compare(a.Sent, b.Sent) })
	return out
}
