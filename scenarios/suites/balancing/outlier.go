package balancing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/fixtures/apps/service"
	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// controlPort is where a pod of hello is told to fail.
const controlPort = "8081"

// fault is one that was made, with the pods' own proof.
type fault struct {
	step          faultStep
	hosts         []string // addresses of the pods
	from, to      time.Time
	complete      bool                        // healed, and its last answers are there
	before, after map[string]service.Counters // by address: before it was told, and when it was healed
}

// outlierEvent is a line of a proxy's event log.
type outlierEvent struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Cluster   string    `json:"cluster_name"`
	Host      string    `json:"upstream_url"`
	Action    string    `json:"action"`
	Number    int       `json:"num_ejections"`
	Enforced  bool      `json:"enforced"`
}

// outlierRun is all that the scenario observed.
type outlierRun struct {
	plan        outlierPlan
	namespace   string
	begun       time.Time         // before anything was applied
	pods        map[string]string // by address
	faults      []fault
	proxyEvents map[string][]outlierEvent // by where the proxy stands
	read        time.Time                 // when the event logs were read last
	unread      map[string]error          // why a proxy could not be asked for the last time
	refusals    []refusals                // around each time that every pod failed
	overflow    map[string]map[string]int // by where the proxy stands and by Service: ejections that its cap refused, from begin to end
	shown       map[string]showing        // by where the proxy stands: whether people can see the first ejection
	lingering   []string                  // what still showed when no host was out
	rounds      []expect.Window           // of load after each round, when every host should be back
	cut         bool                      // the load was over before the timeline was
	ended       time.Time
	requests    []evidence.Request
	events      []evidence.Event
	meshed      bool
	seen        drive.Seen
	calibration record.Host
}

// Outlier makes one pod after another fail, and then all, while load runs through the gateway and between sidecars, and judges when
// each proxy took which host out, for how long, and what it cost.
func Outlier(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
	run, err := runOutlier(ctx, e, rec)
	if err != nil {
		return nil, err
	}
	return judgeOutlier(run), nil
}

func runOutlier(ctx context.Context, e *env.Env, rec *record.Recorder) (outlierRun, error) {
	run := outlierRun{plan: newOutlierPlan(e.Spec.Profile), namespace: e.Namespace("hello"), meshed: e.Mesh.Driver() != "none", begun: time.Now()}
	rec.Step("policies")
	if c := drive.Apply(ctx, e, rec, "policies", outlierObjects(run.namespace, run.plan, e.Control)); c.Err != nil {
		return run, c.Err
	}
	proxies, err := findProxies(ctx, e)
	if err != nil {
		return run, err
	}
	var names []string
	for _, s := range run.plan.services {
		names = append(names, s.name)
	}
	hosts, err := settle(ctx, e, run.namespace, proxies, names, run.plan.pods)
	if err != nil {
		return run, err
	}
	run.pods = hosts.pods
	before, err := run.tally(ctx, e, proxies)
	if err = errors.Join(err, before.err); err != nil {
		return run, err
	}
	targets, err := run.targets(ctx, e)
	if err != nil {
		return run, err
	}
	if err := drive.Reachable(ctx, e, targets); err != nil {
		return run, err
	}
	run.seen, err = drive.Run(ctx, e, rec, drive.Plan{
		Targets: targets, Length: run.plan.length(), Watch: e.Namespaces(),
		Timeline: func(ctx context.Context) error { return run.timeline(ctx, e, rec, proxies) },
	})
	if err != nil {
		return run, err
	}
	run.requests, run.events = rec.Requests(), rec.Events()
	return run, run.readLast(ctx, e, proxies, before)
}

// timeline makes the faults, one after the other.
func (run *outlierRun) timeline(ctx context.Context, e *env.Env, rec *record.Recorder, proxies []proxy) (err error) {
	client := e.HTTP(5 * time.Second)
	defer client.CloseIdleConnections()
	defer func() {
		// Whatever happened, no pod is left failing.
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		for host := range run.pods {
			if _, healErr := tell(after, client, host, &service.Control{}); healErr != nil {
				err = errors.Join(err, healErr)
			}
		}
		run.end(time.Now(), err != nil)
	}()
	rec.Step("calm")
	run.calibration = drive.Calibrate(ctx, run.plan.calm)
	hosts := slices.Sorted(maps.Keys(run.pods))
	for round := range run.plan.repeat {
		var around refusals
		for i, step := range run.plan.faults {
			rec.Step(step.name)
			bad := []string{hosts[i%len(hosts)]}
			if step.all {
				bad = hosts
				// Nobody is out when all go bad, so that what follows is the doing of this fault alone.
				if err := run.awaitReturns(ctx, e, rec, proxies); err != nil {
					return err
				}
				if around.before, err = run.tally(ctx, e, proxies); err != nil {
					return err
				}
				around.fault = len(run.faults)
			}
			look := func(context.Context, time.Time) error { return nil }
			if round == 0 && i == 0 {
				look = func(ctx context.Context, until time.Time) error { return run.look(ctx, e, proxies, bad[0], until) }
			}
			if err := run.fail(ctx, rec, client, step, bad, look); err != nil {
				return err
			}
			if err := drive.Sleep(ctx, step.pause); err != nil {
				return err
			}
		}
		rec.Step("all well again")
		if err := run.awaitReturns(ctx, e, rec, proxies); err != nil {
			return err
		}
		from := time.Now()
		if around.after, err = run.tally(ctx, e, proxies); err != nil {
			return err
		}
		run.refusals = append(run.refusals, around)
		if err := drive.Sleep(ctx, time.Until(from.Add(run.plan.after))); err != nil {
			return err
		}
		run.rounds = append(run.rounds, expect.Window{From: from, To: time.Now()})
	}
	return drive.Answered(ctx, rec, time.Now())
}

