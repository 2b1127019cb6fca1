package clustertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/clusters"
)

// RunNetworks runs the suite of labs with two clusters, on one network and on two: who reaches whom, and what a link can do.
// It is for providers whose clusters have load balancers and whose labs have links. left is as in Run.
func RunNetworks(t *testing.T, p clusters.Provider, prefix string, left func(lab string) []string) {
	archive := Archive(t)
	for _, separate := range []bool{false, true} {
		name, network := prefix+"-flat", clusters.DefaultNetwork
		if separate {
			name, network = prefix+"-apart", "network2"
		}
		t.Run(name, func(t *testing.T) {
			s := &pair{provider: p, separate: separate, archive: archive, spec: clusters.Spec{Lab: name, Clusters: []clusters.ClusterSpec{
				{Name: "east"}, {Name: "west", Network: network},
			}}}
			t.Cleanup(func() {
				if err := p.Down(context.WithoutCancel(t.Context()), name); err != nil {
					t.Errorf("down: %v", err)
				}
				if left != nil {
					for _, l := range left(name) {
						t.Errorf("left behind: %s", l)
					}
				}
			})
			for _, step := range []struct {
				name string
				run  func(t *testing.T)
			}{
				{"create", s.create}, {"reach", s.reach}, {"link names", s.names}, {"cut", s.cut}, {"slow", s.slow}, {"capture", s.capture},
			} {
				if !t.Run(step.name, step.run) {
					t.FailNow() // the later steps need the earlier ones
				}
			}
		})
	}
}

type pair struct {
	provider clusters.Provider
	spec     clusters.Spec
	separate bool
	archive  string

	lab        clusters.Lab
	east, west *suite
	service    string // west's load balancer
}

