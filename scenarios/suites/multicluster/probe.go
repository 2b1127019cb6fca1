package multicluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/record"
)

// probe calls a pod, a node and a Service of the first cluster at their own addresses from the second, before the load begins. The pod,
// which stands behind the Service too, answers anybody; a kubelet answers plain HTTP with status 400.
func (s *stage) probe(ctx context.Context) error {
	pod, err := s.first.PodAddress(ctx, s.ns, "app="+newService, 8080)
	if err != nil {
		return err
	}
	clusterIP, nodePort, err := s.probed(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range []struct {
		name, address string
		accept        []int
	}{
		{podProbe, pod, nil},
		{nodeProbe, net.JoinHostPort(s.first.Cluster.NodeIPs()[0], "10250"), []int{http.StatusBadRequest}},
		{serviceProbe, clusterIP, nil},
		{nodePortProbe, nodePort, nil},
	} {
		t := drive.Target{
			Source: drive.Agent, Agent: "http://" + s.agent, Rate: probeRate,
			Profile: loadgen.Profile{Name: p.name, URL: "http://" + p.address + "/", Rate: probeRate, Duration: probeFor, Timeout: probeTimeout, Accept: p.accept},
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

// probed makes the Service that is probed, waits until it answers whoever may call it, and returns its addresses with their ports.
func (s *stage) probed(ctx context.Context) (clusterIP, nodePort string, err error) {
	if _, err = s.first.Client.Apply(ctx, probedService, serviceObject(s.ns, probedService, corev1.ServiceTypeNodePort)); err != nil {
		return "", "", err
	}
	svc, err := s.first.Client.Typed.CoreV1().Services(s.ns).Get(ctx, probedService, metav1.GetOptions{})
	if err != nil {
		return "", "", fmt.Errorf("service %s: %w", probedService, err)
	}
	if nodePort, err = s.first.ServiceNodePort(ctx, s.ns, probedService, 8080); err != nil {
		return "", "", err
	}
	err = drive.Reachable(ctx, s.e, []drive.Target{{Source: drive.Runner, Profile: loadgen.Profile{Name: nodePortProbe, URL: "http://" + nodePort + "/"}}})
	return net.JoinHostPort(svc.Spec.ClusterIP, "8080"), nodePort, err
}
