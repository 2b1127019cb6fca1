package multicluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
)

const (
	pilotSelector = "app=istiod"
	pilotBudget   = 45 * time.Second // for the control plane to go, and to come back
)

// isPilot tells the pods that the timeline itself takes away, in whatever cluster.
func isPilot(pod string) bool { return strings.Contains("/"+pod, "/"+env.MeshNamespace+"/istiod") }

// withoutPilot takes every control plane away and lets load run.
func (s *stage) withoutPilot(ctx context.Context, r *run) error {
	s.rec.Event(time.Now(), "fault", "control plane taken away", map[string]string{
		"object": "Deployments " + pilotSelector + ", 0 replicas", "clusters": strings.Join(r.primaries, ", "),
	})
	if err := s.scalePilots(ctx, 0); err != nil {
		return err
	}
	_, err := expect.Converge(ctx, expect.Budget{Within: pilotBudget}, func(ctx context.Context) (struct{}, error) {
		pods, err := s.pilots(ctx)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%s still runs", strings.Join(pods, ", "))
		}
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	r.lost.From = time.Now()
	s.rec.Event(r.lost.From, "fault", "no control plane", nil)
	for time.Since(r.lost.From) < r.plan.lost {
		if err := drive.Sleep(ctx, time.Second); err != nil {
			return err
		}
		pods, err := s.pilots(ctx)
		if err != nil {
			return err
		}
		r.pilots = append(r.pilots, pods...)
	}
	r.lost.To = time.Now()
	return nil
}

// pilots names the pods of every control plane, in whatever state.
func (s *stage) pilots(ctx context.Context) ([]string, error) {
	var out []string
	for _, site := range s.e.Primaries() {
		pods, err := site.Client.Typed.CoreV1().Pods(env.MeshNamespace).List(ctx, metav1.ListOptions{LabelSelector: pilotSelector})
		if err != nil {
			return nil, fmt.Errorf("pods of the control plane of %s: %w", site.Cluster.Name(), err)
		}
		for _, p := range pods.Items {
			out = append(out, site.Cluster.Name()+"/"+p.Name)
		}
	}
	return out, nil
}

func (s *stage) scalePilots(ctx context.Context, replicas int) error {
	for _, site := range s.e.Primaries() {
		apps := site.Client.Typed.AppsV1().Deployments(env.MeshNamespace)
		list, err := apps.List(ctx, metav1.ListOptions{LabelSelector: pilotSelector})
		if err != nil {
			return fmt.Errorf("list Deployments of the control plane of %s: %w", site.Cluster.Name(), err)
		}
		for _, d := range list.Items {
			patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
			if _, err := apps.Patch(ctx, d.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return fmt.Errorf("scale %s of %s: %w", d.Name, site.Cluster.Name(), err)
			}
		}
	}
	return nil
}

// restore heals the link and brings the control planes back, also after a run that broke off.
func (s *stage) restore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pilotBudget)
	defer cancel()
	errs := []error{s.link.Heal(ctx)}
	if s.e.Mesh.Driver() == "none" {
		return errors.Join(errs...)
	}
	errs = append(errs, s.scalePilots(ctx, 1), s.ready(ctx, env.MeshNamespace))
	return errors.Join(errs...)
}

// browse asks for a product's page once. It is an error if the page lacks something, or, where remote is set, was made without the
// cluster.
func browse(ctx context.Context, client *http.Client, url, cluster string, remote bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"product/"+watchProduct, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	if failed := resp.Header.Get("X-Meshproof-Failed"); failed != "" {
		return fmt.Errorf("calls that failed: %s", failed)
	}
	if via := resp.Header.Get("X-Meshproof-Via"); remote && !strings.Contains(via, "/"+cluster) {
		return fmt.Errorf("nothing of the page was made in cluster %s: %s", cluster, via)
	}
	return nil
}

// metrics asks the proxies of what stands in the second cluster whom they let in.
func (s *stage) metrics(ctx context.Context) ([]served, error) {
	if s.e.Mesh.Driver() == "none" {
		return nil, nil
	}
	var out []served
	for _, app := range []string{cartApp, recommendApp} {
		pods, err := s.second.Client.Typed.CoreV1().Pods(s.ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return nil, fmt.Errorf("pods of %s: %w", app, err)
		}
		for _, p := range pods.Items {
			text, err := s.second.Client.Admin(ctx, s.ns, p.Name, "/stats/prometheus")
			if err != nil {
				return nil, err
			}
			calls, err := parseCalls(text)
			if err != nil {
				return nil, fmt.Errorf("proxy of %s: %w", p.Name, err)
			}
			out = append(out, served{App: app, Pod: p.Name, Cluster: s.second.Cluster.Name(), Calls: calls})
		}
	}
	return out, nil
}
