// Package agent carries a Generator over HTTP, so that load can leave from inside a cluster: the server runs the profiles
// that are posted to it, the client is a Generator that runs a profile there.
//
// POST /run takes a Profile as JSON and streams one JSON object a line: {"result":...} while the load runs, and at the very
// end {"trailer":...}. A stream without a trailer was cut. Ending the request ends the run. GET /ready answers 200.
package agent

import (
	"context"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/summary"
)

// Trailer is the last record of a run.
type Trailer struct {
	Summary summary.Summary `json:"summary"`
	Results uint64          `json:"results"` // how many were streamed
	Error   string          `json:"error,omitempty"`
}

// record is one line of a stream; one of the two is set.
type record struct {
	Result  *loadgen.Result `json:"result,omitempty"`
	Trailer *Trailer        `json:"trailer,omitempty"`
}

// maxProfile bounds a posted profile.
const maxProfile = 4 << 20

// RunFunc generates the load of a profile, as a Generator's Run does. The error of a profile that cannot run at all comes
// from Profile.Validate.
type RunFunc func(ctx context.Context, p loadgen.Profile, emit func(loadgen.Result)) error
