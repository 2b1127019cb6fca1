package drive

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/agent"
	"github.com/meshproof/meshproof/loadgen/httpgen"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// The places that load starts from.
const (
	Runner = "runner" // outside the clusters, beside the nodes
	Agent  = "agent"  // a pod of the mesh with a sidecar of its own
)

// Target is one stream of load and where it leaves from.
type Target struct {
	Profile loadgen.Profile
	Rate    float64 // requests a second, once warm
	Source  string  // Runner or Agent
	Agent   string  // http://host:port of the agent, "" for the runner
	Via     string  // the gateway that it enters by, "" if none
}

// Describe is the URL, with the host that it is asked for.
func (t Target) Describe() string {
	if t.Profile.Host != "" {
		return t.Profile.URL + " (" + t.Profile.Host + ")"
	}
	return t.Profile.URL
}

// Run sends the load until it is over, which is an ErrOver, or ctx ends, which is none.
func (t Target) Run(ctx context.Context, e *env.Env, emit func(loadgen.Result)) error {
	var err error
	if t.Agent != "" {
		client := e.HTTP(0)
		defer client.CloseIdleConnections()
		_, err = agent.Run(ctx, client, t.Agent, t.Profile, emit)
	} else {
		var g loadgen.Generator
		if g, err = httpgen.New(t.Profile, httpgen.Options{DialContext: e.Dial}); err == nil {
			err = g.Run(ctx, emit)
		}
	}
	if ctx.Err() != nil {
		return nil // the end of the timeline, or of the whole run, which the caller sees for itself
	}
	if err == nil {
		err = ErrOver
	}
	return fmt.Errorf("load %s: %w", t.Profile.Name, err)
}

// Warm is a stream's rate over time. It warms up in steps: the full rate at once on cold proxies measures the handshakes of
// hundreds of connections, not the mesh.
func Warm(rate float64, length time.Duration) []loadgen.Step {
	const part = 300 * time.Millisecond
	return []loadgen.Step{{Rate: rate / 10, For: part}, {Rate: rate / 3, For: part}, {Rate: rate * 2 / 3, For: part}, {Rate: rate, For: length}}
}

// Reachable waits until each way in from outside answers as its profile accepts, so that load does not begin before the lab is
// one. The agent's ways are open when its pod is Ready and its sidecar has acknowledged.
func Reachable(ctx context.Context, e *env.Env, targets []Target) error {
	client := e.HTTP(2 * time.Second)
	defer client.CloseIdleConnections()
	for _, t := range targets {
		if t.Source != Runner {
			continue
		}
		_, err := expect.Converge(ctx, expect.Budget{Within: 20 * time.Second, Streak: 3, Every: 50 * time.Millisecond}, func(ctx context.Context) (int, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.Profile.URL, nil)
			if err != nil {
				return 0, err
			}
			req.Host = t.Profile.Host
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			if !t.Profile.Accepts(resp.StatusCode) {
				return resp.StatusCode, fmt.Errorf("status %s", resp.Status)
			}
			return resp.StatusCode, nil
		})
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", t.Describe(), err)
		}
	}
	return nil
}
