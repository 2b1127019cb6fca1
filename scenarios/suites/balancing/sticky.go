package balancing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// span is a time in which every proxy knew the same hosts and the weights did not change.
type span struct {
	name   string // calm, joined, left
	window expect.Window
	hosts  settled
}

// arrival is how a set of hosts came to be known.
type arrival struct {
	name  string // of the span that it begins
	hosts settled
	err   error // why it is not known everywhere, or nil
}

// stickyRun is all that the scenario observed.
type stickyRun struct {
	plan        stickyPlan
	namespace   string
	policies    drive.Change
	arrivals    []arrival
	spans       []span
	weights     drive.Change // of the one Service, within the span after the join
	shared      [2]expect.Window
	addresses   map[string]string // that streams come from, where a proxy hashes by it
	requests    []evidence.Request
	events      []evidence.Event
	meshed      bool
	seen        drive.Seen
	calibration record.Host
}

// Sticky sends sessions of thousands of virtual users at Services that hash by cookie, header, query parameter and source address,
// while a host joins, weights change and a host leaves, and judges who answered whom. What was seen before an error is judged, too.
func Sticky(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
	run := &stickyRun{
		plan: newStickyPlan(e.Spec.Profile), namespace: e.Namespace("hello"), meshed: e.Mesh.Driver() != "none", addresses: map[string]string{},
		seen: drive.Seen{Host: record.Host{CPUStall: -1, Steal: -1}}, calibration: record.Host{CPUStall: -1, Steal: -1},
	}
	err := run.observe(ctx, e, rec)
	run.requests, run.events = rec.Requests(), rec.Events()
	return judgeSticky(*run), err
}

func (run *stickyRun) observe(ctx context.Context, e *env.Env, rec *record.Recorder) error {
	ns, services := run.namespace, run.plan.services
	rec.Step("policies")
	if err := scale(ctx, e, e.Namespace(workload.LoadAgent), workload.LoadAgent, stickyAgents); err != nil {
		return err
	}
	run.policies = drive.Apply(ctx, e, rec, "policies",
		stickyServices(ns, services), stickyPolicies(ns, services, e.Control), stickyRoutes(ns, services, weightsBefore))
	if run.policies.Err != nil {
		return run.policies.Err
	}
	clients, err := agents(ctx, e, stickyAgents)
	if err != nil {
		return err
	}
	var proxies []proxy
	if run.meshed {
		gateway, err := only(ctx, e, atGateway, env.MeshNamespace, "istio=ingressgateway")
		if err != nil {
			return err
		}
		proxies = append(clients[:len(clients):len(clients)], gateway)
	}
	first, err := run.arrive(ctx, e, "calm", proxies, podsBefore)
	if err != nil {
		return err
	}
	targets, err := run.targets(ctx, e, clients)
	if err != nil {
		return err
	}
	if err := drive.Reachable(ctx, e, targets); err != nil {
		return err
	}
	gone := map[string]bool{} // pods that left, or were to
	seen, err := drive.Run(ctx, e, rec, drive.Plan{
		Targets: targets, Length: run.plan.length(), Watch: e.Namespaces(),
		Except:   func(pod string) bool { return gone[pod] },
		Timeline: func(ctx context.Context) error { return run.timeline(ctx, e, rec, proxies, first, gone) },
	})
	if err == nil {
		run.seen = seen
	}
	return err
}

// parts are the clusters that load goes to.
func (run *stickyRun) parts() []part {
	var out []part
	for _, s := range run.plan.services {
		out = append(out, part{service: s.name})
		if s.weighted {
			out = append(out, part{s.name, "v1"}, part{s.name, "v2"})
		}
	}
	return out
}

// arrive waits until every proxy knows the hosts that there are to be, and notes how that went.
func (run *stickyRun) arrive(ctx context.Context, e *env.Env, name string, proxies []proxy, pods int) (settled, error) {
	hosts, err := settleParts(ctx, e, run.namespace, proxies, run.parts(), pods)
	run.arrivals = append(run.arrivals, arrival{name: name, hosts: hosts, err: err})
	return hosts, err
}

