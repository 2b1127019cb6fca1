package drive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// liveWithin is how long every proxy may take to acknowledge before a change counts as not live.
const liveWithin = 30 * time.Second

// Change is what became of objects that were applied together.
type Change struct {
	Name    string
	Applied time.Time          // when the first object was sent to the API server
	Acked   time.Time          // when the last proxy acknowledged; Applied when there is no control plane
	Acks    []verdict.ProxyAck // one a proxy, of the slowest object; none without a control plane
	Taken   bool               // the API server took every object; what it did not, no proxy can have obeyed
	Err     error              // why it is not live everywhere, or nil
}

// Apply applies manifests in the first cluster, notes it as an event of that name, and waits until every proxy of its control plane
// has acknowledged each object.
func Apply(ctx context.Context, e *env.Env, rec *record.Recorder, name string, manifests ...[]byte) Change {
	return ApplyAt(ctx, e.Sites[0], rec, name, manifests...)
}

// ApplyAt is Apply in another cluster, which has a control plane of its own.
func ApplyAt(ctx context.Context, at *env.Site, rec *record.Recorder, name string, manifests ...[]byte) Change {
	c := Change{Name: name, Applied: time.Now()}
	c.Acked = c.Applied
	var objects []workload.Object
	var texts []string
	for _, manifest := range manifests {
		applied, err := at.Client.Apply(ctx, name, manifest)
		if err != nil {
			c.Err = err
			return c
		}
		for _, o := range applied {
			texts = append(texts, fmt.Sprintf("%s generation %d", o, o.Generation))
			if o.Generation > 0 { // Services and the like have none; no proxy acknowledges them
				objects = append(objects, o)
			}
		}
	}
	c.Taken = true
	rec.Event(c.Applied, "apply", name, map[string]string{"objects": strings.Join(texts, ", ")})
	for _, o := range objects {
		push, err := awaitLive(ctx, at.Mesh, o)
		if errors.Is(err, env.ErrNoControlPlane) {
			continue
		}
		c.Acks = slowest(c.Acks, push)
		if err != nil {
			c.Err = fmt.Errorf("%s at generation %d: %w", o, o.Generation, err)
			rec.Event(time.Now(), "note", "not live: "+name, map[string]string{"object": o.String(), "why": err.Error()})
			return c
		}
		if live := push.Live(); live.After(c.Acked) {
			c.Acked = live
		}
	}
	if n := len(c.Acks); n > 0 {
		rec.Event(c.Acked, "ack", name, map[string]string{
			"proxies": strconv.Itoa(n), "after": c.Acked.Sub(c.Applied).Round(time.Microsecond).String(),
		})
	}
	return c
}

// slowest merges the way of one more object into what is known of each proxy: an acknowledgement counts when it is there for
// every object.
func slowest(acks []verdict.ProxyAck, push env.Push) []verdict.ProxyAck {
	for _, p := range push.Proxies {
		i := slices.IndexFunc(acks, func(a verdict.ProxyAck) bool { return a.Proxy == p.Proxy })
		if i < 0 {
			acks = append(acks, verdict.ProxyAck{Proxy: p.Proxy, Acked: p.Acked, At: p.AckedAt, Nack: p.Nack})
			continue
		}
		a := &acks[i]
		a.Acked = a.Acked && p.Acked
		if p.AckedAt.After(a.At) {
			a.At = p.AckedAt
		}
		if a.Nack == "" {
			a.Nack = p.Nack
		}
	}
	return acks
}

func awaitLive(ctx context.Context, mesh env.Mesh, o workload.Object) (env.Push, error) {
	var none error // that waiting would not change
	push, err := expect.Converge(ctx, expect.Budget{Within: liveWithin, Every: 20 * time.Millisecond}, func(ctx context.Context) (env.Push, error) {
		p, err := mesh.Push(ctx, o)
		var refused *env.RefusedError
		if errors.Is(err, env.ErrNoControlPlane) || errors.As(err, &refused) {
			none = err
			return p, nil
		}
		if err != nil {
			return p, err
		}
		return p, p.Complete()
	})
	return push, errors.Join(none, err)
}
