// Package upgrade holds the scenario about moving a mesh from one revision of its control plane to the next under load.
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/fixtures"
	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// run is an upgrade and all that was observed of it.
type run struct {
	plan    plan
	meshed  bool
	control bool              // namespaces keep asking for blue
	tags    map[string]string // of images, by revision
	turn    int               // of the gateway, from one operator to the other

	moves    []move
	refusal  *refusal         // nil where there is no mesh, or it was not come to
	mixed    *mixed           // as refusal
	removed  *removal         // as refusal
	quiet    [2]expect.Window // the halves of the time before the first change
	changing expect.Window    // from the first change to the end

	requests    []evidence.Request
	events      []evidence.Event
	seen        drive.Seen
	calibration record.Host
}

// move is one workload's way from one revision to another.
type move struct {
	Workload      string
	From, To      string // revisions
	Before, After []seat
	Began, Ended  time.Time
	Err           error // why it did not come to its end, or nil
	Blind         bool  // the control planes did not say where it was before
}

// refusal is what became of the try to remove blue while it was in use.
type refusal struct {
	Err    error
	Needed []string // proxies that were on blue then
}

// mixed is what was counted while both revisions were in use.
type mixed struct {
	Took     time.Duration
	Counted  map[series]float64
	Revision map[string]string // by pod.namespace
	Err      error
}

// removal is what became of removing blue in the end.
type removal struct {
	Had     []string // objects of blue right before, found as the orphans are
	Err     error    // of the removal
	Took    time.Duration
	Orphans []string
	Settled time.Duration // from the end of the command to the moment when nothing was left, or the budget was over
	ListErr error         // why Had or Orphans is not known
}

// Upgrade moves a mesh with everything on it from one revision to the next while load runs, goes back half-way and forward
// again, removes the old revision, and judges what the load, the control planes and the proxies saw.
func Upgrade(ctx context.Context, e *env.Env, rec *record.Recorder) ([]verdict.Claim, error) {
	r := &run{plan: planFor(e.Spec.Profile), meshed: e.Spec.Mesh.Driver != "none", control: e.Control}
	rec.Step("blue")
	targets, err := r.prepare(ctx, e)
	if err != nil {
		return nil, err
	}
	if err := drive.Reachable(ctx, e, targets); err != nil {
		return nil, err
	}
	r.seen, err = drive.Run(ctx, e, rec, drive.Plan{
		Targets: targets, Length: r.plan.quiet + 60*time.Second, Watch: e.Namespaces(),
		// All of them are replaced, some more than once; what must not happen shows as loss.
		Except:   func(string) bool { return true },
		Timeline: func(ctx context.Context) error { return r.timeline(ctx, e, rec) },
	})
	if err != nil {
		return nil, err
	}
	r.requests, r.events = rec.Requests(), rec.Events()
	return r.judge(), nil
}

// prepare puts blue, the shop on it and the first load agent into the cluster, and returns the streams from outside.
func (r *run) prepare(ctx context.Context, e *env.Env) ([]drive.Target, error) {
	if r.meshed {
		if err := r.builds(ctx, e); err != nil {
			return nil, err
		}
		// What an earlier run in this lab left.
		cfg := e.Client.Config()
		var absent *install.NotInstalledError
		for _, rev := range []string{blue, green} {
			err := install.Bundled{}.Uninstall(ctx, cfg, install.Options{Revision: rev, Force: true})
			if err != nil && !errors.As(err, &absent) {
				return nil, err
			}
		}
		for _, rev := range []string{blue, green} {
			if err := install.InitOperator(ctx, cfg, install.Options{Revision: rev, Tag: r.tags[rev]}); err != nil {
				return nil, err
			}
		}
		if err := r.install(ctx, e, nil, blue); err != nil {
			return nil, err
		}
		if err := install.SetTag(ctx, cfg, install.Options{Revision: blue, Tag: r.tags[blue]}, stableTag, false); err != nil {
			return nil, err
		}
	}
	shop, err := r.deploy(ctx, e, shopSpace, "bookinfo", blue)
	if err != nil {
		return nil, err
	}
	if _, err := r.deploy(ctx, e, oldClients, workload.LoadAgent, stableTag); err != nil {
		return nil, err
	}
	if err := ready(ctx, e, shop, e.Namespace(oldClients)); err != nil {
		return nil, err
	}
	var addr string
	if r.meshed {
		routes, err := fixtures.BookinfoGateway.YAML(fixtures.Fill{Namespace: shop})
		if err != nil {
			return nil, err
		}
		if _, err := e.Client.Apply(ctx, "gateway", routes); err != nil {
			return nil, err
		}
		addr, err = ingress(ctx, e)
		if err != nil {
			return nil, err
		}
	} else if addr, err = e.NodePort(ctx, shop, "productpage", 9080); err != nil {
		return nil, err
	}
	via := ""
	if r.meshed {
		via = gatewayName
	}
	return []drive.Target{
		{Source: drive.Runner, Via: via, Rate: r.plan.pages, Profile: loadgen.Profile{
			Name: pages, URL: "http://" + addr + "/productpage", ExpectApp: "productpage", Steps: drive.Warm(r.plan.pages, loadLength),
		}},
		{Source: drive.Runner, Via: via, Rate: r.plan.products, Profile: loadgen.Profile{
			Name: products, URL: "http://" + addr + "/api/v1/products", ExpectApp: "productpage", Steps: drive.Warm(r.plan.products, loadLength),
		}},
	}, nil
}

