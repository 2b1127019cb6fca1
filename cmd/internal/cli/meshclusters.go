package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// clients are those of every cluster that a verb about the whole mesh looks at: all of a lab, unless one is named.
func (a *app) clients(ctx context.Context, f *meshFlags) ([]*workload.Client, error) {
	if f.cluster != "" || f.lab == "" && (f.kubeconfig != "" || a.Env("KUBECONFIG") != "") {
		c, err := a.client(ctx, f)
		return []*workload.Client{c}, err
	}
	l, err := a.open(ctx, f.lab)
	if err != nil {
		return nil, err
	}
	var out []*workload.Client
	for _, cl := range l.Clusters() {
		cfg, err := cl.RESTConfig()
		if err != nil {
			return nil, failed(err)
		}
		c, err := workload.NewClient(f.bounded(cfg))
		if err != nil {
			return nil, failed(err)
		}
		out = append(out, c)
	}
	return out, nil
}

// holder is the client of the cluster that has a pod, of those that a verb looks at.
func (a *app) holder(ctx context.Context, f *meshFlags, namespace, pod string) (*workload.Client, error) {
	list, err := a.clients(ctx, f)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		_, err := c.Typed.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
		if err == nil {
			return c, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, failed(err)
		}
	}
	return nil, usage("there is no pod %s in namespace %s; write POD.NAMESPACE, as proxy-status lists them", pod, namespace)
}

func (a *app) createRemoteSecret(f *meshFlags) *cobra.Command {
	var name, server string
	c := &cobra.Command{
		Use:   "create-remote-secret",
		Short: "Print the Secret by which another cluster's control plane finds this one",
		Long: `Create-remote-secret makes the service account ` + "istio-reader-service-account" + ` in the cluster, where it is
missing, and prints a Secret with a kubeconfig that speaks for it. Apply it in the cluster of the control
plane that is to see this one.`,
		Example: "  meshproof mesh create-remote-secret --in remote --name remote | kubectl --kubeconfig control.kubeconfig apply -f -\n" +
			"  meshproof mesh create-remote-secret --context remote --name remote --server https://10.0.0.5:6443",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				name = f.cluster
			}
			if err := lab.CheckName(name); err != nil {
				return usage("--name: %w", err)
			}
			cfg, err := a.restConfig(cmd.Context(), f)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), secretBudget, fmt.Errorf("not there within %s", secretBudget))
			defer cancel()
			secret, err := install.RemoteSecret(ctx, cfg, server, install.Options{ClusterID: name})
			if err != nil {
				return failed(err)
			}
			text, err := yaml.Marshal(secret)
			if err != nil {
				return failed(err)
			}
			_, err = fmt.Fprintf(a.Out, "# This file holds a credential: keep it as one.\n%s---\n", text)
			return err
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the cluster in the mesh; that of --in if not given")
	c.Flags().StringVar(&server, "server", "", "URL of the API server as the other cluster's pods reach it; what it advertises if not given")
	return c
}

// secretBudget bounds the wait for the token of a service account.
const secretBudget = 30 * time.Second

func (a *app) remoteClusters(f *meshFlags) *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:     "remote-clusters",
		Short:   "List the other clusters that each control plane sees",
		Example: "  meshproof mesh remote-clusters",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.clients(cmd.Context(), f)
			if err != nil {
				return err
			}
			type row struct {
				status.Cluster
				ControlPlane string `json:"controlPlane"`
			}
			rows := []row{}
			err = controlPlanes(cmd.Context(), list, func(base, pod, _ string) error {
				got, err := status.Clusterz(cmd.Context(), once(), base)
				for _, c := range got {
					rows = append(rows, row{c, pod})
				}
				return err
			})
			if err != nil {
				return err
			}
			return a.print(rows, func(w io.Writer) error {
				if len(rows) == 0 {
					_, err := fmt.Fprintln(w, "no control plane sees another cluster; give it one with: meshproof mesh create-remote-secret")
					return err
				}
				var cells [][]string
				for _, r := range rows {
					state := "synced"
					switch {
					case !r.Reachable:
						state = "unreachable since " + r.Since.Local().Format(time.TimeOnly)
					case !r.Synced:
						state = "reading"
					}
					cells = append(cells, []string{r.Cluster.Cluster, r.Secret, state, r.ControlPlane})
				}
				return columns(w, []string{"CLUSTER", "SECRET", "STATE", "ISTIOD"}, cells)
			})
		},
	})
}