func (p *pair) create(t *testing.T) {
	start := time.Now()
	lab, _, err := p.provider.Up(t.Context(), p.spec, func(e clusters.Event) { t.Logf("%s: %s", e.Phase, e.Detail) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("two clusters after %s", time.Since(start).Round(10*time.Millisecond))
	p.lab = lab
	var made []*suite
	for i, c := range lab.Clusters() {
		if want := p.spec.Clusters[i]; c.Name() != want.Name || want.Network != "" && c.Network() != want.Network {
			t.Errorf("cluster %s on %s, want %+v", c.Name(), c.Network(), want)
		}
		made = append(made, &suite{provider: p.provider, spec: p.spec, lab: lab, cluster: c})
	}
	p.east, p.west = made[0], made[1]
	g, ctx := errgroup.WithContext(t.Context())
	for _, s := range made {
		g.Go(func() error { return s.echo(ctx, p.archive) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	p.service = p.west.balanced(t)
}

// echo starts the suite's pods in a cluster that is up.
func (s *suite) echo(ctx context.Context, archive string) error {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	if err := s.connect(); err != nil {
		return err
	}
	if err := s.cluster.LoadImages(ctx, archive); err != nil {
		return err
	}
	if _, err := s.kube.Apply(ctx, namespace, Echo()); err != nil {
		return err
	}
	if err := s.kube.WaitReady(ctx, namespace); err != nil {
		return err
	}
	pods, err := s.kube.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=echo"})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		s.podNames, s.podIP = append(s.podNames, p.Name), p.Status.PodIP
	}
	s.svc, err = s.kube.Typed.CoreV1().Services(namespace).Get(ctx, "echo", metav1.GetOptions{})
	return err
}

// reach asks from a pod in the east for everything that the west has.
func (p *pair) reach(t *testing.T) {
	node := p.west.cluster.NodeIPs()[0]
	// Until kube-proxy has rules for the new address, it is refused.
	p.west.everyPod(t, "load balancer", func(ctx context.Context) (string, error) { return p.east.run(ctx, "get", "http://"+p.service) })
	for _, c := range []struct {
		what, addr string
		open       bool
	}{
		{"pod", p.west.podIP + ":8080", !p.separate},
		{"ClusterIP", p.west.svc.Spec.ClusterIP + ":80", !p.separate},
		{"node port", fmt.Sprintf("%s:%d", node, p.west.svc.Spec.Ports[0].NodePort), !p.separate},
		{"kubelet", node + ":10250", !p.separate},
		{"API server", node + ":6443", true},
		{"load balancer", p.service + ":80", true},
		{"load balancer's port that no Service has", p.service + ":81", false},
	} {
		if _, err := p.east.run(t.Context(), "dial", c.addr); (err == nil) != c.open {
			t.Errorf("%s of the west (%s) from a pod in the east: %v; want it to be open: %v", c.what, c.addr, err, c.open)
		}
	}
	// The lab's own host reaches all of it.
	for _, addr := range []string{p.west.podIP + ":8080", p.service + ":80", node + ":6443"} {
		conn, err := p.west.dial(t, addr)
		if err != nil {
			t.Error(err)
			continue
		}
		_ = conn.Close()
	}
}

func (p *pair) names(t *testing.T) {
	for _, c := range [][2]string{{"east", "south"}, {"north", "west"}, {"east", "east"}} {
		if _, err := p.lab.Link(c[0], c[1]); err == nil {
			t.Errorf("a link between %s and %s", c[0], c[1])
		}
	}
	l := p.link(t)
	if err := l.Slow(t.Context(), clusters.Impairment{Loss: 2}); err == nil || !strings.Contains(err.Error(), "loss 2: give a share from 0 to 1") {
		t.Errorf("a loss of 2: %v", err)
	}
	if err := l.Heal(t.Context()); err != nil {
		t.Errorf("heal a whole link: %v", err)
	}
}

// link is taken from another process's view of the lab: what a link does outlives who did it.
func (p *pair) link(t *testing.T) clusters.Link {
	t.Helper()
	lab, err := p.provider.Open(t.Context(), p.spec.Lab)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Link("west", "east")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// across asks the west's load balancer from a pod in the east.
func (p *pair) across(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := p.east.run(ctx, "get", "http://"+p.service)
	return time.Since(start), err
}

func (p *pair) cut(t *testing.T) {
	if err := p.link(t).Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.state(t, clusters.LinkState{A: "east", B: "west", Cut: true})
	took, err := p.across(t.Context())
	if err == nil || took < 2*time.Second { // the client's patience
		t.Errorf("over a cut link: %v after %s; want it to hang", err, took)
	}
	p.west.everyPod(t, "the west itself", func(ctx context.Context) (string, error) {
		return httpGet(ctx, "http://"+p.service, p.lab.DialContext)
	})
	if err := p.link(t).Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.across(t.Context()); err != nil {
		t.Errorf("over a healed link: %v", err)
	}
	p.state(t)
}

// state compares what the lab tells of its links, where it does.
func (p *pair) state(t *testing.T, want ...clusters.LinkState) {
	t.Helper()
	l, ok := p.lab.(clusters.Linked)
	if !ok {
		return
	}
	got, err := l.Links(t.Context())
	if err != nil || !cmp.Equal(want, got, cmpopts.EquateEmpty()) {
		t.Errorf("links %+v, %v; want %+v", got, err, want)
	}
}

func (p *pair) slow(t *testing.T) {
	const delay = 100 * time.Millisecond
	if err := p.link(t).Slow(t.Context(), clusters.Impairment{Delay: delay}); err != nil {
		t.Fatal(err)
	}
	p.state(t, clusters.LinkState{A: "east", B: "west", Slow: &clusters.Impairment{Delay: delay}})
	took, err := p.across(t.Context())
	if err != nil || took < 4*delay { // to connect and to ask, there and back
		t.Errorf("with %s each way: %v after %s, want at least %s", delay, err, took, 4*delay)
	}
	t.Logf("with %s each way an exchange takes %s", delay, took.Round(time.Millisecond))
	if err := p.link(t).Slow(t.Context(), clusters.Impairment{Loss: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.across(t.Context()); err == nil {
		t.Error("an answer over a link that loses everything")
	}
	if err := p.link(t).Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took, err := p.across(t.Context()); err != nil {
		t.Errorf("over a healed link: %v after %s", err, took)
	}
}

// capture finds in the stream the packets of a connection across the link, and none of one that stays in the west.
func (p *pair) capture(t *testing.T) {
	var file bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := p.link(t).Capture(ctx, &file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.across(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := httpGet(ctx, "http://"+p.west.podIP+":8080", p.lab.DialContext); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	frames, err := readPcap(file.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	service, pod := net.ParseIP(p.service).To4(), net.ParseIP(p.west.podIP).To4()
	across := 0
	for _, f := range frames {
		if bytes.Contains(f, service) {
			across++
		}
		if bytes.Contains(f[:min(len(f), 34)], pod) {
			t.Errorf("a packet of a connection that does not cross the link: % x", f)
		}
	}
	if across < 8 { // three to connect, request, answer and their acknowledgements, two to part
		t.Errorf("%d of %d packets on the link are of the connection to %s, want at least 8", across, len(frames), p.service)
	}
	// Down has to cope with a link that is not whole.
	if err := p.link(t).Slow(t.Context(), clusters.Impairment{Delay: time.Millisecond}); err != nil {
		t.Error(err)
	}
}

// readPcap splits a pcap stream into its frames.
func readPcap(b []byte) (frames [][]byte, err error) {
	const head, record = 24, 16
	if len(b) < head || binary.LittleEndian.Uint32(b) != 0xa1b23c4d {
		return nil, fmt.Errorf("no pcap stream: % x", b[:min(len(b), head)])
	}
	for b = b[head:]; len(b) > 0; {
		if len(b) < record {
			return nil, errors.New("pcap: cut off in a record's head")
		}
		n := int(binary.LittleEndian.Uint32(b[8:]))
		if len(b) < record+n {
			return nil, errors.New("pcap: cut off in a frame")
		}
		frames, b = append(frames, b[record:record+n]), b[record+n:]
	}
	return frames, nil
}
