package multicluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshproof/meshproof/clusters"
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

// run is all that the scenario observed.
type run struct {
	plan          plan
	first, second string // names of the clusters
	separate      bool   // the clusters are on networks of their own
	meshed        bool
	primaries     []string // clusters with a control plane of their own

	calm        expect.Window // nothing changes
	added       time.Time     // when the new service was made
	cut, healed time.Time     // when that was ordered
	isCut       time.Time     // when the cut was there
	returned    time.Time     // when the time after the heal was over
	lost        expect.Window // without a control plane
	pilots      []string      // pods of the control plane that were seen meanwhile

	captured time.Time // when the capture began
	wire     wire
	wireErr  error
	gateways []string // CIDR ranges of load balancer addresses
	servers  []string // host:port of API servers

	served    []served
	servedErr error

	complete    bool // the timeline came to its end; what follows is there
	requests    []evidence.Request
	events      []evidence.Event
	seen        drive.Seen
	calibration record.Host
}

// Boutique runs a shop whose parts are spread over two clusters, cuts and heals the link between them, makes a service in one
// that the other calls, and takes every control plane away, and judges what shoppers saw and what crossed the link.
func Boutique(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
	r, err := observe(ctx, e, rec)
	if !r.complete {
		return nil, err
	}
	return judge(r), err // what was seen is judged, though the lab may not have been made whole again
}

// stage is the lab as the body works on it.
type stage struct {
	e             *env.Env
	rec           *record.Recorder
	first, second *env.Site
	link          clusters.Link
	ns            string // of the shop, in both clusters
	agent         string // host:port of the agent in the second cluster
}

func observe(ctx context.Context, e *env.Env, rec *record.Recorder) (r run, err error) {
	if len(e.Sites) != 2 {
		return r, fmt.Errorf("lab %s has %d clusters; this scenario needs two", e.Spec.Name, len(e.Sites))
	}
	s := &stage{e: e, rec: rec, first: e.Sites[0], second: e.Sites[1]}
	r = run{
		plan: newPlan(e.Spec.Profile), first: s.first.Cluster.Name(), second: s.second.Cluster.Name(),
		separate: s.first.Cluster.Network() != s.second.Cluster.Network(), meshed: e.Mesh.Driver() != "none",
		wireErr: errors.New("the capture was not read"),
	}
	for _, p := range e.Primaries() {
		r.primaries = append(r.primaries, p.Cluster.Name())
	}
	for _, site := range e.Sites {
		r.gateways = append(r.gateways, site.Cluster.LoadBalancerIPs())
		for _, ip := range site.Cluster.NodeIPs() {
			r.servers = append(r.servers, ip+":6443")
		}
	}
	if s.link, err = e.Lab.Link(r.first, r.second); err != nil {
		return r, err
	}
	if err := s.deploy(ctx, r.plan); err != nil {
		return r, err
	}
	targets, err := s.targets(ctx, r.plan)
	if err != nil {
		return r, err
	}
	if err := s.probe(ctx); err != nil {
		return r, err
	}
	capture, err := s.capture(ctx) // before the first call of the shop, so that no connection of it is older
	if err != nil {
		return r, err
	}
	defer capture.discard()
	r.captured = time.Now()
	if err := s.reachable(ctx, targets); err != nil {
		return r, err
	}
	// Whatever ends this, the lab is whole again.
	defer func() { err = errors.Join(err, s.restore(context.WithoutCancel(ctx))) }()
	r.seen, err = drive.Run(ctx, e, rec, drive.Plan{
		Targets: targets, Length: r.plan.length(), Watch: e.Namespaces(), Except: isPilot,
		Timeline: func(ctx context.Context) error { return s.timeline(ctx, &r, capture) },
	})
	if err != nil {
		return r, err
	}
	r.served, r.servedErr = s.metrics(ctx)
	r.requests, r.events, r.complete = rec.Requests(), rec.Events(), true
	return r, nil
}

