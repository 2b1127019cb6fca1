// Package traffic holds the bodies of the scenarios about routing. A body drives the lab and observes; a pure function judges.
package traffic

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/fixtures"
	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/agent"
	"github.com/meshproof/meshproof/loadgen/httpgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// change is one setting of the weights and what became of it.
type change struct {
	step    step
	applied time.Time          // when the first object was sent to the API server
	acked   time.Time          // when the last proxy acknowledged; applied when there is no control plane
	acks    []verdict.ProxyAck // one a proxy, of the slower object; none without a control plane
	err     error              // why it is not live everywhere, or nil
	window  expect.Window
}

// canaryRun is all that the canary observed.
type canaryRun struct {
	plan     plan
	changes  []change
	requests []evidence.Request
	events   []evidence.Event
	meshed   bool
	host     record.Host // over the whole load
	// calibration is the host under the same load while nothing changed.
	calibration record.Host
	// disturbed says which pods went away, restarted or were not Ready meanwhile; no step of the canary does that.
	disturbed []string
}

// Canary moves hello and reviews from their old version to the new one by weights, while load runs through the gateway and
// between sidecars, and judges what the load saw.
func Canary(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
	run, err := runCanary(ctx, e, rec)
	if err != nil {
		return nil, err
	}
	return judgeCanary(run), nil
}

func runCanary(ctx context.Context, e *env.Env, rec *record.Recorder) (canaryRun, error) {
	run := canaryRun{plan: canaryPlan(e.Spec.Profile), meshed: e.Mesh.Driver() != "none"}
	rec.Step("routes")
	targets, err := prepareCanary(ctx, e)
	if err != nil {
		return run, err
	}
	first := applyStep(ctx, e, rec, canarySteps()[0])
	if first.err != nil {
		return run, fmt.Errorf("the routes at %s: %w", first.step, first.err)
	}
	if err := reachable(ctx, e, targets); err != nil {
		return run, err
	}

	before, err := e.Client.Pods(ctx, namespaces()...)
	if err != nil {
		return run, err
	}
	rec.Planned(run.plan.length(samples) - loadHeadroom)
	load, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(load)
	for _, t := range targets {
		rec.Stream(record.Stream{Name: t.profile.Name, Target: t.describe(), Rate: t.rate, Source: t.source, Via: t.via})
		g.Go(func() error { return t.run(gctx, e, rec.Result) })
	}
	var host record.Host
	g.Go(func() error {
		host = record.WatchHost(load, "/proc")
		return nil
	})
	g.Go(func() error {
		defer stop()
		return run.timeline(gctx, e, rec, first)
	})
	switch err := g.Wait(); {
	case errors.Is(err, errLoadOver):
		rec.Event(time.Now(), "note", "the load was over before the steps were", map[string]string{"why": err.Error()})
	case err != nil && !errors.Is(err, context.Canceled):
		return run, err
	}
	if err := ctx.Err(); err != nil {
		return run, context.Cause(ctx)
	}
	rec.Event(time.Now(), "note", "host", host.Detail())
	after, err := e.Client.Pods(ctx, namespaces()...)
	if err != nil {
		return run, err
	}
	run.disturbed = disturbed(before, after)
	run.host, run.requests, run.events = host, rec.Requests(), rec.Events()
	return run, nil
}

