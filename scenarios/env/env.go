// Package env brings a lab up in order, hands it to scenarios, and takes it down again in the opposite order.
package env

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/image"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// Options say what to bring up and from what. All fields but Progress are required.
type Options struct {
	Lab      *lab.Lab
	Provider clusters.Provider
	Bin      string // folder of the static binaries that images are made of: meshd, meshproxy, app, loadagent
	Cache    string // folder for image archives
	Version  string // of the product; the tag of its images
	Progress clusters.Progress
}

// Env is a lab that is up: clusters, mesh and apps.
type Env struct {
	Spec    *lab.Lab
	Lab     clusters.Lab
	Sites   []*Site          // one a cluster, in the order of the Spec
	Cluster clusters.Cluster // of the first Site
	Client  *workload.Client // of the first Site
	Mesh    Mesh             // of the first Site
	Version string
	// Found is true when somebody else made the lab; then it is not this Env's to take down.
	Found bool

	// Control asks a scenario to leave out what it is there to prove: the policy, the change. It must then fail, for that reason.
	Control bool

	provider   clusters.Provider
	bin, cache string   // as in Options
	stage      *stage   // of one scenario; nil for the lab as a whole
	leaving    *leaving // shared by what was staged; nil before anything was
}

// Site returns the site of the cluster of that name, or nil.
func (e *Env) Site(cluster string) *Site {
	for _, s := range e.Sites {
		if s.Cluster.Name() == cluster {
			return s
		}
	}
	return nil
}

// The phases, in the order in which people see them.
const (
	phaseCluster = "cluster"
	phaseImages  = "images"
	phaseMesh    = "mesh"
	phaseApps    = "apps"
)

// Bounds of what hangs when the lab does.
const (
	appsBudget   = 90 * time.Second // for pods to be Ready, and before that for applying them: on a busy two-core host they need some seconds
	imagesBudget = 3 * time.Minute  // to load images into all nodes, which takes seconds
)

// within runs f and bounds it; an error then says so.
func within(ctx context.Context, budget time.Duration, f func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	err := f(bounded)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("took longer than %s: %w", budget, err)
	}
	return err
}

// Up brings up what is missing. When it fails after the clusters were made, the Env is returned beside the error, so that the
// caller can collect diagnostics before Down. If the lab broke meanwhile, the error says so first.
func Up(ctx context.Context, o Options) (*Env, error) {
	e, err := up(ctx, o)
	if err != nil && e != nil {
		if broke := e.Broken(); broke != nil {
			err = fmt.Errorf("the lab broke: %w\nand so: %w", broke, err)
		}
	}
	return e, err
}

func up(ctx context.Context, o Options) (*Env, error) {
	if o.Progress == nil {
		o.Progress = func(clusters.Event) {}
	}
	apps, err := workload.Apps(o.Lab.Apps...)
	if err != nil {
		return nil, err
	}
	e := &Env{Spec: o.Lab, Version: o.Version, provider: o.Provider, bin: o.Bin, cache: o.Cache}

	// Archives are made while the cluster starts: neither needs the other.
	var archives []string
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		archives, err = Archives(gctx, o.Bin, o.Cache, o.Version, Images(o.Lab.Mesh.Driver))
		return err
	})
	g.Go(func() error {
		up, made, err := o.Provider.Up(gctx, o.Lab.Spec(), o.Progress)
		if err != nil {
			return err
		}
		e.Lab, e.Found = up, !made
		return nil
	})
	if err := g.Wait(); err != nil {
		return e.orNil(), err
	}
	if err := e.makeSites(); err != nil {
		return e, err
	}
	if err := e.loadImages(ctx, o, archives); err != nil {
		return e, err
	}
	if err := e.installMeshes(ctx, o.Progress); err != nil {
		return e, fmt.Errorf("mesh %s: %w", o.Lab.Mesh.Driver, err)
	}
	e.Mesh = e.Sites[0].Mesh
	if len(apps) > 0 {
		err = e.deploy(ctx, apps, o.Progress)
	}
	return e, err
}

func (e *Env) orNil() *Env {
	if e.Lab == nil {
		return nil
	}
	return e
}

// Images are the binaries that become the images of a lab with this mesh driver, by the name of both.
func Images(driver string) []string {
	if driver == "bundled" {
		return []string{"meshd", "meshproxy", "app", "loadagent"}
	}
	return []string{"app", "loadagent"}
}

