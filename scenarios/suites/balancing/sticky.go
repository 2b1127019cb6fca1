package balancing

import (
	"context"
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

// stickyRun is all that the scenario observed.
type stickyRun struct {
	plan        stickyPlan
	namespace   string
	spans       []span
	weights     drive.Change // of the one Service, within the span after the join
	shared      [2]expect.Window
	agentIP     string
	requests    []evidence.Request
	events      []evidence.Event
	meshed      bool
	seen        drive.Seen
	calibration record.Host
}

// Sticky sends sessions of thousands of virtual users at Services that hash by cookie, header, query parameter and source address,
// while a host joins, weights change and a host leaves, and judges who answered whom.
func Sticky(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
	run, err := runSticky(ctx, e, rec)
	if err != nil {
		return nil, err
	}
	return judgeSticky(run), nil
}

func runSticky(ctx context.Context, e *env.Env, rec *record.Recorder) (stickyRun, error) {
	ns := e.Namespace("hello")
	run := stickyRun{plan: newStickyPlan(e.Spec.Profile), namespace: ns, meshed: e.Mesh.Driver() != "none"}
	rec.Step("policies")
	services := run.plan.services
	c := drive.Apply(ctx, e, rec, "policies", stickyServices(ns, services), stickyPolicies(ns, services, e.Control), stickyRoutes(ns, services, weightsBefore))
	if c.Err != nil {
		return run, c.Err
	}
	proxies, err := findProxies(ctx, e)
	if err != nil {
		return run, err
	}
	for _, p := range proxies {
		if p.name == atAgent {
			run.agentIP = p.ip
		}
	}
	names := serviceNames(services)
	first, err := settle(ctx, e, ns, proxies, names, 4)
	if err != nil {
		return run, err
	}
	targets, err := run.targets(ctx, e)
	if err != nil {
		return run, err
	}
	if err := drive.Reachable(ctx, e, targets); err != nil {
		return run, err
	}
	var moving string // the pod that will leave
	run.seen, err = drive.Run(ctx, e, rec, drive.Plan{
		Targets: targets, Length: run.plan.length(), Watch: e.Namespaces(),
		Except: func(pod string) bool { return pod == ns+"/"+moving },
		Timeline: func(ctx context.Context) (err error) {
			moving, err = run.timeline(ctx, e, rec, proxies, first)
			return err
		},
	})
	run.requests, run.events = rec.Requests(), rec.Events()
	return run, err
}

func serviceNames(services []stickyService) []string {
	var out []string
	for _, s := range services {
		out = append(out, s.name)
	}
	return out
}

// timeline watches sessions while nothing changes, lets a host join, shifts the weights, and lets another host leave. It returns the
// name of the pod that left.
func (run *stickyRun) timeline(ctx context.Context, e *env.Env, rec *record.Recorder, proxies []proxy, first settled) (string, error) {
	names := serviceNames(run.plan.services)
	rec.Step("calm")
	from := time.Now()
	run.calibration = drive.Calibrate(ctx, 2500*time.Millisecond)
	if err := run.watch(ctx, rec, "calm", from, first, time.Until(from.Add(run.plan.calm))); err != nil {
		return "", err
	}
	run.shared[0] = run.spans[0].window

	rec.Step("a host joins")
	rec.Event(time.Now(), "apply", "join", map[string]string{"object": "Deployment hello-v1, 3 replicas"})
	if err := scale(ctx, e, run.namespace, "hello-v1", 3); err != nil {
		return "", err
	}
	joined, err := settle(ctx, e, run.namespace, proxies, names, 5)
	if err != nil {
		return "", fmt.Errorf("a host joins: %w", err)
	}
	rec.Event(joined.at, "ack", "joined", map[string]string{"hosts": podSet(joined.pods)})
	from = time.Now()
	run.weights = drive.Apply(ctx, e, rec, fmt.Sprintf("weights %d/%d", weightsAfter[0], weightsAfter[1]), stickyRoutes(run.namespace, run.weighted(), weightsAfter))
	if err := run.watch(ctx, rec, "joined", from, joined, time.Until(from.Add(run.plan.joined))); err != nil {
		return "", err
	}
	run.shared[1] = expect.Window{From: run.weights.Acked, To: run.spans[1].window.To}

	rec.Step("a host leaves")
	leaving := leaver(first, joined)
	if err := cheapen(ctx, e, run.namespace, leaving); err != nil {
		return "", err
	}
	rec.Event(time.Now(), "apply", "leave", map[string]string{"object": "Deployment hello-v1, 2 replicas", "pod": leaving})
	if err := scale(ctx, e, run.namespace, "hello-v1", 2); err != nil {
		return leaving, err
	}
	left, err := settle(ctx, e, run.namespace, proxies, names, 4)
	if err != nil {
		return leaving, fmt.Errorf("a host leaves: %w", err)
	}
	rec.Event(left.at, "ack", "left", map[string]string{"hosts": podSet(left.pods)})
	return leaving, run.watch(ctx, rec, "left", time.Now(), left, run.plan.left)
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

// cheapen makes a pod the one that goes when its Deployment shrinks.
func cheapen(ctx context.Context, e *env.Env, namespace, pod string) error {
	patch := []byte(`{"metadata":{"annotations":{"controller.kubernetes.io/pod-deletion-cost":"-100"}}}`)
	if _, err := e.Client.Typed.CoreV1().Pods(namespace).Patch(ctx, pod, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("annotate pod %s/%s: %w", namespace, pod, err)
	}
	return nil
}

// targets are the streams of load. Without a gateway the runner's requests go to NodePorts of the Services.
func (run *stickyRun) targets(ctx context.Context, e *env.Env) ([]drive.Target, error) {
	agent, err := e.PodAddress(ctx, e.Namespace(workload.LoadAgent), "app=loadagent", 8090)
	if err != nil {
		return nil, err
	}
	var out []drive.Target
	for _, s := range run.plan.services {
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
				t.Agent, t.Profile.URL = "http://"+agent, "http://"+s.name+"."+run.namespace+":8080/"
			case e.Mesh.Ingress() != "":
				t.Via, t.Profile.URL, t.Profile.Host = "istio-ingressgateway", "http://"+e.Mesh.Ingress()+"/", s.name+"."+stickyDomain
			default:
				addr, err := e.NodePort(ctx, run.namespace, s.name, 8080)
				if err != nil {
					return nil, err
				}
				t.Profile.URL, t.Profile.Host = "http://"+addr+"/", s.name+"."+stickyDomain
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// at is the proxy that a stream's requests meet first.
func (st stickyStream) at() string {
	if st.source == drive.Runner {
		return atGateway
	}
	return atAgent
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