// unsettled ends a timeline whose hosts were not known in time: the claim of their arrival says so, and what came before is judged.
func unsettled(rec *record.Recorder, name string, err error) error {
	var timeout *expect.TimeoutError
	if !errors.As(err, &timeout) {
		return err
	}
	rec.Event(time.Now(), "note", "not known everywhere: "+name, map[string]string{"why": err.Error()})
	return nil
}

// timeline watches sessions while nothing changes, lets a host join, shifts the weights, and lets another host leave. It adds to gone
// the pods that left.
func (run *stickyRun) timeline(ctx context.Context, e *env.Env, rec *record.Recorder, proxies []proxy, first settled, gone map[string]bool) error {
	rec.Step("calm")
	from := time.Now()
	run.calibration = drive.Calibrate(ctx, 2500*time.Millisecond)
	if err := run.watch(ctx, rec, "calm", from, first, time.Until(from.Add(run.plan.calm))); err != nil {
		return err
	}
	run.shared[0] = run.spans[0].window

	rec.Step("a host joins")
	rec.Event(time.Now(), "apply", "join", map[string]string{"object": "Deployment hello-v1, 3 replicas"})
	if err := scale(ctx, e, run.namespace, "hello-v1", 3); err != nil {
		return err
	}
	joined, err := run.arrive(ctx, e, "joined", proxies, podsAfter)
	if err != nil {
		return unsettled(rec, "joined", err)
	}
	rec.Event(joined.at, "ack", "joined", map[string]string{"hosts": podSet(joined.pods)})
	from = time.Now()
	run.weights = drive.Apply(ctx, e, rec, fmt.Sprintf("weights %d/%d", weightsAfter[0], weightsAfter[1]), stickyRoutes(run.namespace, run.weighted(), weightsAfter))
	run.shared[1].From = run.weights.Acked
	if run.weights.Err != nil {
		run.shared[1].From = time.Now()
	}
	if err := run.watch(ctx, rec, "joined", from, joined, time.Until(from.Add(run.plan.joined))); err != nil {
		return err
	}
	run.shared[1].To = run.spans[1].window.To

	rec.Step("a host leaves")
	leaving := leaver(first, joined)
	if err := cheapen(ctx, e, run.namespace, leaving); err != nil {
		return err
	}
	gone[run.namespace+"/"+leaving] = true
	rec.Event(time.Now(), "apply", "leave", map[string]string{"object": "Deployment hello-v1, 2 replicas", "pod": leaving})
	if err := scale(ctx, e, run.namespace, "hello-v1", 2); err != nil {
		return err
	}
	left, err := run.arrive(ctx, e, "left", proxies, podsBefore)
	for addr, pod := range joined.pods {
		if _, there := left.pods[addr]; !there {
			gone[run.namespace+"/"+pod] = true
		}
	}
	if err != nil {
		return unsettled(rec, "left", err)
	}
	rec.Event(left.at, "ack", "left", map[string]string{"hosts": podSet(left.pods)})
	return run.watch(ctx, rec, "left", time.Now(), left, run.plan.left)
}

// watch lets load run for a while and notes the span, up to when its answers are there.
func (run *stickyRun) watch(ctx context.Context, rec *record.Recorder, name string, from time.Time, hosts settled, d time.Duration) error {
	if err := drive.Sleep(ctx, d); err != nil {
		return err
	}
	s := span{name: name, window: expect.Window{From: from, To: time.Now()}, hosts: hosts}
	run.spans = append(run.spans, s)
	return drive.Answered(ctx, rec, s.window.To)
}

// weighted are the Services whose weights change.
func (run *stickyRun) weighted() []stickyService {
	var out []stickyService
	for _, s := range run.plan.services {
		if s.weighted {
			out = append(out, s)
		}
	}
	return out
}

// leaver is a pod of v1 that was there from the start, so that leaving is not joining undone.
func leaver(first, joined settled) string {
	for _, addr := range slices.Sorted(maps.Keys(first.pods)) {
		if joined.versions[addr] == "v1" {
			return first.pods[addr]
		}
	}
	return ""
}