// Archives packs the binaries of that name in the folder bin into image archives below the folder cache, where they are not
// there already, and returns their paths.
func Archives(ctx context.Context, bin, cache, version string, names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		archive := filepath.Join(cache, "images", name+"-"+version+".tar")
		if err := Archive(ctx, bin, name, version, archive); err != nil {
			return nil, err
		}
		out = append(out, archive)
	}
	return out, nil
}

// Archive packs the binary of that name in the folder bin into the image archive out.
func Archive(ctx context.Context, bin, name, version, out string) error {
	spec := image.Spec{
		Ref:        "meshproof.dev/" + name + ":" + version,
		Binary:     filepath.Join(bin, name),
		Entrypoint: []string{"/" + name},
	}
	if name == "app" {
		// People exec into a pod and call another service from there.
		spec.Links = []string{"/usr/bin/curl"}
	}
	return image.Archive(ctx, spec, out)
}

func (e *Env) loadImages(ctx context.Context, o Options, archives []string) error {
	o.Progress(clusters.Event{Phase: phaseImages, Detail: fmt.Sprintf("loading %d", len(archives))})
	if err := e.load(ctx, archives); err != nil {
		return err
	}
	o.Progress(clusters.Event{Phase: phaseImages, Detail: fmt.Sprintf("%d loaded", len(archives)), Done: true})
	return nil
}

// load puts archives on every node of every cluster.
func (e *Env) load(ctx context.Context, archives []string) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range e.Lab.Clusters() {
		g.Go(func() error {
			if err := within(gctx, imagesBudget, func(ctx context.Context) error { return c.LoadImages(ctx, archives...) }); err != nil {
				return fmt.Errorf("load images into cluster %s: %w", c.Name(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// deploy applies all apps and waits until their pods are Ready and every proxy has its configuration.
func (e *Env) deploy(ctx context.Context, apps []workload.App, progress clusters.Progress) error {
	progress(clusters.Event{Phase: phaseApps, Detail: "applying"})
	g, gctx := errgroup.WithContext(ctx)
	for _, a := range apps {
		g.Go(func() error {
			err := within(gctx, appsBudget, func(ctx context.Context) error { return e.Client.Deploy(ctx, a, e.Mesh.Labels(), e.Version) })
			if err != nil {
				return fmt.Errorf("app %s: %w", a.Name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	detail, err := expect.Converge(ctx, expect.Budget{Within: appsBudget}, func(ctx context.Context) (string, error) {
		text := ""
		var waiting error
		for _, a := range apps {
			d, err := e.Client.Deployments(ctx, a.Namespace)
			if err != nil {
				return text, err
			}
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%s %d/%d", a.Name, d.Ready, d.Want)
			if len(d.Waiting) > 0 && waiting == nil {
				waiting = fmt.Errorf("%s: waiting for %v", a.Namespace, d.Waiting)
			}
		}
		progress(clusters.Event{Phase: phaseApps, Detail: text, Count: true})
		return text, waiting
	})
	if err != nil {
		return fmt.Errorf("apps: %w", err)
	}
	synced, err := e.Synced(ctx)
	if err != nil {
		return fmt.Errorf("apps: %w", err)
	}
	if synced != "" {
		detail += ", " + synced
	}
	progress(clusters.Event{Phase: phaseApps, Detail: detail, Done: true})
	return nil
}

// Down takes the lab down, with everything in it. A lab that was there before is left alone.
func (e *Env) Down(ctx context.Context) error {
	if e == nil || e.Found {
		return nil
	}
	return e.provider.Down(ctx, e.Spec.Name)
}

// Memory is what all processes of the lab take of this host in bytes, as clusters.Measured has it; 0 where the provider cannot tell.
// Reading takes the host some tenths of a second at most, which load should not feel.
func (e *Env) Memory(ctx context.Context) (uint64, error) {
	m, ok := e.provider.(clusters.Measured)
	if !ok {
		return 0, nil
	}
	return m.Memory(ctx, e.Lab.Name())
}

// HTTP is a client whose connections start in the lab's network and never leave it. The caller closes its idle connections.
func (e *Env) HTTP(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout:   timeout,
		Transport: &http.Transport{DialContext: e.Dial, MaxIdleConnsPerHost: 4, DisableCompression: true},
	}
}

// Dial dials in the lab's network.
func (e *Env) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return e.Lab.DialContext(ctx, network, addr)
}

// Node returns the address of a port on the first node of the first cluster.
func (e *Env) Node(port int32) (string, error) { return e.Sites[0].Node(port) }
