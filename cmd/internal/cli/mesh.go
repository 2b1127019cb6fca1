package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// meshFlags say which cluster a mesh verb works on.
type meshFlags struct {
	lab, cluster, kubeconfig, context string
	// timeout bounds each call of an API server; 0 does not.
	timeout time.Duration
}

func (a *app) meshCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "mesh",
		Short: "Install a mesh and look into it",
		Long: `The mesh verbs work on a lab that is up (--lab, or the only one), or on any cluster by
--kubeconfig or $KUBECONFIG.`,
		Example: "  meshproof mesh proxy-status\n  meshproof mesh proxy-config routes productpage-v1-abc.bookinfo",
	})
	var f meshFlags
	p := c.PersistentFlags()
	p.StringVar(&f.lab, "lab", "", "lab to work on; the only one that is up if not given")
	p.StringVar(&f.cluster, "in", "", "cluster of the lab; its first if not given")
	p.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of a cluster, instead of a lab")
	p.StringVar(&f.context, "context", "", "context of the kubeconfig; without one the same as --in, since a lab's contexts are its clusters")
	p.DurationVar(&f.timeout, "request-timeout", 30*time.Second, "how long a request to an API server may take; 0 is no limit")
	c.PersistentPreRunE = func(*cobra.Command, []string) error { return f.check(a.Env("KUBECONFIG")) }
	_ = c.RegisterFlagCompletionFunc("lab", a.completeLabs)
	_ = c.MarkPersistentFlagFilename("kubeconfig")
	c.AddCommand(a.meshInstall(&f), a.meshUninstall(&f), a.meshOperator(&f), a.meshTag(&f), a.meshVersion(&f), a.proxyStatus(&f), a.proxyConfig(&f),
		a.meshAnalyze(&f), a.meshCerts(&f), a.createRemoteSecret(&f), a.remoteClusters(&f))
	return c
}

// check refuses flags that would not be looked at. Istio's guides choose a cluster by its context: of a lab, that is the cluster.
func (f *meshFlags) check(kubeconfig string) error {
	if f.context != "" && f.kubeconfig == "" && (f.lab != "" || kubeconfig == "") {
		if f.cluster != "" && f.cluster != f.context {
			return usage("--in and --context: each names another cluster; give one of the two")
		}
		f.cluster, f.context = f.context, ""
	}
	switch {
	case f.timeout < 0:
		return usage("--request-timeout: %s is less than nothing", f.timeout)
	case f.lab != "" && f.kubeconfig != "":
		return usage("--lab and --kubeconfig: give one of the two")
	case f.cluster != "" && f.kubeconfig != "":
		return usage("--in names a cluster of a lab; one of the kubeconfig is chosen by --context")
	case f.cluster != "" && f.lab == "" && kubeconfig != "":
		return usage("--in names a cluster of a lab, and KUBECONFIG is set: give --lab too, or choose by --context")
	}
	return nil
}

func (a *app) restConfig(ctx context.Context, f *meshFlags) (*rest.Config, error) {
	if f.lab == "" && (f.kubeconfig != "" || a.Env("KUBECONFIG") != "") {
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: f.kubeconfig}
		if f.kubeconfig == "" {
			rules.Precedence = strings.Split(a.Env("KUBECONFIG"), ":")
		}
		cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context}).ClientConfig()
		if err != nil {
			return nil, usage("kubeconfig: %w", err)
		}
		return f.bounded(cfg), nil
	}
	l, err := a.open(ctx, f.lab)
	if err != nil {
		return nil, err
	}
	cl, err := pickCluster(l, f.cluster)
	if err != nil {
		return nil, err
	}
	cfg, err := cl.RESTConfig()
	if err != nil {
		return nil, failed(err)
	}
	return f.bounded(cfg), nil
}

// bounded is cfg with the timeout of the flags.
func (f *meshFlags) bounded(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = f.timeout
	return cfg
}

func (a *app) client(ctx context.Context, f *meshFlags) (*workload.Client, error) {
	cfg, err := a.restConfig(ctx, f)
	if err != nil {
		return nil, err
	}
	c, err := workload.NewClient(cfg)
	return c, failed(err)
}