func (a *app) meshCerts(f *meshFlags) *cobra.Command {
	var out string
	var names []string
	var apply bool
	c := &cobra.Command{
		Use:   "certs",
		Short: "Make a root certificate and a CA for each cluster of a mesh",
		Long: `Certs makes one root and, signed by it, one intermediate CA for each cluster, as PEM files with the names
that Istio's own tools give them, and prints how to give them to the clusters. A root that is in the folder
already is used again, so that clusters can be added later. With --apply, the clusters of the lab get theirs.`,
		Example: "  meshproof mesh certs --out certs --cluster control --cluster remote\n" +
			"  meshproof mesh certs --out certs --cluster control --cluster remote --apply --lab primary-remote",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" || len(names) == 0 {
				return usage("%s: give --out DIR and --cluster NAME, once for each cluster", cmd.CommandPath())
			}
			if f.kubeconfig != "" || f.context != "" || f.cluster != "" || f.lab != "" && !apply {
				return usage("%s: only --apply looks at a cluster, and only at those of --lab", cmd.CommandPath())
			}
			for i, n := range names {
				if err := lab.CheckName(n); err != nil {
					return usage("--cluster: %w", err)
				}
				if slices.Contains(names[:i], n) {
					return usage("--cluster %s is given twice", n)
				}
			}
			var targets []clusters.Cluster
			if apply {
				l, err := a.open(cmd.Context(), f.lab)
				if err != nil {
					return err
				}
				for _, n := range names {
					cl, err := pickCluster(l, n)
					if err != nil {
						return err
					}
					targets = append(targets, cl)
				}
			}
			files, err := writeCerts(out, names, time.Now())
			if err != nil {
				return failed(err)
			}
			for i, cl := range targets {
				cfg, err := cl.RESTConfig()
				if err == nil {
					err = install.PlugCA(cmd.Context(), cfg, env.MeshNamespace, files[i])
				}
				if err != nil {
					return failed(fmt.Errorf("cluster %s: %w", names[i], err))
				}
				fmt.Fprintf(a.Err, " %s %-16s Secret %s/%s\n", a.marks().ok(), names[i], env.MeshNamespace, ca.PluggedSecret)
			}
			if apply {
				return nil
			}
			for _, n := range names {
				dir := filepath.Join(out, n)
				fmt.Fprintf(a.Out, "kubectl --context %s create namespace %s\n", n, env.MeshNamespace)
				fmt.Fprintf(a.Out, "kubectl --context %s -n %s create secret generic %s", n, env.MeshNamespace, ca.PluggedSecret)
				for _, name := range []string{"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"} {
					fmt.Fprintf(a.Out, " --from-file=%s", filepath.Join(dir, name))
				}
				fmt.Fprintln(a.Out)
			}
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "folder for the files")
	c.Flags().StringArrayVar(&names, "cluster", nil, "name of a cluster; may be given several times")
	c.Flags().BoolVar(&apply, "apply", false, "give the lab's clusters of these names their CA")
	_ = c.MarkFlagDirname("out")
	return c
}

// rootOrganization is what the certificates say of whose they are; istio's tools/certs write Istio.
const rootOrganization = "Istio"

// writeCerts makes the CAs of the clusters, of the root in the folder or of a new one, and writes them there.
func writeCerts(out string, names []string, now time.Time) ([]ca.Files, error) {
	if err := os.MkdirAll(out, 0o700); err != nil {
		return nil, err
	}
	root, err := readRoot(out)
	if errors.Is(err, os.ErrNotExist) {
		if root, err = ca.NewSelfSigned(rootOrganization, now); err != nil {
			return nil, err
		}
		err = writePEM(out, map[string][]byte{"root-cert.pem": root.Cert, "root-key.pem": root.Key})
	}
	if err != nil {
		return nil, err
	}
	var list []ca.Files
	for _, n := range names {
		f, err := ca.Issue(root, rootOrganization, n, now)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(out, n)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := writePEM(dir, map[string][]byte{
			"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, "root-cert.pem": f.Root, "cert-chain.pem": f.Chain,
		}); err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

func readRoot(dir string) (ca.Files, error) {
	cert, err := os.ReadFile(filepath.Join(dir, "root-cert.pem"))
	if err != nil {
		return ca.Files{}, err
	}
	key, err := os.ReadFile(filepath.Join(dir, "root-key.pem"))
	if errors.Is(err, os.ErrNotExist) {
		return ca.Files{}, fmt.Errorf("%s has root-cert.pem but not root-key.pem: give another folder, or the key", dir)
	}
	return ca.Files{Cert: cert, Key: key, Root: cert}, err
}

func writePEM(dir string, files map[string][]byte) error {
	for name, data := range files {
		mode := os.FileMode(0o644)
		if strings.Contains(name, "key") {
			mode = 0o600
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, mode); err != nil {
			return err
		}
	}
	return nil
}