// deploy spreads the shop and waits until it stands and every proxy knows it.
func (s *stage) deploy(ctx context.Context, pl plan) error {
	s.rec.Step("the shop, spread over two clusters")
	labels := s.e.Mesh.Labels()
	var err error
	if s.ns, err = s.e.MakeNamespace(ctx, boutiqueApp, labels); err != nil {
		return err
	}
	load, err := s.e.MakeNamespace(ctx, workload.LoadAgent, labels)
	if err != nil {
		return err
	}
	first, second := spread()
	g, gctx := errgroup.WithContext(ctx)
	for _, part := range []struct {
		site        *env.Site
		deployments []string
	}{{s.first, first}, {s.second, second}} {
		g.Go(func() error {
			data, err := fixtures.Boutique.YAML(fixtures.Fill{
				Namespace: s.ns, Tag: s.e.Version, Cluster: part.site.Cluster.Name(), Deployments: part.deployments,
			})
			if err != nil {
				return err
			}
			_, err = part.site.Client.Apply(gctx, "boutique in "+part.site.Cluster.Name(), data)
			return err
		})
	}
	g.Go(func() error {
		data, err := fixtures.LoadAgent.YAML(fixtures.Fill{Namespace: load, Tag: s.e.Version})
		if err != nil {
			return err
		}
		_, err = s.second.Client.Apply(gctx, "loadagent", data)
		return err
	})
	g.Go(func() error {
		_, err := s.first.Client.Apply(gctx, newService, newDeployment(s.ns, s.e.Version, s.first.Cluster.Name()))
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.ready(ctx, s.ns, load); err != nil {
		return err
	}
	objects := [][]byte{door(s.ns)}
	if !s.e.Control {
		objects = append(objects, policies(s.ns, s.second.Cluster.Name(), pl))
	}
	for _, p := range s.e.Primaries() {
		if c := drive.ApplyAt(ctx, p, s.rec, "policies in "+p.Cluster.Name(), objects...); c.Err != nil {
			return c.Err
		}
	}
	if _, err := s.e.Synced(ctx); err != nil {
		return err
	}
	s.agent, err = s.second.PodAddress(ctx, load, "app=loadagent", 8090)
	return err
}

// readyBudget bounds the wait for pods.
const readyBudget = 90 * time.Second

func (s *stage) ready(ctx context.Context, namespaces ...string) error {
	_, err := expect.Converge(ctx, expect.Budget{Within: readyBudget}, func(ctx context.Context) (struct{}, error) {
		for _, site := range s.e.Sites {
			for _, ns := range namespaces {
				d, err := site.Client.Deployments(ctx, ns)
				if err == nil && len(d.Waiting) > 0 {
					err = fmt.Errorf("%s of cluster %s: waiting for %v", ns, site.Cluster.Name(), d.Waiting)
				}
				if err != nil {
					return struct{}{}, err
				}
			}
		}
		return struct{}{}, nil
	})
	return err
}

// targets are the streams that run all the time. Without a gateway the shoppers come by a NodePort.
func (s *stage) targets(ctx context.Context, pl plan) ([]drive.Target, error) {
	shop := drive.Target{Source: drive.Runner, Rate: pl.shopRate, Via: "istio-ingressgateway"}
	address := s.e.Mesh.Ingress()
	if address == "" {
		var err error
		if address, err = s.e.NodePort(ctx, s.ns, frontendApp, 8080); err != nil {
			return nil, err
		}
		shop.Via = ""
	}
	length := pl.length() + loadHeadroom
	shop.Profile = loadgen.Profile{
		Name: shopStream, URL: "http://" + address + "/", ExpectApp: frontendApp, Sessions: pl.sessions, Pages: visit(), Timeout: pageTimeout,
		Steps: []loadgen.Step{{Rate: pl.shopRate, For: length}},
	}
	return []drive.Target{shop, {
		Source: drive.Agent, Agent: "http://" + s.agent, Rate: pl.remoteRate,
		Profile: loadgen.Profile{
			Name: remoteStream, URL: "http://" + frontendApp + "." + s.ns + "/product/" + watchProduct, ExpectApp: frontendApp, ExpectBody: "leather strap",
			Timeout: agentTimeout, Steps: []loadgen.Step{{Rate: pl.remoteRate, For: length}},
		},
	}}, nil
}

// reachable waits until the shop answers from outside, and, in a mesh, with the parts that stand in the second cluster.
func (s *stage) reachable(ctx context.Context, targets []drive.Target) error {
	client := s.e.HTTP(3 * time.Second)
	defer client.CloseIdleConnections()
	_, err := expect.Converge(ctx, expect.Budget{Within: 30 * time.Second, Streak: 5}, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, browse(ctx, client, targets[0].Profile.URL, s.second.Cluster.Name(), s.e.Mesh.Driver() != "none")
	})
	if err != nil {
		return fmt.Errorf("the shop is not open: %w", err)
	}
	return nil
}

func (s *stage) timeline(ctx context.Context, r *run, capture *capturing) error {
	pl := r.plan
	s.rec.Step("nothing changes")
	if err := drive.Sleep(ctx, time.Second); err != nil { // the first requests dial
		return err
	}
	r.calm.From = time.Now()
	r.calibration = drive.Calibrate(ctx, 2500*time.Millisecond)
	if err := drive.Sleep(ctx, time.Until(r.calm.From.Add(pl.calm))); err != nil {
		return err
	}
	r.calm.To = time.Now()

	s.rec.Step("a new service")
	if err := s.addService(ctx, r); err != nil {
		return err
	}
	r.wire, r.wireErr = capture.read()

	s.rec.Step("the link is cut")
	r.cut = time.Now()
	if err := s.link.Cut(ctx); err != nil {
		return err
	}
	r.isCut = time.Now()
	s.rec.Event(r.cut, "fault", "link cut", map[string]string{"link": r.first + " - " + r.second})
	if err := drive.Sleep(ctx, time.Until(r.cut.Add(pl.cut))); err != nil {
		return err
	}

	s.rec.Step("the link is whole again")
	r.healed = time.Now()
	if err := s.link.Heal(ctx); err != nil {
		return err
	}
	s.rec.Event(r.healed, "fault", "link healed", map[string]string{"link": r.first + " - " + r.second})
	if err := drive.Sleep(ctx, time.Until(r.healed.Add(pl.returnWithin+2*time.Second))); err != nil {
		return err
	}
	r.returned = time.Now()
	if !r.meshed {
		return drive.Answered(ctx, s.rec, time.Now())
	}

	s.rec.Step("no control plane")
	if err := s.withoutPilot(ctx, r); err != nil {
		return err
	}
	return drive.Answered(ctx, s.rec, r.lost.To)
}

// addService makes the new service in both clusters while its pod runs in the first, and calls it from the second.
func (s *stage) addService(ctx context.Context, r *run) error {
	r.added = time.Now()
	for _, site := range s.e.Sites {
		if _, err := site.Client.Apply(ctx, newService, serviceObject(s.ns, newService, corev1.ServiceTypeClusterIP)); err != nil {
			return err
		}
	}
	s.rec.Event(r.added, "apply", "new service", map[string]string{"object": "Service " + s.ns + "/" + newService})
	client := s.e.HTTP(0)
	defer client.CloseIdleConnections()
	t := drive.Target{
		Source: drive.Agent, Agent: "http://" + s.agent,
		Profile: loadgen.Profile{
			Name: newStream, URL: "http://" + newService + "." + s.ns + ":8080/", ExpectApp: "hello", Rate: r.plan.newRate, Duration: r.plan.newFor,
			Timeout: agentTimeout,
		},
		Rate: r.plan.newRate,
	}
	s.rec.Stream(record.Stream{Name: newStream, Target: t.Describe(), Rate: t.Rate, Source: t.Source, Short: true})
	if err := t.Run(ctx, s.e, s.rec.Result); err != nil && !errors.Is(err, drive.ErrOver) {
		return err
	}
	return ctx.Err()
}

// capturing writes what crosses the link to a file until it is read.
type capturing struct {
	file   *os.File
	closer io.Closer
	closed bool
}

func (s *stage) capture(ctx context.Context) (*capturing, error) {
	dir, err := os.MkdirTemp("", "meshproof-capture")
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, "link.pcap"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c := &capturing{file: f}
	if c.closer, err = s.link.Capture(ctx, f); err != nil {
		c.closed = true
		c.discard()
		return nil, fmt.Errorf("capture: %w", err)
	}
	return c, nil
}

func (c *capturing) read() (wire, error) {
	c.closed = true
	if err := c.closer.Close(); err != nil {
		return wire{}, fmt.Errorf("capture: %w", err)
	}
	data, err := os.ReadFile(c.file.Name())
	if err != nil {
		return wire{}, err
	}
	return readWire(bytes.NewReader(data))
}

// discard ends the capture, if it still goes on, and removes what it wrote.
func (c *capturing) discard() {
	if !c.closed {
		c.closed = true
		_ = c.closer.Close() // the run has failed already
	}
	_ = c.file.Close() // read and to be removed
	_ = os.RemoveAll(filepath.Dir(c.file.Name()))
}
