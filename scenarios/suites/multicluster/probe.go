package multicluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/record"
)

// probe calls a pod and a node of the first cluster at their own addresses from the second, before the load begins. The pod answers
// anybody; a kubelet answers plain HTTP with status 400.
func (s *stage) probe(ctx context.Context) error {
	pods, err := s.first.Client.Typed.CoreV1().Pods(s.ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + newService})
	if err != nil {
		return fmt.Errorf("pods of %s: %w", newService, err)
	}
	if len(pods.Items) == 0 || pods.Items[0].Status.PodIP == "" {
		return fmt.Errorf("no pod of %s has an address", newService)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range []struct {
		name, url string
		accept    []int
	}{
		{podProbe, "http://" + net.JoinHostPort(pods.Items[0].Status.PodIP, "8080") + "/", nil},
		{nodeProbe, "http://" + net.JoinHostPort(s.first.Cluster.NodeIPs()[0], "10250") + "/", []int{http.StatusBadRequest}},
	} {
		t := drive.Target{
			Source: drive.Agent, Agent: "http://" + s.agent, Rate: probeRate,
			Profile: loadgen.Profile{Name: p.name, URL: p.url, Rate: probeRate, Duration: probeFor, Timeout: probeTimeout, Accept: p.accept},
		}
		s.rec.Stream(record.Stream{Name: p.name, Target: t.Describe(), Rate: t.Rate, Source: t.Source, Short: true})
		g.Go(func() error {
			if err := t.Run(gctx, s.e, s.rec.Result); err != nil && !errors.Is(err, drive.ErrOver) {
				return err
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}