func (r *run) builds(ctx context.Context, e *env.Env) error {
	r.tags = map[string]string{}
	for rev, build := range map[string]string{blue: blueBuild, green: greenBuild} {
		tag, err := e.LoadBuild(ctx, build)
		if err != nil {
			return err
		}
		r.tags[rev] = tag
	}
	return nil
}

// install asks the operator of a revision for its control plane and the gateway, in a new generation of its IstioOperator object.
func (r *run) install(ctx context.Context, e *env.Env, rec *record.Recorder, revision string) error {
	r.turn++
	name := "IstioOperator of " + revision
	if rec != nil {
		rec.Event(time.Now(), "apply", "install "+r.tags[revision], map[string]string{"object": name, "revision": revision})
	}
	err := carryOut(ctx, e, name, object(revision, r.tags[revision], r.turn))
	if rec != nil && err == nil {
		rec.Event(time.Now(), "ack", "healthy "+revision, map[string]string{"object": name})
	}
	return err
}

// deploy makes an app in a namespace that asks for a revision or a tag.
func (r *run) deploy(ctx context.Context, e *env.Env, name, app, revision string) (namespace string, err error) {
	labels := map[string]string{"istio.io/rev": revision}
	if !r.meshed {
		labels = nil
	}
	if namespace, err = e.MakeNamespace(ctx, name, labels); err != nil {
		return "", err
	}
	list, err := workload.Named(app)
	if err != nil {
		return "", err
	}
	list[0].Namespace = namespace
	return namespace, e.Client.Deploy(ctx, list[0], labels, e.Version)
}

// ready waits until every Deployment of the namespaces serves.
func ready(ctx context.Context, e *env.Env, namespaces ...string) error {
	_, err := expect.Converge(ctx, expect.Budget{Within: 90 * time.Second}, func(ctx context.Context) (struct{}, error) {
		for _, ns := range namespaces {
			d, err := e.Client.Deployments(ctx, ns)
			if err != nil {
				return struct{}{}, err
			}
			if len(d.Waiting) > 0 {
				return struct{}{}, fmt.Errorf("%s: waiting for %v", ns, d.Waiting)
			}
		}
		return struct{}{}, nil
	})
	return err
}

// clients starts the streams of a load agent, and returns how to end them.
func (r *run) clients(ctx context.Context, e *env.Env, rec *record.Recorder, g *errgroup.Group, space, reviews, details string) (stop func(), err error) {
	addr, err := e.PodAddress(ctx, e.Namespace(space), "app="+agentName, 8090)
	if err != nil {
		return nil, err
	}
	shop := e.Namespace(shopSpace)
	ctx, stop = context.WithCancel(ctx)
	for _, t := range []drive.Target{
		{Rate: r.plan.reviews, Profile: loadgen.Profile{Name: reviews, URL: "http://reviews." + shop + ":9080/reviews/0", ExpectApp: "reviews"}},
		{Rate: r.plan.details, Profile: loadgen.Profile{Name: details, URL: "http://details." + shop + ":9080/details/0", ExpectApp: "details"}},
	} {
		t.Source, t.Agent, t.Profile.Steps = drive.Agent, "http://"+addr, drive.Warm(t.Rate, loadLength)
		rec.Stream(record.Stream{Name: t.Profile.Name, Target: t.Describe(), Rate: t.Rate, Source: t.Source})
		g.Go(func() error { return t.Run(ctx, e, rec.Result) })
	}
	return stop, nil
}

// timeline is the upgrade, under the load from outside.
func (r *run) timeline(ctx context.Context, e *env.Env, rec *record.Recorder) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, end := context.WithCancel(ctx)
	defer end()
	stopOld, err := r.clients(ctx, e, rec, g, oldClients, oldReviews, oldDetails)
	if err != nil {
		return err
	}
	g.Go(func() error {
		defer end()
		return r.steps(ctx, e, rec, g, stopOld)
	})
	return g.Wait()
}

