// Package drive carries out what scenarios have in common: load from outside and inside while a timeline of changes goes on,
// changes that are followed to every proxy, and what the host and the pods did meanwhile. It judges nothing.
package drive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// Plan is the load of a scenario and what goes on under it.
type Plan struct {
	Targets []Target
	Length  time.Duration // that the load is meant to last, for people who watch
	// Watch are the namespaces, of every cluster, whose pods nobody may disturb, beside the mesh's own. Except names pods
	// ("namespace/pod", with "cluster/" before it where there are several) that the timeline itself makes, changes or removes; nil
	// for none.
	Watch  []string
	Except func(pod string) bool
	// Timeline is what happens under the load; when it returns the load ends. It sees ErrOver as the cause of its context's end when
	// the load ended before it.
	Timeline func(ctx context.Context) error
}

// Seen is what the host and the pods did while load ran.
type Seen struct {
	Host      record.Host
	Disturbed []string // pods outside the experiment that went away, restarted or were not Ready
}

// ErrOver ends a timeline that changes held up until its load was over. What was seen by then is judged.
var ErrOver = errors.New("ended before the steps did")

// Run runs the load and the timeline, and has the lab's memory read right before and right after the load. A load that ends before
// the timeline does is noted as an event and is no error.
func Run(ctx context.Context, e *env.Env, rec *record.Recorder, p Plan) (Seen, error) {
	rec.MemoryBefore(memory(ctx, e, rec))
	watched := append(slices.Clone(p.Watch), env.MeshNamespace)
	before, err := pods(ctx, e, watched)
	if err != nil {
		return Seen{}, err
	}
	rec.Planned(p.Length)
	load, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(load)
	for _, t := range p.Targets {
		rec.Stream(record.Stream{Name: t.Profile.Name, Target: t.Describe(), Rate: t.Rate, Source: t.Source, Via: t.Via})
		g.Go(func() error { return t.Run(gctx, e, rec.Result) })
	}
	var host record.Host
	g.Go(func() error {
		host = record.WatchHost(load, "/proc")
		return nil
	})
	g.Go(func() error {
		defer stop()
		return p.Timeline(gctx)
	})
	err = g.Wait()
	rec.MemoryAfter(memory(ctx, e, rec))
	switch {
	case errors.Is(err, ErrOver):
		rec.Event(time.Now(), "note", "the load was over before the steps were", map[string]string{"why": err.Error()})
	case err != nil && !errors.Is(err, context.Canceled):
		return Seen{}, err
	}
	if ctx.Err() != nil {
		return Seen{}, context.Cause(ctx)
	}
	rec.Event(time.Now(), "note", "host", host.Detail())
	after, err := pods(ctx, e, watched)
	if err != nil {
		return Seen{}, err
	}
	return Seen{Host: host, Disturbed: disturbed(before, after, p.Except)}, nil
}

// memory reads what the lab takes, while nothing else goes on. It is no condition of the scenario: what cannot be read is noted.
func memory(ctx context.Context, e *env.Env, rec *record.Recorder) uint64 {
	bytes, err := e.Memory(ctx)
	if err != nil {
		rec.Event(time.Now(), "note", "memory was not read", map[string]string{"why": err.Error()})
	}
	return bytes
}

// pods are those of the namespaces in every cluster.
func pods(ctx context.Context, e *env.Env, namespaces []string) (map[string]workload.Pod, error) {
	if len(e.Sites) == 1 {
		return e.Client.Pods(ctx, namespaces...)
	}
	all := map[string]workload.Pod{}
	for _, s := range e.Sites {
		list, err := s.Client.Pods(ctx, namespaces...)
		if err != nil {
			return nil, fmt.Errorf("cluster %s: %w", s.Cluster.Name(), err)
		}
		for name, p := range list {
			all[s.Cluster.Name()+"/"+name] = p
		}
	}
	return all, nil
}

// disturbed compares the pods before and after the load.
func disturbed(before, after map[string]workload.Pod, except func(string) bool) []string {
	var out []string
	for name, b := range before {
		if except != nil && except(name) {
			continue
		}
		a, there := after[name]
		switch {
		case !there:
			out = append(out, name+" (gone)")
		case a.Restarts > b.Restarts:
			out = append(out, fmt.Sprintf("%s (%d times)", name, a.Restarts-b.Restarts))
		case !a.Ready:
			out = append(out, fmt.Sprintf("%s (no restart, but not Ready since %s)", name, a.Since.UTC().Format(time.TimeOnly)))
		case !a.Since.Equal(b.Since):
			out = append(out, fmt.Sprintf("%s (no restart, but not Ready until %s)", name, a.Since.UTC().Format(time.TimeOnly)))
		}
	}
	slices.Sort(out)
	return out
}

// Answered waits until every request that was sent before the moment t has its answer, so that none is answered under a later
// change, however slow the host is. What is missing after the longest timeout of a request is no error: it shows as samples
// that are missing.
func Answered(ctx context.Context, rec *record.Recorder, t time.Time) error {
	_, err := expect.Converge(ctx, expect.Budget{Within: loadgen.DefaultTimeout + 2*time.Second, Every: 5 * time.Millisecond}, func(context.Context) (time.Time, error) {
		until := rec.AnsweredUntil()
		if until.Before(t) {
			return until, fmt.Errorf("answers are complete up to %s, not to %s", until.Format(time.TimeOnly), t.Format(time.TimeOnly))
		}
		return until, nil
	})
	var timeout *expect.TimeoutError
	if errors.As(err, &timeout) {
		return nil
	}
	return err
}

// Calibrate looks at the host for a while in which nothing changes.
func Calibrate(ctx context.Context, d time.Duration) record.Host {
	quiet, done := context.WithTimeout(ctx, d)
	defer done()
	return record.WatchHost(quiet, "/proc")
}

// Sleep waits, or returns why ctx ended.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