// end notes when the timeline ended, and with it a fault that was under way.
func (run *outlierRun) end(at time.Time, cut bool) {
	run.ended, run.cut = at, cut
	for i := range run.faults {
		f := &run.faults[i]
		if f.to.IsZero() {
			f.to = at
		}
		f.complete = f.complete && !(cut && at.Before(f.to.Add(run.plan.timeout+settleSlack)))
	}
}

// fail makes the hosts fail for a while, and keeps their counters. look has until the end of it.
func (run *outlierRun) fail(
	ctx context.Context, rec *record.Recorder, client *http.Client, step faultStep, hosts []string, look func(context.Context, time.Time) error,
) error {
	run.faults = append(run.faults, fault{
		step: step, hosts: hosts, from: time.Now(), before: map[string]service.Counters{}, after: map[string]service.Counters{},
	})
	f := &run.faults[len(run.faults)-1]
	var pods []string
	for _, h := range hosts {
		pods = append(pods, run.pods[h])
	}
	rec.Event(f.from, "fault", step.name, map[string]string{"pods": strings.Join(pods, ", ")})
	control := service.Control{Fail: &step.fail}
	if step.share > 0 {
		control.Share = &step.share
	}
	for _, h := range hosts {
		c, err := tell(ctx, client, h, nil)
		if err != nil {
			return err
		}
		f.before[h] = c
		if _, err := tell(ctx, client, h, &control); err != nil {
			return err
		}
	}
	end := f.from.Add(step.lasts)
	if err := look(ctx, end); err != nil {
		return err
	}
	if err := drive.Sleep(ctx, time.Until(end)); err != nil {
		return err
	}
	for _, h := range hosts {
		c, err := tell(ctx, client, h, &service.Control{})
		if err != nil {
			return err
		}
		f.after[h] = c
	}
	f.to, f.complete = time.Now(), true
	rec.Event(f.to, "fault", step.name+" no more", map[string]string{"pods": strings.Join(pods, ", ")})
	return nil
}

// readEvents adds to the event logs what the proxies have written since, and returns how many hosts are out.
func (run *outlierRun) readEvents(ctx context.Context, e *env.Env, proxies []proxy) (int, error) {
	if run.proxyEvents == nil {
		run.proxyEvents = map[string][]outlierEvent{}
	}
	out := 0
	for _, p := range proxies {
		data, err := e.Client.Admin(ctx, p.namespace, p.pod, "/outlier_events")
		if err != nil {
			return 0, err
		}
		events, err := parseEvents(bytes.NewReader(data), run.namespace, run.begun)
		if err != nil {
			return 0, fmt.Errorf("outlier events of the %s: %w", p.name, err)
		}
		run.proxyEvents[p.name] = merged(run.proxyEvents[p.name], events)
		out += outNow(run.proxyEvents[p.name])
	}
	return out, nil
}

// outNow is how many hosts are out at the end of an event log.
func outNow(events []outlierEvent) int {
	n := 0
	for _, ev := range events {
		switch ev.Action {
		case "EJECT":
			n++
		case "UNEJECT":
			n--
		}
	}
	return n
}

// returnsWithin is how long hosts may take to return, or proxies to be asked, before the timeline goes on.
const returnsWithin = 20 * time.Second

// awaitReturns waits until no host is out at any proxy. If that is not seen in time it says so and goes on: what the proxies tell in
// the end is judged.
func (run *outlierRun) awaitReturns(ctx context.Context, e *env.Env, rec *record.Recorder, proxies []proxy) error {
	_, err := expect.Converge(ctx, expect.Budget{Within: returnsWithin, Every: 100 * time.Millisecond}, func(ctx context.Context) (int, error) {
		out, err := run.readEvents(ctx, e, proxies)
		if err == nil && out > 0 {
			err = fmt.Errorf("%d hosts are out", out)
		}
		return out, err
	})
	var timeout *expect.TimeoutError
	if errors.As(err, &timeout) {
		rec.Event(time.Now(), "note", "not every host was seen to return", map[string]string{"why": timeout.Error()})
		return nil
	}
	return err
}