// disturbed compares the pods before and after the load.
func disturbed(before, after map[string]workload.Pod) []string {
	var out []string
	for name, b := range before {
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

// namespaces are those whose pods must not restart while the canary runs.
func namespaces() []string {
	return []string{workload.HelloNamespace, workload.BookinfoNamespace, workload.LoadNamespace, env.MeshNamespace}
}

// timeline goes through the steps while load runs. The first is live already: its time, in which nothing changes,
// calibrates what the host lacks anyway.
func (run *canaryRun) timeline(ctx context.Context, e *env.Env, rec *record.Recorder, first change) error {
	steps := canarySteps()
	rec.Step(fmt.Sprintf("step 1 of %d: %s", len(steps), first.step))
	first.window.From = time.Now()
	quiet, done := context.WithTimeout(ctx, leadIn)
	run.calibration = record.WatchHost(quiet, "/proc")
	done()
	first.window.To = time.Now()
	run.changes = []change{first}
	if err := awaitAnswers(ctx, rec, first.window.To); err != nil {
		return err
	}
	for round := range run.plan.repeat {
		for i, s := range steps[1:] {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			label := fmt.Sprintf("step %d of %d: %s", i+2, len(steps), s)
			if run.plan.repeat > 1 {
				label += fmt.Sprintf(" (round %d of %d)", round+1, run.plan.repeat)
			}
			rec.Step(label)
			c := applyStep(ctx, e, rec, s)
			c.window.From = c.acked
			if c.err != nil {
				c.window.From = time.Now()
			}
			err := sleep(ctx, time.Until(c.window.From.Add(run.plan.window(s, samples))))
			c.window.To = time.Now()
			run.changes = append(run.changes, c)
			if err != nil {
				return err
			}
			if err := awaitAnswers(ctx, rec, c.window.To); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitAnswers waits until every request that was sent before the moment t has its answer, so that none of a step is answered
// under the weights of the next one, however slow the host is.
func awaitAnswers(ctx context.Context, rec *record.Recorder, t time.Time) error {
	_, err := expect.Converge(ctx, expect.Budget{Within: loadgen.DefaultTimeout + 2*time.Second, Every: 5 * time.Millisecond}, func(context.Context) (time.Time, error) {
		until := rec.AnsweredUntil()
		if until.Before(t) {
			return until, fmt.Errorf("answers are complete up to %s, not to %s", until.Format(time.TimeOnly), t.Format(time.TimeOnly))
		}
		return until, nil
	})
	var timeout *expect.TimeoutError
	if errors.As(err, &timeout) {
		return nil // what is missing shows as samples that are missing
	}
	return err
}

// applyStep applies the weights and waits until every proxy has acknowledged both rules.
func applyStep(ctx context.Context, e *env.Env, rec *record.Recorder, s step) change {
	c := change{step: s, applied: time.Now()}
	c.acked = c.applied
	var objects []workload.Object
	for _, manifest := range [][]byte{helloWeights(s), reviewsWeights(s)} {
		applied, err := e.Client.Apply(ctx, "weights "+s.String(), manifest)
		if err != nil {
			c.err = err
			return c
		}
		objects = append(objects, applied...)
	}
	for _, o := range objects {
		rec.Event(c.applied, "apply", s.String(), map[string]string{"object": o.String(), "generation": strconv.FormatInt(o.Generation, 10)})
	}
	for _, o := range objects {
		push, err := awaitLive(ctx, e, o)
		if errors.Is(err, env.ErrNoControlPlane) {
			continue
		}
		c.acks = slowest(c.acks, push)
		if err != nil {
			c.err = fmt.Errorf("%s at generation %d: %w", o, o.Generation, err)
			rec.Event(time.Now(), "note", "not live: "+s.String(), map[string]string{"object": o.String(), "why": err.Error()})
			return c
		}
		if live := push.Live(); live.After(c.acked) {
			c.acked = live
		}
	}
	if n := len(c.acks); n > 0 {
		rec.Event(c.acked, "ack", s.String(), map[string]string{
			"proxies": strconv.Itoa(n), "after": c.acked.Sub(c.applied).Round(time.Microsecond).String(),
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

func awaitLive(ctx context.Context, e *env.Env, o workload.Object) (env.Push, error) {
	var none error
	push, err := expect.Converge(ctx, expect.Budget{Within: liveWithin, Every: 20 * time.Millisecond}, func(ctx context.Context) (env.Push, error) {
		p, err := e.Mesh.Push(ctx, o)
		if errors.Is(err, env.ErrNoControlPlane) {
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

// target is one stream of load and where it leaves from.
type target struct {
	profile loadgen.Profile
	rate    float64 // requests a second, once warm
	source  string  // "runner" or "agent"
	agent   string  // http://host:port of the agent, "" for the runner
	via     string  // the gateway, "" if none
}

func (t target) describe() string {
	if t.profile.Host != "" {
		return t.profile.URL + " (" + t.profile.Host + ")"
	}
	return t.profile.URL
}

func (t target) run(ctx context.Context, e *env.Env, emit func(loadgen.Result)) error {
	var err error
	if t.agent != "" {
		client := e.HTTP(0)
		defer client.CloseIdleConnections()
		_, err = agent.Run(ctx, client, t.agent, t.profile, emit)
	} else {
		var g loadgen.Generator
		if g, err = httpgen.New(t.profile, httpgen.Options{DialContext: e.Dial}); err == nil {
			err = g.Run(ctx, emit)
		}
	}
	if ctx.Err() != nil {
		return nil // the end of the timeline, or of the whole run, which the caller sees for itself
	}
	if err == nil {
		err = errLoadOver
	}
	return fmt.Errorf("load %s: %w", t.profile.Name, err)
}

// prepareCanary applies what stays the same over all steps and returns the streams of load.
func prepareCanary(ctx context.Context, e *env.Env) ([]target, error) {
	var manifests [][]byte
	for _, m := range []struct {
		manifest  fixtures.Manifest
		namespace string
	}{
		{fixtures.HelloDestinationRule, workload.HelloNamespace},
		{fixtures.DestinationRuleAll, workload.BookinfoNamespace},
		{fixtures.BookinfoGateway, workload.BookinfoNamespace},
	} {
		data, err := m.manifest.YAML(fixtures.Fill{Namespace: m.namespace})
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, data)
	}
	manifests = append(manifests, canaryGateways())
	for _, data := range manifests {
		objects, err := e.Client.Apply(ctx, "canary", data)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			if _, err := awaitLive(ctx, e, o); err != nil && !errors.Is(err, env.ErrNoControlPlane) {
				return nil, fmt.Errorf("%s: %w", o, err)
			}
		}
	}
	return canaryTargets(ctx, e)
}

// canaryTargets says where each stream goes. Without a gateway the runner's requests go to NodePorts of the Services.
func canaryTargets(ctx context.Context, e *env.Env) ([]target, error) {
	hello, page := e.Mesh.Ingress(), e.Mesh.Ingress()
	if hello == "" {
		var err error
		if hello, err = e.NodePort(ctx, workload.HelloNamespace, "svc-hello", 8080); err != nil {
			return nil, err
		}
		if page, err = e.NodePort(ctx, workload.BookinfoNamespace, "productpage", 9080); err != nil {
			return nil, err
		}
	}
	loadagent, err := e.PodAddress(ctx, workload.LoadNamespace, "app=loadagent", 8090)
	if err != nil {
		return nil, err
	}
	pl := canaryPlan(e.Spec.Profile)
	length := pl.length(samples)
	session := http.Header{"Cookie": {"session=" + base64.RawURLEncoding.EncodeToString([]byte(theUser))}}
	profiles := map[string]target{
		helloGateway: {source: "runner", profile: loadgen.Profile{URL: "http://" + hello + "/", Host: helloHost, ExpectApp: "hello"}},
		helloMesh:    {source: "agent", profile: loadgen.Profile{URL: "http://svc-hello." + workload.HelloNamespace + ":8080/", ExpectApp: "hello"}},
		reviewsPage:  {source: "runner", profile: loadgen.Profile{URL: "http://" + page + "/productpage", ExpectApp: "productpage", Attribute: "reviews"}},
		reviewsMesh:  {source: "agent", profile: loadgen.Profile{URL: "http://reviews." + workload.BookinfoNamespace + ":9080/reviews/0", ExpectApp: "reviews"}},
		jasonPage:    {source: "runner", profile: loadgen.Profile{URL: "http://" + page + "/productpage", Header: session, ExpectApp: "productpage", Attribute: "reviews"}},
		jasonMesh: {source: "agent", profile: loadgen.Profile{
			URL: "http://reviews." + workload.BookinfoNamespace + ":9080/reviews/0", Header: http.Header{"End-User": {theUser}}, ExpectApp: "reviews",
		}},
	}
	var out []target
	for _, sp := range pl.splits {
		for _, src := range sp.streams {
			t := profiles[src.name]
			t.profile.Name, t.rate, t.profile.Steps = src.name, src.rate, schedule(src.rate, length)
			if t.source == "agent" {
				t.agent = "http://" + loadagent
			} else if e.Mesh.Ingress() != "" {
				t.via = "istio-ingressgateway"
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// reachable waits until each way in answers, so that load does not begin before the lab is one.
func reachable(ctx context.Context, e *env.Env, targets []target) error {
	client := e.HTTP(2 * time.Second)
	defer client.CloseIdleConnections()
	for _, t := range targets {
		if t.source != "runner" {
			continue // its pod is Ready, and its sidecar acknowledged
		}
		_, err := expect.Converge(ctx, expect.Budget{Within: 20 * time.Second, Streak: 3, Every: 50 * time.Millisecond}, func(ctx context.Context) (int, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.profile.URL, nil)
			if err != nil {
				return 0, err
			}
			req.Host = t.profile.Host
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			if !t.profile.Accepts(resp.StatusCode) {
				return resp.StatusCode, fmt.Errorf("status %s", resp.Status)
			}
			return resp.StatusCode, nil
		})
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", t.describe(), err)
		}
	}
	return nil
}

// errLoadOver ends a timeline that changes held up until its load was over. What was seen by then is judged.
var errLoadOver = errors.New("ended before the steps did")

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