func (r *run) steps(ctx context.Context, e *env.Env, rec *record.Recorder, g *errgroup.Group, stopOld func()) error {
	rec.Step("quiet")
	if err := drive.Sleep(ctx, 2*time.Second); err != nil { // warming up
		return err
	}
	from := time.Now()
	r.calibration = drive.Calibrate(ctx, r.plan.quiet)
	to := time.Now()
	middle := from.Add(to.Sub(from) / 2)
	r.quiet = [2]expect.Window{{From: from, To: middle}, {From: middle, To: to}}
	r.changing.From = to

	rec.Step("green and gateway")
	if err := r.takeOver(ctx, e, rec, blue, green); err != nil {
		return err
	}
	if r.meshed {
		if _, err := r.deploy(ctx, e, newClients, workload.LoadAgent, green); err != nil {
			return err
		}
		if err := ready(ctx, e, e.Namespace(newClients)); err != nil {
			return err
		}
		if _, err := r.clients(ctx, e, rec, g, newClients, newReviews, newDetails); err != nil {
			return err
		}
	}
	rec.Step("first half")
	if err := r.roll(ctx, e, rec, blue, green, workloads()[:halfWay]); err != nil {
		return err
	}
	rec.Step("both in use")
	if err := r.watchMixed(ctx, e, rec); err != nil {
		return err
	}
	rec.Step("roll back")
	if err := r.takeOver(ctx, e, rec, green, blue); err != nil {
		return err
	}
	if err := r.roll(ctx, e, rec, green, blue, workloads()[:halfWay]); err != nil {
		return err
	}
	rec.Step("forward again")
	if err := r.takeOver(ctx, e, rec, blue, green); err != nil {
		return err
	}
	if err := r.roll(ctx, e, rec, blue, green, workloads()); err != nil {
		return err
	}
	stopOld()
	if err := r.remove(ctx, e, rec); err != nil {
		return err
	}
	err := drive.Sleep(ctx, r.plan.tail)
	r.changing.To = time.Now()
	return err
}

// takeOver installs a revision, and with it moves the gateway.
func (r *run) takeOver(ctx context.Context, e *env.Env, rec *record.Recorder, from, to string) error {
	return r.move(ctx, e, rec, env.MeshNamespace, gatewayName, from, to, func() error {
		if !r.meshed {
			return nil // there is no gateway either
		}
		return r.install(ctx, e, rec, to)
	})
}