// noControlPlaneError says that no control plane of the clusters is ready.
type noControlPlaneError struct {
	primary string // where that of another cluster is, which serves these
}

func (e *noControlPlaneError) Error() string {
	if e.primary != "" {
		return fmt.Sprintf("no control plane runs here: that of another cluster serves this one, at %s; ask there", e.primary)
	}
	return fmt.Sprintf("no ready pods in %s; install a mesh with: meshproof mesh install", env.MeshNamespace)
}

// noControlPlane finds out why there is none.
func noControlPlane(ctx context.Context, in []*workload.Client) error {
	for _, c := range in {
		primary, err := install.Primary(ctx, c.Config())
		if err != nil {
			return fmt.Errorf("control planes: %w", err)
		}
		if primary != "" {
			return &noControlPlaneError{primary: primary}
		}
	}
	return &noControlPlaneError{}
}

// controlPlanes asks every control plane of the clusters that is ready, through port-forwards. Without any it is a noControlPlaneError.
func controlPlanes(ctx context.Context, in []*workload.Client, ask func(base, pod, revision string) error) error {
	asked := 0
	for _, c := range in {
		pods, err := c.Typed.CoreV1().Pods(env.MeshNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
		if err != nil {
			return failed(fmt.Errorf("control planes: %w", err))
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp != nil || !ready(p) {
				continue // one that starts or ends has nothing to say yet, or any more
			}
			addr, tunnel, err := c.Forward(ctx, p.Namespace, p.Name, 15014)
			if err != nil {
				return failed(err)
			}
			err = ask("http://"+addr, p.Name, p.Labels["istio.io/rev"])
			if err := errors.Join(err, tunnel.Close()); err != nil {
				return failed(err)
			}
			asked++
		}
	}
	if asked == 0 {
		return failed(noControlPlane(ctx, in))
	}
	return nil
}

func ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

func once() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}

type meshVersions struct {
	Client       string           `json:"client"`
	ControlPlane []componentCount `json:"controlPlane"`
	DataPlane    []componentCount `json:"dataPlane"`
}

type componentCount struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Count    int    `json:"count"`
}

func (a *app) meshVersion(f *meshFlags) *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:     "version",
		Short:   "Print the versions of client, control planes and proxies; of the client alone where there is no mesh",
		Example: "  meshproof mesh version",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.clients(cmd.Context(), f)
			if err != nil {
				return err
			}
			v := meshVersions{Client: version.Version}
			proxies := map[string]int{}
			err = controlPlanes(cmd.Context(), c, func(base, _, revision string) error {
				said, err := istiodVersion(cmd.Context(), base)
				if err != nil {
					return err
				}
				v.ControlPlane = append(v.ControlPlane, componentCount{Version: said, Revision: revision, Count: 1})
				list, err := status.Syncz(cmd.Context(), once(), base)
				for _, p := range list {
					proxies[proxyVersion(p)]++
				}
				return err
			})
			var none *noControlPlaneError
			if err != nil && !errors.As(err, &none) {
				return err
			}
			for ver, n := range proxies {
				v.DataPlane = append(v.DataPlane, componentCount{Version: ver, Count: n})
			}
			slices.SortFunc(v.DataPlane, func(x, y componentCount) int { return strings.Compare(x.Version, y.Version) })
			return a.print(v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "client version: %s\n", v.Client)
				if none != nil {
					fmt.Fprintln(w, none)
					return err
				}
				for _, p := range v.ControlPlane {
					fmt.Fprintf(w, "control plane version: %s (revision %s)\n", p.Version, p.Revision)
				}
				for _, p := range v.DataPlane {
					fmt.Fprintf(w, "data plane version: %s (%d proxies)\n", p.Version, p.Count)
				}
				if len(v.DataPlane) == 0 {
					fmt.Fprintln(w, "data plane version: none")
				}
				return err
			})
		},
	})
}

