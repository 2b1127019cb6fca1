// Package traffic holds the bodies of the scenarios about routing. A body drives the lab and observes; a pure function judges.
package traffic

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/meshproof/meshproof/fixtures"
	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// change is one setting of the weights, what became of it, and when its samples were collected.
type change struct {
	drive.Change
	step   step
	window expect.Window
}

// canaryRun is all that the canary observed.
type canaryRun struct {
	plan     plan
	changes  []change
	requests []evidence.Request
	events   []evidence.Event
	meshed   bool
	seen     drive.Seen // over the whole load; no step of the canary disturbs a pod
	// calibration is the host under the same load while nothing changed.
	calibration record.Host
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
	targets, err := prepareCanary(ctx, e, rec)
	if err != nil {
		return run, err
	}
	first := applyStep(ctx, e, rec, canarySteps()[0])
	if first.Err != nil {
		return run, fmt.Errorf("the routes at %s: %w", first.step, first.Err)
	}
	if err := drive.Reachable(ctx, e, targets); err != nil {
		return run, err
	}
	run.seen, err = drive.Run(ctx, e, rec, drive.Plan{
		Targets: targets, Length: run.plan.length(samples) - loadHeadroom, Watch: e.Namespaces(),
		Timeline: func(ctx context.Context) error { return run.timeline(ctx, e, rec, first) },
	})
	run.requests, run.events = rec.Requests(), rec.Events()
	return run, err
}

// timeline goes through the steps while load runs. The first is live already: its time, in which nothing changes,
// calibrates what the host lacks anyway.
func (run *canaryRun) timeline(ctx context.Context, e *env.Env, rec *record.Recorder, first change) error {
	steps := canarySteps()
	rec.Step(fmt.Sprintf("step 1 of %d: %s", len(steps), first.step))
	first.window.From = time.Now()
	run.calibration = drive.Calibrate(ctx, leadIn)
	first.window.To = time.Now()
	run.changes = []change{first}
	if err := drive.Answered(ctx, rec, first.window.To); err != nil {
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
			c.window.From = c.Acked
			if c.Err != nil {
				c.window.From = time.Now()
			}
			err := drive.Sleep(ctx, time.Until(c.window.From.Add(run.plan.window(s, samples))))
			c.window.To = time.Now()
			run.changes = append(run.changes, c)
			if err != nil {
				return err
			}
			if err := drive.Answered(ctx, rec, c.window.To); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyStep applies the weights and waits until every proxy has acknowledged both rules. With the control, the weights are left
// as the first step has them.
func applyStep(ctx context.Context, e *env.Env, rec *record.Recorder, s step) change {
	weights := s
	if e.Control {
		weights = canarySteps()[0]
	}
	return change{step: s, Change: drive.Apply(ctx, e, rec, s.String(), helloWeights(e.Namespace("hello"), weights), reviewsWeights(e.Namespace("bookinfo"), weights))}
}

// prepareCanary applies what stays the same over all steps and returns the streams of load.
func prepareCanary(ctx context.Context, e *env.Env, rec *record.Recorder) ([]drive.Target, error) {
	var manifests [][]byte
	for _, m := range []struct {
		manifest fixtures.Manifest
		app      string
	}{
		{fixtures.HelloDestinationRule, "hello"},
		{fixtures.DestinationRuleAll, "bookinfo"},
		{fixtures.BookinfoGateway, "bookinfo"},
	} {
		data, err := m.manifest.YAML(fixtures.Fill{Namespace: e.Namespace(m.app)})
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, data)
	}
	manifests = append(manifests, helloGatewayObject(e.Namespace("hello")))
	if c := drive.Apply(ctx, e, rec, "subsets and gateways", manifests...); c.Err != nil {
		return nil, c.Err
	}
	return canaryTargets(ctx, e)
}

// canaryTargets says where each stream goes. Without a gateway the runner's requests go to NodePorts of the Services.
func canaryTargets(ctx context.Context, e *env.Env) ([]drive.Target, error) {
	hello, page := e.Mesh.Ingress(), e.Mesh.Ingress()
	if hello == "" {
		var err error
		if hello, err = e.NodePort(ctx, e.Namespace("hello"), "svc-hello", 8080); err != nil {
			return nil, err
		}
		if page, err = e.NodePort(ctx, e.Namespace("bookinfo"), "productpage", 9080); err != nil {
			return nil, err
		}
	}
	loadagent, err := e.PodAddress(ctx, e.Namespace(workload.LoadAgent), "app=loadagent", 8090)
	if err != nil {
		return nil, err
	}
	helloURL := "http://svc-hello." + e.Namespace("hello") + ":8080/"
	reviewsURL := "http://reviews." + e.Namespace("bookinfo") + ":9080/reviews/0"
	pl := canaryPlan(e.Spec.Profile)
	length := pl.length(samples)
	session := http.Header{"Cookie": {"session=" + base64.RawURLEncoding.EncodeToString([]byte(theUser))}}
	targets := map[string]drive.Target{
		helloGateway: {Source: drive.Runner, Profile: loadgen.Profile{URL: "http://" + hello + "/", Host: helloHost, ExpectApp: "hello"}},
		helloMesh:    {Source: drive.Agent, Profile: loadgen.Profile{URL: helloURL, ExpectApp: "hello"}},
		reviewsPage:  {Source: drive.Runner, Profile: loadgen.Profile{URL: "http://" + page + "/productpage", ExpectApp: "productpage", Attribute: "reviews"}},
		reviewsMesh:  {Source: drive.Agent, Profile: loadgen.Profile{URL: reviewsURL, ExpectApp: "reviews"}},
		jasonPage:    {Source: drive.Runner, Profile: loadgen.Profile{URL: "http://" + page + "/productpage", Header: session, ExpectApp: "productpage", Attribute: "reviews"}},
		jasonMesh:    {Source: drive.Agent, Profile: loadgen.Profile{URL: reviewsURL, Header: http.Header{"End-User": {theUser}}, ExpectApp: "reviews"}},
	}
	var out []drive.Target
	for _, sp := range pl.splits {
		for _, src := range sp.streams {
			t := targets[src.name]
			t.Profile.Name, t.Rate, t.Profile.Steps = src.name, src.rate, drive.Warm(src.rate, length)
			if t.Source == drive.Agent {
				t.Agent = "http://" + loadagent
			} else if e.Mesh.Ingress() != "" {
				t.Via = "istio-ingressgateway"
			}
			out = append(out, t)
		}
	}
	return out, nil
}