// readLast asks every proxy for the last time. A proxy that does not answer is noted, and is no error.
func (run *outlierRun) readLast(ctx context.Context, e *env.Env, proxies []proxy, before tally) error {
	for _, p := range proxies {
		one := []proxy{p}
		_, err := expect.Converge(ctx, expect.Budget{Within: returnsWithin}, func(ctx context.Context) (int, error) {
			run.read = time.Now()
			out, err := run.readEvents(ctx, e, one)
			if err != nil || out > 0 {
				return out, err
			}
			v, err := viewOf(ctx, e, p)
			if err == nil {
				run.lingering = append(run.lingering, v.showing(p.name, run.namespace)...)
			}
			return out, err
		})
		var timeout *expect.TimeoutError
		switch {
		case errors.As(err, &timeout):
			run.note(p.name, err)
		case err != nil:
			return err
		}
	}
	after, err := run.tally(ctx, e, proxies)
	if after.err != nil {
		run.note("stats", after.err)
		return nil
	}
	run.overflow = map[string]map[string]int{}
	for _, p := range proxies {
		run.overflow[p.name] = map[string]int{}
		for _, s := range run.plan.services {
			run.overflow[p.name][s.name] = after.since(before, p.name, s.name)
		}
	}
	return err
}

func (run *outlierRun) note(where string, err error) {
	if run.unread == nil {
		run.unread = map[string]error{}
	}
	run.unread[where] = err
}

// kept is how many events a proxy keeps; older ones are forgotten.
const kept = 1000

// merged adds to known what a later reading has beyond it.
func merged(known, later []outlierEvent) []outlierEvent {
	recent := known[max(0, len(known)-kept):]
	for _, ev := range later {
		if !slices.Contains(recent, ev) {
			known = append(known, ev)
		}
	}
	return known
}

// parseEvents reads an event log, JSON lines, and keeps what is about clusters of the namespace, was enforced, and is no older than
// since: a gateway outlives scenarios, and with it what an earlier one in a namespace of this name did.
func parseEvents(r io.Reader, namespace string, since time.Time) ([]outlierEvent, error) {
	var out []outlierEvent
	for dec := json.NewDecoder(r); ; {
		var ev outlierEvent
		switch err := dec.Decode(&ev); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return out, err
		}
		if !ev.Timestamp.Before(since) && (ev.Enforced || ev.Action == "UNEJECT") && strings.HasSuffix(ev.Cluster, "."+namespace+".svc.cluster.local") {
			out = append(out, ev)
		}
	}
}

// tell posts to a pod's control endpoint, past the mesh, or only asks it if c is nil, and returns its counters.
func tell(ctx context.Context, client *http.Client, host string, c *service.Control) (service.Counters, error) {
	var out service.Counters
	ip, _, err := net.SplitHostPort(host)
	if err != nil {
		return out, err
	}
	method, body := http.MethodGet, []byte(nil)
	if c != nil {
		method = http.MethodPost
		if body, err = json.Marshal(c); err != nil {
			return out, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+net.JoinHostPort(ip, controlPort)+"/control", bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return out, fmt.Errorf("control of %s: %w", host, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(answer))
	}
	if err == nil {
		err = json.Unmarshal(answer, &out)
	}
	if err != nil {
		return out, fmt.Errorf("control of %s: %w", host, err)
	}
	return out, nil
}

// targets are the streams of load. Failing answers are accepted by none: they are what is counted.
func (run *outlierRun) targets(ctx context.Context, e *env.Env) ([]drive.Target, error) {
	agent, err := e.PodAddress(ctx, e.Namespace(workload.LoadAgent), "app=loadagent", 8090)
	if err != nil {
		return nil, err
	}
	var out []drive.Target
	for _, s := range run.plan.services {
		for _, st := range s.streams {
			t := drive.Target{Source: st.source, Rate: st.rate, Profile: loadgen.Profile{
				Name: st.name, Steps: drive.Warm(st.rate, run.plan.length()+stickyHeadroom),
			}}
			switch {
			case st.source == drive.Agent:
				t.Agent, t.Profile.URL = "http://"+agent, "http://"+s.name+"."+run.namespace+":8080/"
			case e.Mesh.Ingress() != "":
				t.Via, t.Profile.URL, t.Profile.Host = "istio-ingressgateway", "http://"+e.Mesh.Ingress()+"/", s.name+"."+outlierDomain
			default:
				addr, err := e.NodePort(ctx, run.namespace, s.name, 8080)
				if err != nil {
					return nil, err
				}
				t.Profile.URL, t.Profile.Host = "http://"+addr+"/", s.name+"."+outlierDomain
			}
			out = append(out, t)
		}
	}
	return out, nil
}
