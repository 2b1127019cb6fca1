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
	overflow    int                       // ejections that the cap of halfAtMost refused, as its proxy counts
	shown       []string                  // what a proxy failed to show of an ejection while it lasted
	looked      bool                      // and whether it was asked
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
	run.requests, run.events = rec.Requests(), rec.Events()
	return run, err
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
	}()
	rec.Step("calm")
	run.calibration = drive.Calibrate(ctx, run.plan.calm)
	hosts := slices.Sorted(maps.Keys(run.pods))
	for round := range run.plan.repeat {
		for i, step := range run.plan.faults {
			rec.Step(step.name)
			bad := []string{hosts[i%len(hosts)]}
			if step.all {
				bad = hosts
				// Nobody is out when all go bad, so that what follows is the doing of this fault alone.
				if err := run.awaitReturns(ctx, e, proxies, 20*time.Second); err != nil {
					return err
				}
			}
			look := round == 0 && i == 0
			if err := run.fail(ctx, e, rec, client, step, bad, proxies, look); err != nil {
				return err
			}
			if err := drive.Sleep(ctx, step.pause); err != nil {
				return err
			}
		}
		rec.Step("all well again")
		if err := run.awaitReturns(ctx, e, proxies, 20*time.Second); err != nil {
			return err
		}
		if err := drive.Sleep(ctx, run.plan.after); err != nil {
			return err
		}
	}
	run.ended = time.Now()
	if err := run.readOverflow(ctx, e, proxies); err != nil {
		return err
	}
	return drive.Answered(ctx, rec, run.ended)
}

// fail makes the hosts fail for a while, and keeps their counters.
func (run *outlierRun) fail(ctx context.Context, e *env.Env, rec *record.Recorder, client *http.Client, step faultStep, hosts []string, proxies []proxy, look bool) error {
	f := fault{step: step, hosts: hosts, before: map[string]service.Counters{}, after: map[string]service.Counters{}}
	var pods []string
	for _, h := range hosts {
		pods = append(pods, run.pods[h])
	}
	f.from = time.Now()
	rec.Event(f.from, "fault", step.name, map[string]string{"pods": strings.Join(pods, ", ")})
	for _, h := range hosts {
		c, err := tell(ctx, client, h, nil)
		if err != nil {
			return err
		}
		f.before[h] = c
		if _, err := tell(ctx, client, h, &service.Control{Fail: &step.fail}); err != nil {
			return err
		}
	}
	end := f.from.Add(step.lasts)
	if look && run.meshed {
		if err := run.look(ctx, e, proxies, hosts[0], end); err != nil {
			return err
		}
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
	f.to = time.Now()
	rec.Event(f.to, "fault", step.name+" no more", map[string]string{"pods": strings.Join(pods, ", ")})
	run.faults = append(run.faults, f)
	return nil
}

// look asks the agent's proxy, while a host of all5xx should be out, whether it shows that to people.
func (run *outlierRun) look(ctx context.Context, e *env.Env, proxies []proxy, host string, until time.Time) error {
	i := slices.IndexFunc(proxies, func(p proxy) bool { return p.name == atAgent })
	if i < 0 {
		return nil
	}
	cluster := clusterName(run.namespace, all5xx, "")
	run.looked = true
	for {
		clusters, err := e.Client.Admin(ctx, proxies[i].namespace, proxies[i].pod, "/clusters")
		if err != nil {
			return err
		}
		stats, err := e.Client.Admin(ctx, proxies[i].namespace, proxies[i].pod, "/stats")
		if err != nil {
			return err
		}
		run.shown = nil
		if !bytes.Contains(clusters, []byte(cluster+"::"+host+"::health_flags::/failed_outlier_check")) {
			run.shown = append(run.shown, "/clusters has no failed_outlier_check for "+host)
		}
		if statOf(stats, "cluster."+cluster+".outlier_detection.ejections_active") < 1 {
			run.shown = append(run.shown, "/stats has no ejections_active")
		}
		if len(run.shown) == 0 || time.Now().After(until) {
			return nil
		}
		if err := drive.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// statOf finds a counter in the text of /stats, 0 if it is not there.
func statOf(stats []byte, name string) int {
	for line := range bytes.Lines(stats) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+": ")); ok {
			n := 0
			if _, err := fmt.Sscan(string(rest), &n); err == nil {
				return n
			}
		}
	}
	return 0
}

func (run *outlierRun) readOverflow(ctx context.Context, e *env.Env, proxies []proxy) error {
	for _, p := range proxies {
		stats, err := e.Client.Admin(ctx, p.namespace, p.pod, "/stats")
		if err != nil {
			return err
		}
		run.overflow += statOf(stats, "cluster."+clusterName(run.namespace, halfAtMost, "")+".outlier_detection.ejections_overflow")
	}
	return nil
}

// awaitReturns waits until no host is out at any proxy, or the time is over: then the judge sees it. It keeps the event logs.
func (run *outlierRun) awaitReturns(ctx context.Context, e *env.Env, proxies []proxy, within time.Duration) error {
	_, err := expect.Converge(ctx, expect.Budget{Within: within, Every: 100 * time.Millisecond}, func(ctx context.Context) (struct{}, error) {
		if run.proxyEvents == nil {
			run.proxyEvents = map[string][]outlierEvent{}
		}
		out := 0
		for _, p := range proxies {
			data, err := e.Client.Admin(ctx, p.namespace, p.pod, "/outlier_events")
			if err != nil {
				return struct{}{}, err
			}
			events, err := parseEvents(bytes.NewReader(data), run.namespace, run.begun)
			if err != nil {
				return struct{}{}, fmt.Errorf("outlier events of the %s: %w", p.name, err)
			}
			run.proxyEvents[p.name] = merged(run.proxyEvents[p.name], events)
			for _, ev := range run.proxyEvents[p.name] {
				switch ev.Action {
				case "EJECT":
					out++
				case "UNEJECT":
					out--
				}
			}
		}
		if out > 0 {
			return struct{}{}, fmt.Errorf("%d hosts are out", out)
		}
		return struct{}{}, nil
	})
	var timeout *expect.TimeoutError
	if errors.As(err, &timeout) {
		return nil
	}
	return err
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
