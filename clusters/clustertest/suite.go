// Package clustertest is the suite that every cluster provider passes: a lab is made, an image loaded, pods run, Services
// answer by address, name and node port, an admission webhook is called, exec and logs work, and nothing is left.
package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/e2e-framework/klient"
	"sigs.k8s.io/e2e-framework/klient/wait"
	"sigs.k8s.io/e2e-framework/klient/wait/conditions"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/image"
	"github.com/meshproof/meshproof/clusters/kube"
)

// ImageRef is the reference of the image that Archive makes.
const ImageRef = "meshproof.dev/clustertest:1"

// budget bounds each wait; reaching it is a failure, never a retry.
const budget = 60 * time.Second

// Run runs the suite on a lab of one cluster with that many nodes, which it makes and removes. left, if not nil, is asked at
// the end what the lab left on the host.
func Run(t *testing.T, p clusters.Provider, lab string, nodes int, left func() []string) {
	archive := Archive(t)
	spec := clusters.Spec{Lab: lab, Clusters: []clusters.ClusterSpec{{Name: "one", Nodes: nodes}}}
	t.Cleanup(func() { // also when a step gives up
		if err := p.Down(context.WithoutCancel(t.Context()), lab); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	s := &suite{provider: p, spec: spec}
	for _, step := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"create", s.create},
		{"load image", func(t *testing.T) {
			if err := s.cluster.LoadImages(t.Context(), archive); err != nil {
				t.Fatal(err)
			}
		}},
		{"run pods", s.pods},
		{"service by address and name", s.service},
		{"node port", s.nodePort},
		{"load balancer", s.balancer},
		{"forward", s.forward},
		{"no way out", s.noWayOut},
		{"exec", s.exec},
		{"logs", s.logs},
		{"service-account token", s.token},
		{"webhook", s.webhook},
		{"apply errors name the line", s.applyErrors},
		{"not ready says why", s.notReady},
		{"collect", s.collect},
		{"delete", s.delete},
		{"down", s.down},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow() // the later steps need the earlier ones
		}
	}
	if left == nil {
		return
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(l, "\n"))
	}
}

// Archive builds the suite's image on the spot.
func Archive(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no source path")
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "app"), "./app")
	build.Dir = filepath.Dir(file)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build test image: %v\n%s", err, out)
	}
	archive := filepath.Join(dir, "app.tar")
	if err := image.Archive(t.Context(), image.Spec{Ref: ImageRef, Binary: filepath.Join(dir, "app")}, archive); err != nil {
		t.Fatal(err)
	}
	return archive
}

// Echo is the suite's Deployment of three pods with its Service, in namespace clustertest, which it makes.
func Echo() kube.Manifest { return kube.Manifest{Name: "echo.yaml", YAML: []byte(echoManifest)} }

type suite struct {
	provider clusters.Provider
	spec     clusters.Spec
	lab      clusters.Lab
	cluster  clusters.Cluster
	kube     *kube.Client
	client   klient.Client // what kube does is held against

	podNames []string
	podIP    string
	svc      *corev1.Service
}

const namespace = "clustertest"

func (s *suite) create(t *testing.T) {
	var (
		made bool
		err  error
	)
	if s.lab, made, err = s.provider.Up(t.Context(), s.spec, func(e clusters.Event) { t.Logf("%s: %s", e.Phase, e.Detail) }); err != nil || !made {
		t.Fatalf("up: made %v, error %v", made, err)
	}
	s.cluster = s.lab.Clusters()[0]
	again, made, err := s.provider.Up(t.Context(), s.spec, nil)
	if err != nil || made {
		t.Fatalf("up a second time: made %v, error %v", made, err)
	}
	if got := again.Clusters()[0].Kubeconfig(); got != s.cluster.Kubeconfig() {
		t.Errorf("up a second time: kubeconfig %s, was %s", got, s.cluster.Kubeconfig())
	}
	if _, err := s.provider.Open(t.Context(), s.spec.Lab); err != nil {
		t.Errorf("open: %v", err)
	}
	list, err := s.provider.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(st clusters.Status) bool { return st.Lab == s.spec.Lab })
	if i < 0 || list[i].State != "running" || !slices.Equal(list[i].Clusters, []string{"one"}) {
		t.Errorf("list: %+v, want lab %s running with cluster one", list, s.spec.Lab)
	}
	if err := s.connect(); err != nil {
		t.Fatal(err)
	}
	if n := s.spec.Clusters[0].Nodes; len(s.cluster.NodeIPs()) != n {
		t.Errorf("node addresses %v, want %d", s.cluster.NodeIPs(), n)
	}
}