// scale sets the replicas of a Deployment.
func scale(ctx context.Context, e *env.Env, namespace, name string, replicas int32) error {
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if _, err := e.Client.Typed.AppsV1().Deployments(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("scale %s/%s to %d: %w", namespace, name, replicas, err)
	}
	return nil
}

// deletionCost is the annotation by which a ReplicaSet chooses who goes: the cheapest.
const deletionCost = "controller.kubernetes.io/pod-deletion-cost"

// cheapen makes a pod the one that goes when its Deployment shrinks, and waits until that is in the cache of the API server, which is
// what controllers watch. Who goes in the end is for the caller to see: a controller may lag behind it.
func cheapen(ctx context.Context, e *env.Env, namespace, pod string) error {
	pods := e.Client.Typed.CoreV1().Pods(namespace)
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"-100"}}}`, deletionCost)
	if _, err := pods.Patch(ctx, pod, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("annotate pod %s/%s: %w", namespace, pod, err)
	}
	_, err := expect.Converge(ctx, expect.Budget{Within: 5 * time.Second, Every: 20 * time.Millisecond}, func(ctx context.Context) (string, error) {
		p, err := pods.Get(ctx, pod, metav1.GetOptions{ResourceVersion: "0"})
		if err == nil && p.Annotations[deletionCost] == "" {
			err = errors.New("it is not annotated yet")
		}
		return pod, err
	})
	if err != nil {
		return fmt.Errorf("annotate pod %s/%s: %w", namespace, pod, err)
	}
	return nil
}

// targets are the streams of load. Without a gateway the runner's requests go to NodePorts of the Services.
func (run *stickyRun) targets(ctx context.Context, e *env.Env, clients []proxy) ([]drive.Target, error) {
	var out []drive.Target
	for _, s := range run.plan.services {
		path := s.path
		if path == "" {
			path = "/"
		}
		for _, st := range s.streams {
			t := drive.Target{Source: st.source, Rate: st.rate, Profile: loadgen.Profile{
				Name: st.name, ExpectApp: "hello", Sessions: st.sessions, Steps: drive.Warm(st.rate, run.plan.length()+stickyHeadroom),
			}}
			if st.sessions > 0 && s.by == byHeader {
				t.Profile.SessionHeader = sessionHeader
			}
			if st.sessions > 0 && s.by == byQuery {
				t.Profile.SessionQuery = sessionQuery
			}
			switch {
			case st.source == drive.Agent:
				client := clients[st.agent]
				t.Agent, t.Profile.URL = "http://"+client.ip+":8090", "http://"+s.name+"."+run.namespace+":8080"+path
				if run.meshed {
					run.addresses[st.name] = client.ip
				}
				if st.through && e.Mesh.Ingress() != "" {
					t.Via, t.Profile.URL, t.Profile.Host = "istio-ingressgateway", "http://istio-ingressgateway."+env.MeshNamespace+path, s.name+"."+stickyDomain
				}
			case e.Mesh.Ingress() != "":
				t.Via, t.Profile.URL, t.Profile.Host = "istio-ingressgateway", "http://"+e.Mesh.Ingress()+path, s.name+"."+stickyDomain
			default:
				addr, err := e.NodePort(ctx, run.namespace, s.name, 8080)
				if err != nil {
					return nil, err
				}
				t.Profile.URL, t.Profile.Host = "http://"+addr+path, s.name+"."+stickyDomain
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// at is the proxy that a stream's requests meet first.
func (st stickyStream) at() string {
	if st.source == drive.Runner || st.through {
		return atGateway
	}
	return agentAt(st.agent)
}

// cookieOf finds a cookie's value in a Cookie header, without its quotes.
func cookieOf(header, name string) string {
	for pair := range strings.SplitSeq(header, ";") {
		if k, v, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && k == name {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

func sentAt(r evidence.Request) time.Time { return time.Unix(0, r.Sent) }
