package env

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// Site is one cluster of a lab with what is in it.
type Site struct {
	Cluster clusters.Cluster
	Client  *workload.Client
	Mesh    Mesh // a remote cluster's is that of its primary
	// ID is the cluster's name in the mesh: ISTIO_META_CLUSTER_ID of its proxies.
	ID string

	spec lab.Cluster
}

// singleID is the name that Istio gives a cluster that nobody named.
const singleID = "Kubernetes"

// makeSites attaches to every cluster of the lab.
func (e *Env) makeSites() error {
	list := e.Lab.Clusters()
	if len(list) != len(e.Spec.Clusters) {
		return fmt.Errorf("lab %q has %d clusters, its file %d", e.Lab.Name(), len(list), len(e.Spec.Clusters))
	}
	for i, c := range list {
		s := &Site{Cluster: c, ID: singleID, spec: e.Spec.Clusters[i]}
		if len(list) > 1 {
			s.ID = c.Name()
		}
		e.Sites = append(e.Sites, s)
		cfg, err := c.RESTConfig()
		if err != nil {
			return err
		}
		if s.Client, err = workload.NewClient(cfg); err != nil {
			return err
		}
	}
	e.Cluster, e.Client = e.Sites[0].Cluster, e.Sites[0].Client
	return nil
}

// primary is the site whose control plane serves s.
func (e *Env) primary(s *Site) *Site {
	if s.spec.Primary == "" {
		return s
	}
	return e.Site(s.spec.Primary)
}

// Primaries are the sites with a control plane of their own. Each control plane reads Istio's objects of its own cluster alone, so what
// holds for the mesh has to be applied in all of them.
func (e *Env) Primaries() []*Site {
	var out []*Site
	for _, s := range e.Sites {
		if e.primary(s) == s {
			out = append(out, s)
		}
	}
	return out
}

// Synced waits until every proxy of every cluster has acknowledged its configuration and says so in a few words, "" if there are none.
func (e *Env) Synced(ctx context.Context) (string, error) {
	primaries := e.Primaries()
	var words []string
	for _, s := range primaries {
		text, err := s.Mesh.Synced(ctx)
		if err != nil {
			return "", err
		}
		if text != "" && len(primaries) > 1 {
			text = s.Cluster.Name() + ": " + text
		}
		if text != "" {
			words = append(words, text)
		}
	}
	return strings.Join(words, ", "), nil
}

// servedBy are the sites that the control plane of p serves, p first.
func (e *Env) servedBy(p *Site) []*Site {
	out := []*Site{p}
	for _, s := range e.Sites {
		if s != p && e.primary(s) == p {
			out = append(out, s)
		}
	}
	return out
}

// Node returns the address of a port on the site's first node.
func (s *Site) Node(port int32) (string, error) {
	ips := s.Cluster.NodeIPs()
	if len(ips) == 0 {
		return "", errors.New("cluster " + s.Cluster.Name() + " has no node address")
	}
	return net.JoinHostPort(ips[0], fmt.Sprint(port)), nil
}

// ServiceNodePort is the address, for Dial, of the node port of a Service's port.
func (s *Site) ServiceNodePort(ctx context.Context, namespace, name string, port int32) (string, error) {
	svc, err := s.Client.Typed.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	for _, p := range svc.Spec.Ports {
		if p.Port == port && p.NodePort != 0 {
			return s.Node(p.NodePort)
		}
	}
	return "", fmt.Errorf("service %s/%s has no node port for %d", namespace, name, port)
}

// PodAddress is the address, for Dial, of a port of the first Ready pod that a selector picks.
func (s *Site) PodAddress(ctx context.Context, namespace, selector string, port int) (string, error) {
	pods, err := s.Client.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return "", fmt.Errorf("pods of %s with %s: %w", namespace, selector, err)
	}
	for _, p := range pods.Items {
		if p.Status.PodIP != "" && p.DeletionTimestamp == nil && podReady(p) {
			return net.JoinHostPort(p.Status.PodIP, strconv.Itoa(port)), nil
		}
	}
	return "", errors.New("no pod of " + namespace + " with " + selector + " is Ready")
}

func podReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