// connect makes the clients.
func (s *suite) connect() error {
	cfg, err := s.cluster.RESTConfig()
	if err != nil {
		return err
	}
	if s.kube, err = kube.New(cfg); err != nil {
		return err
	}
	s.client, err = klient.New(cfg)
	return err
}

const echoManifest = `
apiVersion: v1
kind: Namespace
metadata: {name: clustertest}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: echo}}}
      containers:
      - name: echo
        image: ` + ImageRef + `
        args: [serve]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
`

func (s *suite) pods(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	if _, err := s.kube.Apply(ctx, namespace, Echo()); err != nil {
		t.Fatal(err)
	}
	if err := s.kube.WaitReady(ctx, namespace); err != nil {
		t.Fatal(err)
	}
	is := conditions.New(s.client.Resources())
	if ok, err := is.DeploymentAvailable("echo", namespace)(ctx); !ok || err != nil {
		t.Errorf("ready, but Deployment echo is not available: %v", err)
	}
	pods, err := s.kube.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=echo"})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]bool{}
	for _, p := range pods.Items {
		if ok, err := is.PodReady(&p)(ctx); !ok || err != nil {
			t.Errorf("ready, but pod %s is not: %v; %+v", p.Name, err, p.Status.ContainerStatuses)
		}
		s.podNames, s.podIP = append(s.podNames, p.Name), p.Status.PodIP
		nodes[p.Spec.NodeName] = true
	}
	slices.Sort(s.podNames)
	if want := min(3, s.spec.Clusters[0].Nodes); len(nodes) != want {
		t.Errorf("pods run on %d nodes, want %d", len(nodes), want)
	}
	if s.svc, err = s.kube.Typed.CoreV1().Services(namespace).Get(ctx, "echo", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
}

// everyPod asks until each of the pods has answered.
func (s *suite) everyPod(t *testing.T, what string, ask func(ctx context.Context) (string, error)) {
	t.Helper()
	seen := map[string]bool{}
	var last error
	err := wait.For(func(ctx context.Context) (bool, error) {
		name, err := ask(ctx)
		if err != nil {
			last = err
			return false, nil
		}
		if !slices.Contains(s.podNames, name) {
			return false, fmt.Errorf("answer from %q, which is none of them", name)
		}
		seen[name] = true
		return len(seen) == len(s.podNames), nil
	}, often(t.Context(), budget)...)
	if err != nil {
		t.Fatalf("%s: %v: only %v of %v answered; last error: %v", what, err, seen, s.podNames, last)
	}
}

func (s *suite) run(ctx context.Context, command ...string) (string, error) {
	out, err := s.kube.Exec(ctx, namespace, s.podNames[0], "echo", nil, append([]string{"/app"}, command...)...)
	return strings.TrimSpace(string(out)), err
}

func (s *suite) service(t *testing.T) {
	for _, url := range []string{
		"http://" + s.svc.Spec.ClusterIP, "http://echo", "http://echo.clustertest", "http://echo.clustertest.svc.cluster.local",
	} {
		s.everyPod(t, url, func(ctx context.Context) (string, error) { return s.run(ctx, "get", url) })
	}
}

func (s *suite) nodePort(t *testing.T) {
	for _, ip := range s.cluster.NodeIPs() {
		url := fmt.Sprintf("http://%s:%d", ip, s.svc.Spec.Ports[0].NodePort)
		s.everyPod(t, url, func(ctx context.Context) (string, error) { return httpGet(ctx, url, s.lab.DialContext) })
	}
	if _, err := s.lab.DialContext(t.Context(), "tcp", s.cluster.NodeIPs()[0]+":1"); err == nil {
		t.Error("a closed port of a node accepts connections")
	}
}

func (s *suite) forward(t *testing.T) {
	local, stop, err := s.cluster.Forward(t.Context(), fmt.Sprintf("%s:%d", s.cluster.NodeIPs()[0], s.svc.Spec.Ports[0].NodePort))
	if err != nil {
		t.Fatal(err)
	}
	s.everyPod(t, "forward", func(ctx context.Context) (string, error) { return httpGet(ctx, "http://"+local, nil) })
	if err := stop.Close(); err != nil {
		t.Error(err)
	}
	if _, err := httpGet(t.Context(), "http://"+local, nil); err == nil {
		t.Error("forwards after Close")
	}

	local, stop, err = s.kube.Forward(t.Context(), namespace, s.podNames[0], 8080)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := httpGet(t.Context(), "http://"+local, nil); err != nil || got != s.podNames[0] {
		t.Errorf("port-forward: %q, %v; want %q", got, err, s.podNames[0])
	}
	if err := stop.Close(); err != nil {
		t.Error(err)
	}
}

// noWayOut asks for an address that belongs to nobody (RFC 5737) and for a name outside the cluster.
func (s *suite) noWayOut(t *testing.T) {
	if _, err := s.run(t.Context(), "get", "http://192.0.2.1"); err == nil {
		t.Error("a pod reaches 192.0.2.1")
	}
	if out, err := s.run(t.Context(), "lookup", "example.com"); err == nil {
		t.Errorf("a pod resolves example.com: %s", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if conn, err := s.lab.DialContext(ctx, "tcp", "192.0.2.1:80"); err == nil {
		_ = conn.Close()
		t.Error("the lab reaches 192.0.2.1")
	}
}

func (s *suite) exec(t *testing.T) {
	out, err := s.kube.Exec(t.Context(), namespace, s.podNames[0], "", strings.NewReader("through and back"), "/app", "cat")
	if err != nil || string(out) != "through and back" {
		t.Errorf("exec with stdin: %q, %v", out, err)
	}
	_, err = s.run(t.Context(), "nonsense")
	var exit *kube.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || !strings.Contains(exit.Stderr, "usage") {
		t.Errorf("exec of a failing command: %v, want exit status 3 with usage", err)
	}
}

func (s *suite) logs(t *testing.T) {
	out, err := s.kube.Logs(t.Context(), namespace, s.podNames[0], "echo", false)
	if want := "serving as " + s.podNames[0] + "\n"; err != nil || string(out) != want {
		t.Errorf("logs: %q, %v; want %q", out, err, want)
	}
}

func (s *suite) collect(t *testing.T) {
	dir := t.TempDir()
	if err := s.kube.Collect(t.Context(), dir, namespace); err != nil {
		t.Error(err)
	}
	for _, f := range []string{"pods.yaml", "services.yaml", "events.txt", "logs/" + s.podNames[0] + "/echo.log"} {
		b, err := os.ReadFile(filepath.Join(dir, namespace, f))
		if err != nil || len(bytes.TrimSpace(b)) == 0 {
			t.Errorf("collected %s: %d bytes, %v", f, len(b), err)
		}
	}
}

func (s *suite) delete(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	if err := s.kube.Delete(ctx, namespace, Echo()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.kube.Typed.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("namespace after delete: %v, want not found", err)
	}
}

func (s *suite) down(t *testing.T) {
	for _, what := range []string{"down", "down a second time"} {
		if err := s.provider.Down(t.Context(), s.spec.Lab); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if _, err := s.provider.Open(t.Context(), s.spec.Lab); !errors.Is(err, clusters.ErrNotFound) {
		t.Errorf("open after down: %v, want ErrNotFound", err)
	}
	list, err := s.provider.List(t.Context())
	if err != nil || slices.ContainsFunc(list, func(st clusters.Status) bool { return st.Lab == s.spec.Lab }) {
		t.Errorf("list after down: %+v, %v", list, err)
	}
}

func httpGet(ctx context.Context, url string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (string, error) {
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close() // read only
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, res.Status)
	}
	return string(b), err
}
