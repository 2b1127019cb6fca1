package env

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// meshID names the mesh of a lab with several clusters, as Istio's guides do.
const meshID = "mesh1"

// joined is a lab of several clusters whose meshes become one: how far each part is, for the parts that wait for it.
type joined struct {
	e        *Env
	driver   install.Driver
	progress clusters.Progress
}

// joinMeshes makes one mesh of all clusters: certificates of one root, a control plane in each primary, the clusters' secrets
// exchanged, east-west gateways where somebody needs them. Whatever does not need each other goes on at the same time.
func (e *Env) joinMeshes(ctx context.Context, driver install.Driver, progress clusters.Progress) error {
	j := &joined{e: e, driver: driver, progress: progress}
	if err := j.certificates(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range e.Sites {
		g.Go(func() error {
			if err := j.install(ctx, s); err != nil {
				return fmt.Errorf("cluster %s: %w", s.ID, err)
			}
			return nil
		})
		g.Go(func() error { return j.shareSecret(ctx, s) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, s := range e.Sites {
		s.Mesh = e.primary(s).Mesh
	}
	progress(clusters.Event{Phase: phaseMesh, Done: true, Detail: j.summary()})
	return nil
}

func (j *joined) summary() string {
	primaries := 0
	for _, s := range j.e.Sites {
		if j.e.primary(s) == s {
			primaries++
		}
	}
	return fmt.Sprintf("%s %s, revision %s, one mesh over %d clusters with %d control planes",
		j.driver.Name(), j.e.Version, j.e.Spec.Mesh.Revision, len(j.e.Sites), primaries)
}

// certificates gives every cluster a CA of its own, all of one root, unless they have one from before.
func (j *joined) certificates(ctx context.Context) error {
	_, err := j.e.Client.Typed.CoreV1().Secrets(MeshNamespace).Get(ctx, ca.PluggedSecret, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("certificates: %w", err)
	}
	now := time.Now()
	root, err := ca.NewSelfSigned(meshID, now)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	var g errgroup.Group
	for _, s := range j.e.Sites {
		files, err := ca.Issue(root, meshID, s.ID, now)
		if err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		g.Go(func() error { return install.PlugCA(ctx, s.Client.Config(), MeshNamespace, files) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	j.progress(clusters.Event{Phase: phaseMesh, Detail: fmt.Sprintf("certificates: one root, %d intermediates", len(j.e.Sites))})
	return nil
}

// networks tells whether the lab's clusters are on more than one network.
func (j *joined) networks() bool {
	for _, s := range j.e.Sites {
		if s.Cluster.Network() != j.e.Sites[0].Cluster.Network() {
			return true
		}
	}
	return false
}

// options say how the mesh of a site is installed.
func (j *joined) options(s *Site) install.Options {
	o := install.Options{
		Tag: j.e.Version, Revision: j.e.Spec.Mesh.Revision, ClusterID: s.ID, MeshID: meshID, Network: s.Cluster.Network(),
		Progress: func(component, detail string) {
			j.progress(clusters.Event{Phase: phaseMesh, Detail: s.ID + ": " + component + ": " + detail})
		},
	}
	if j.e.primary(s) == s {
		o.Gateways = append(o.Gateways, install.Gateway{Name: ingressName})
	} else {
		o.Profile, o.Gateways = "remote", []install.Gateway{}
	}
	// Remote clusters reach the control plane, and other networks the services, by an east-west gateway.
	if j.networks() || len(j.e.servedBy(s)) > 1 {
		o.Gateways = append(o.Gateways, install.EastWest(s.Cluster.Network()))
	}
	return o
}

func (j *joined) install(ctx context.Context, s *Site) (err error) {
	o := j.options(s)
	p := j.e.primary(s)
	if p != s {
		if o.RemotePilotAddress, err = j.eastWest(ctx, p); err != nil {
			return err
		}
		return j.driver.Install(ctx, s.Client.Config(), o)
	}
	if err := j.driver.Install(ctx, s.Client.Config(), o); err != nil {
		return err
	}
	m, err := j.e.attach(ctx, s, j.driver.Name())
	if err != nil {
		return err
	}
	s.Mesh = m
	return j.expose(ctx, s, m)
}

// expose opens the east-west gateway of a primary, and waits until it serves.
func (j *joined) expose(ctx context.Context, s *Site, m Mesh) error {
	var objs []workload.Object
	apply := func(name string, manifest []byte) error {
		got, err := s.Client.Apply(ctx, name, manifest)
		objs = append(objs, got...)
		return err
	}
	if len(j.e.servedBy(s)) > 1 {
		if err := apply("expose-istiod", install.ExposeControlPlane); err != nil {
			return err
		}
	}
	if j.networks() {
		if err := apply("expose-services", install.ExposeServices); err != nil {
			return err
		}
	}
	for _, o := range objs {
		_, err := expect.Converge(ctx, expect.Budget{Within: exposeBudget}, func(ctx context.Context) (struct{}, error) {
			p, err := m.Push(ctx, o)
			if err == nil {
				err = p.Complete()
			}
			return struct{}{}, err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	return nil
}

const (
	ingressName   = "istio-ingressgateway"
	exposeBudget  = 30 * time.Second
	addressBudget = 30 * time.Second
)

// eastWest waits for the address of a site's east-west gateway.
func (j *joined) eastWest(ctx context.Context, s *Site) (string, error) {
	return expect.Converge(ctx, expect.Budget{Within: addressBudget}, func(ctx context.Context) (string, error) {
		svc, err := s.Client.Typed.CoreV1().Services(MeshNamespace).Get(ctx, install.EastWestName, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("east-west gateway of %s: %w", s.ID, err)
		}
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if net.ParseIP(in.IP) != nil {
				return in.IP, nil
			}
		}
		return "", errors.New("the east-west gateway of " + s.ID + " has no load balancer address")
	})
}

// shareSecret gives every other control plane the secret of a site.
func (j *joined) shareSecret(ctx context.Context, s *Site) error {
	secret, err := install.RemoteSecret(ctx, s.Client.Config(), "", install.Options{ClusterID: s.ID})
	if err != nil {
		return err
	}
	for _, p := range j.e.Sites {
		if p == s || j.e.primary(p) != p {
			continue
		}
		if err := install.AddRemote(ctx, p.Client.Config(), secret); err != nil {
			return fmt.Errorf("remote secret of %s in %s: %w", s.ID, p.ID, err)
		}
	}
	return nil
}