// roll makes the shop's namespace ask for a revision, and restarts workloads one by one.
func (r *run) roll(ctx context.Context, e *env.Env, rec *record.Recorder, from, to string, names []string) error {
	shop := e.Namespace(shopSpace)
	if r.meshed && !r.control {
		rec.Event(time.Now(), "apply", "label istio.io/rev="+to, map[string]string{"object": "Namespace " + shop})
		if err := label(ctx, e, shop, to); err != nil {
			return err
		}
	}
	for _, name := range names {
		err := r.move(ctx, e, rec, shop, name, from, to, func() error {
			rec.Event(time.Now(), "apply", "restart "+name, map[string]string{"object": "Deployment " + shop + "/" + name, "to": to})
			return restart(ctx, e, shop, name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// move notes where a workload's proxies are before and after a change. Only the end of ctx ends the upgrade: what did not come
// about is judged.
func (r *run) move(ctx context.Context, e *env.Env, rec *record.Recorder, namespace, name, from, to string, change func() error) error {
	m := move{Workload: name, From: from, To: to, Began: time.Now()}
	if r.meshed {
		var err error
		m.Before, err = expect.Converge(ctx, expect.Budget{Within: askedWithin, Every: 50 * time.Millisecond}, func(ctx context.Context) ([]seat, error) {
			return seated(ctx, e, namespace, name)
		})
		m.Blind = err != nil
		m.Err = err
	}
	changed := change()
	m.Err = errors.Join(m.Err, changed)
	if r.meshed && changed == nil {
		var err error
		m.After, err = expect.Converge(ctx, expect.Budget{Within: movedWithin, Every: 50 * time.Millisecond}, func(ctx context.Context) ([]seat, error) {
			now, err := seated(ctx, e, namespace, name)
			if err != nil {
				return now, err
			}
			if r.control && name != gatewayName {
				return now, nil // nobody asked for another revision
			}
			return now, onAlone(now, to)
		})
		m.Err = errors.Join(m.Err, err)
	}
	m.Ended = time.Now()
	r.moves = append(r.moves, m)
	detail := map[string]string{"after": m.Ended.Sub(m.Began).Round(time.Millisecond).String()}
	if m.Err != nil {
		detail["why"] = m.Err.Error()
		rec.Event(m.Ended, "note", "not moved: "+name, detail)
	} else {
		rec.Event(m.Ended, "ack", name+" on "+to, detail)
	}
	return ctx.Err()
}

// onAlone says which pod is not on the revision, or nil.
func onAlone(now []seat, revision string) error {
	if len(now) == 0 {
		return errors.New("it has no pod")
	}
	for _, s := range now {
		switch s.Revision {
		case revision:
		case "":
			return fmt.Errorf("%s is connected to no control plane", s.Pod)
		default:
			return fmt.Errorf("%s is connected to revision %s", s.Pod, s.Revision)
		}
	}
	return nil
}

// watchMixed counts requests while both revisions are in use, and tries to remove the one that still is.
func (r *run) watchMixed(ctx context.Context, e *env.Env, rec *record.Recorder) error {
	if !r.meshed {
		return drive.Sleep(ctx, r.plan.mixed)
	}
	var pods []string
	for _, name := range workloads() {
		list, err := podsOf(ctx, e, e.Namespace(shopSpace), name)
		if err != nil {
			return err
		}
		pods = append(pods, list...)
	}
	all, err := seats(ctx, e)
	if err != nil {
		return err
	}
	r.mixed = &mixed{Revision: revisionOf(all)}
	began := time.Now()
	before, notBefore := inbound(ctx, e, pods)
	if err := drive.Sleep(ctx, r.plan.mixed); err != nil {
		return err
	}
	after, notAfter := inbound(ctx, e, pods)
	r.mixed.Took, r.mixed.Counted, r.mixed.Err = time.Since(began), grown(before, after), errors.Join(notBefore, notAfter)

	rec.Event(time.Now(), "note", "try to remove blue", nil)
	staying, err := e.Client.Proxies(ctx) // those that drain on their way out need no control plane
	if err != nil {
		return err
	}
	r.refusal = &refusal{}
	for _, pod := range staying {
		if r.mixed.Revision[pod] == blue {
			r.refusal.Needed = append(r.refusal.Needed, pod)
		}
	}
	slices.Sort(r.refusal.Needed)
	r.refusal.Err = install.Bundled{}.Uninstall(ctx, e.Client.Config(), install.Options{Revision: blue})
	return nil
}

// remove takes the old load agent off blue, whose load is over, and removes blue.
func (r *run) remove(ctx context.Context, e *env.Env, rec *record.Recorder) error {
	if !r.meshed {
		return nil
	}
	rec.Step("remove blue")
	if !r.control {
		rec.Event(time.Now(), "apply", "tag "+stableTag+" leads to "+green, map[string]string{"object": "tag " + stableTag})
		if err := install.SetTag(ctx, e.Client.Config(), install.Options{Revision: green, Tag: r.tags[green]}, stableTag, true); err != nil {
			return err
		}
		if err := r.move(ctx, e, rec, e.Namespace(oldClients), agentName, blue, green, func() error {
			return restart(ctx, e, e.Namespace(oldClients), agentName)
		}); err != nil {
			return err
		}
	}
	r.removed = &removal{}
	cfg := e.Client.Config()
	r.removed.Had, r.removed.ListErr = install.Orphans(ctx, cfg, blue)
	began := time.Now()
	rec.Event(began, "apply", "uninstall "+r.tags[blue], map[string]string{"revision": blue})
	r.removed.Err = install.Bundled{}.Uninstall(ctx, cfg, install.Options{Revision: blue})
	ended := time.Now()
	r.removed.Took = ended.Sub(began)
	rec.Event(ended, "ack", "blue removed", map[string]string{"after": r.removed.Took.Round(time.Millisecond).String()})
	if r.removed.Err != nil {
		return ctx.Err()
	}
	// Pods end in their own time, and what Kubernetes makes by itself goes by itself.
	_, err := expect.Converge(ctx, expect.Budget{Within: goneWithin, Every: 500 * time.Millisecond}, func(ctx context.Context) (struct{}, error) {
		left, err := install.Orphans(ctx, cfg, blue)
		if err == nil {
			r.removed.Orphans = left
		}
		if err == nil && len(left) > 0 {
			err = &leftError{left}
		}
		return struct{}{}, err
	})
	var left *leftError
	if err != nil && !errors.As(err, &left) {
		r.removed.ListErr = errors.Join(r.removed.ListErr, err)
	}
	r.removed.Settled = time.Since(ended)
	return ctx.Err()
}

// leftError says that something of blue is there.
type leftError struct{ objects []string }

func (e *leftError) Error() string { return "left: " + join(e.objects, 5) }

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func join(list []string, most int) string {
	if len(list) > most {
		return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", len(list)-most)
	}
	return strings.Join(list, ", ")
}