// objectProblem says what is wrong with an object, and what traffic obeys meanwhile.
func objectProblem(p model.ObjectProblem) string {
	s := fmt.Sprintf("%s %s/%s: %s", p.Object.Kind, p.Object.Namespace, p.Object.Name, p.Problem)
	switch p.InForce {
	case "none":
		s += " (not in force)"
	case "previous":
		s += " (its previous version is in force)"
	}
	return s
}

func proxyVersion(p status.Proxy) string {
	if p.ProxyVersion != "" {
		return p.ProxyVersion
	}
	if p.IstioVersion != "" {
		return p.IstioVersion
	}
	return "unknown"
}

// istiodVersion reads /version, which is JSON with a version field or plain text.
func istiodVersion(ctx context.Context, base string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/version", nil)
	if err != nil {
		return "", err
	}
	resp, err := once().Do(req)
	if err != nil {
		return "", fmt.Errorf("control plane: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("control plane: GET /version: %s: %w", resp.Status, errors.Join(err, errors.New(strings.TrimSpace(string(body)))))
	}
	var v struct {
		Version string `json:"version"`
	}
	if json.Unmarshal(body, &v) == nil && v.Version != "" {
		return v.Version, nil
	}
	return strings.TrimSpace(string(body)), nil
}

// proxyStatus is what proxy-status prints with -o json and yaml.
type proxyStatus struct {
	Proxies  []status.Proxy        `json:"proxies"`
	Problems []model.ObjectProblem `json:"problems"` // of the objects that the mesh read, not of proxies
}

func (a *app) proxyStatus(f *meshFlags) *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:     "proxy-status [POD[.NAMESPACE]]",
		Aliases: []string{"ps"},
		Short:   "List every proxy and whether it has acknowledged its configuration",
		Example: "  meshproof mesh proxy-status\n  meshproof mesh proxy-status loadagent",
		Args:    atMostArg("POD.NAMESPACE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.clients(cmd.Context(), f)
			if err != nil {
				return err
			}
			seen := proxyStatus{Proxies: []status.Proxy{}, Problems: []model.ObjectProblem{}}
			err = controlPlanes(cmd.Context(), c, func(base, _, _ string) error {
				got, err := status.Syncz(cmd.Context(), once(), base)
				if err != nil {
					return err
				}
				for _, p := range got {
					if len(args) == 0 || strings.HasPrefix(p.Proxy, args[0]) {
						seen.Proxies = append(seen.Proxies, p)
					}
				}
				wrong, err := status.Problems(cmd.Context(), once(), base)
				for _, p := range wrong {
					// Every control plane of a revision says the same.
					if !slices.ContainsFunc(seen.Problems, func(q model.ObjectProblem) bool { return objectProblem(p) == objectProblem(q) }) {
						seen.Problems = append(seen.Problems, p)
					}
				}
				return err
			})
			if err != nil {
				return err
			}
			list := seen.Proxies
			if len(args) == 1 && len(list) == 0 {
				return usage("no proxy whose name begins with %q is connected", args[0])
			}
			slices.SortFunc(list, func(x, y status.Proxy) int { return strings.Compare(x.Proxy, y.Proxy) })
			return a.print(seen, func(w io.Writer) error {
				var rows [][]string
				for _, p := range list {
					rows = append(rows, []string{
						p.Proxy, p.ClusterID, status.State(p.ClusterSent, p.ClusterAcked), status.State(p.ListenerSent, p.ListenerAcked),
						status.State(p.EndpointSent, p.EndpointAcked), status.State(p.RouteSent, p.RouteAcked), "NOT SENT",
						p.Identifier, proxyVersion(p),
					})
				}
				if err := columns(w, []string{"NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "ECDS", "ISTIOD", "VERSION"}, rows); err != nil {
					return err
				}
				for _, p := range list {
					if p.LastError != "" {
						fmt.Fprintf(w, "%s refused: %s\n", p.Proxy, p.LastError)
					}
				}
				if len(seen.Problems) > 0 {
					fmt.Fprintln(w, "\nproblems of objects:")
				}
				for _, p := range seen.Problems {
					fmt.Fprintf(w, "  %s\n", objectProblem(p))
				}
				return nil
			})
		},
	})
}
