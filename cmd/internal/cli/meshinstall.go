package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/objects"
	"github.com/meshproof/meshproof/mesh/operator"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
)

const (
	// installBudget bounds what install and uninstall wait for.
	installBudget = 3 * time.Minute
	// primaryPatience is for a primary that has its remote secret already; one that gets it later need not be waited for.
	primaryPatience = 10 * time.Second
)

// revisionFlag adds --revision.
func revisionFlag(c *cobra.Command, revision *string) {
	c.Flags().StringVar(revision, "revision", "default", "revision: a DNS label, such as 1-20-1")
}

func (a *app) meshInstall(f *meshFlags) *cobra.Command {
	var driver, revision, tag, file string
	c := &cobra.Command{
		Use:   "install",
		Short: "Install control plane, injector and gateways",
		Long: `Install brings a cluster to what the flags or the IstioOperator objects of a file ask for, and
returns when it runs. Doing it twice is harmless. A gateway that exists is taken over in place:
its new pods serve before the old ones go.`,
		Example: "  meshproof mesh install\n  meshproof mesh install --revision canary\n  meshproof mesh install -f istiooperator.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := []install.Options{{Revision: revision, Tag: tag}}
			if file != "" {
				var err error
				if list, err = a.planned(file, cmd.Flags().Changed("revision"), revision); err != nil {
					return err
				}
			}
			for _, o := range list {
				if o.Tag == "" || cmd.Flags().Changed("tag") {
					o.Tag = tag
				}
				if err := a.changeMesh(cmd.Context(), f, driver, o, a.installWithImages); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&driver, "mesh", "bundled", "mesh driver: bundled")
	c.Flags().StringVar(&tag, "tag", version.Version, "tag of the images")
	c.Flags().StringVarP(&file, "file", "f", "", "file with IstioOperator objects; - is standard input")
	revisionFlag(c, &revision)
	_ = c.RegisterFlagCompletionFunc("mesh", words("bundled"))
	_ = c.MarkFlagFilename("file", "yaml", "yml")
	return c
}

// planned reads what the IstioOperator objects of a file ask for. A revision on the command line replaces the file's.
func (a *app) planned(file string, override bool, revision string) ([]install.Options, error) {
	data, err := a.readFile(file)
	if err != nil {
		return nil, usage("%w\nnothing was installed", err)
	}
	plans, diags := operator.Decode(file, data)
	var wrong []error
	for _, d := range diags {
		if d.Problem.Severity == objects.Error {
			wrong = append(wrong, errors.New(d.String()))
			continue
		}
		fmt.Fprintf(a.Err, " ! %s\n", d)
	}
	if len(wrong) > 0 {
		return nil, usage("%w\nnothing was installed", errors.Join(wrong...))
	}
	if len(plans) == 0 {
		return nil, usage("%s: there is no IstioOperator object in it\nnothing was installed", file)
	}
	var out []install.Options
	for _, p := range plans {
		o := p.Options
		if override && revision != o.Revision {
			return nil, usage("--revision %s: IstioOperator %s of %s has spec.revision %s; use one of the two\nnothing was installed", revision, o.Owner.Name, file, o.Revision)
		}
		out = append(out, o)
	}
	return out, nil
}

func (a *app) readFile(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(a.In)
	}
	return os.ReadFile(file)
}

// installWithImages brings the images of the tag to the nodes of a lab before they are asked for.
//
//nolint:revive // a method expression of the driver has its receiver first
func (a *app) installWithImages(d install.Driver, ctx context.Context, cfg *rest.Config, o install.Options) error {
	if err := a.loadMeshImages(ctx, cfg, o.Tag); err != nil {
		return err
	}
	o.Patience = primaryPatience
	return d.Install(ctx, cfg, o)
}

// loadMeshImages puts the images of the mesh onto the nodes, if cfg leads to a cluster of a lab of ours: a lab that was made without
// a mesh has none, and pulls none. Other clusters pull theirs.
func (a *app) loadMeshImages(ctx context.Context, cfg *rest.Config, tag string) error {
	c, err := a.ours(ctx, cfg)
	if c == nil {
		return err
	}
	bin, ok := env.BuildFolder(filepath.Dir(a.Self), version.Version, tag)
	if !ok {
		return usage("tag %q: there is no build of meshd and meshproxy with it, and a lab pulls no images; leave the tag out, or build them into %s and say %s-NAME\nnothing was installed",
			tag, filepath.Join(filepath.Dir(a.Self), "NAME"), version.Version)
	}
	archives, err := env.Archives(ctx, bin, a.cache(), tag, []string{"meshd", "meshproxy"})
	if err != nil {
		return err
	}
	return c.LoadImages(ctx, archives...)
}

// ours is the cluster of a lab that cfg leads to; nil for any other.
func (a *app) ours(ctx context.Context, cfg *rest.Config) (clusters.Cluster, error) {
	provider, err := a.newProvider(a.provider)
	if err != nil {
		return nil, err
	}
	labs, err := provider.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range labs {
		l, err := provider.Open(ctx, s.Lab)
		if err != nil {
			continue // a broken lab is not where cfg leads
		}
		for _, c := range l.Clusters() {
			if own, err := c.RESTConfig(); err == nil && own.Host == cfg.Host {
				return c, nil
			}
		}
	}
	return nil, nil
}

func (a *app) meshUninstall(f *meshFlags) *cobra.Command {
	var (
		driver, revision string
		purge, force     bool
	)
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove a revision of the mesh and all that it made",
		Long: `Uninstall removes a revision: control plane, autoscalers, budgets, webhooks, rights, its operator
and its IstioOperator objects with their finalizer, and waits until all of it is gone. While
proxies use the revision it refuses and lists them. A gateway that another revision has taken
over stays; what all revisions share goes with the last one.`,
		Example: "  meshproof mesh uninstall --revision 1-20-1\n  meshproof mesh uninstall --force     # although proxies are connected\n  meshproof mesh uninstall --purge     # the custom resource definitions too",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := install.Options{Tag: version.Version, Revision: revision, Purge: purge, Force: force}
			return a.changeMesh(cmd.Context(), f, driver, o, install.Driver.Uninstall)
		},
	}
	c.Flags().StringVar(&driver, "mesh", "bundled", "mesh driver: bundled")
	c.Flags().BoolVar(&purge, "purge", false, "remove the custom resource definitions too, with every object of theirs")
	c.Flags().BoolVar(&force, "force", false, "remove it although proxies use it")
	revisionFlag(c, &revision)
	_ = c.RegisterFlagCompletionFunc("mesh", words("bundled"))
	return c
}

func (a *app) changeMesh(ctx context.Context, f *meshFlags, driver string, o install.Options, change func(install.Driver, context.Context, *rest.Config, install.Options) error) error {
	if err := lab.CheckName(o.Revision); err != nil {
		return usage("--revision: %w", err)
	}
	if driver == (install.None{}).Name() {
		return usage("--mesh: %q has nothing to install or remove", driver)
	}
	d, err := install.ByName(driver)
	if err != nil {
		return usage("--mesh: %w", err)
	}
	return a.onCluster(ctx, f, o, func(ctx context.Context, cfg *rest.Config, o install.Options) error { return change(d, ctx, cfg, o) })
}

// onCluster calls change with the cluster that the flags say, and shows what it has done.
func (a *app) onCluster(ctx context.Context, f *meshFlags, o install.Options, change func(context.Context, *rest.Config, install.Options) error) error {
	cfg, err := a.restConfig(ctx, f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, installBudget, fmt.Errorf("not within %s", installBudget))
	defer cancel()
	m := a.marks()
	o.Progress = func(component, detail string) { fmt.Fprintf(a.Err, " %s %-16s %s\n", m.ok(), component, detail) }
	o.Remark = func(component, detail string) { fmt.Fprintf(a.Err, " %s %-16s %s\n", m.warn(), component, detail) }
	return failed(a.hint(change(ctx, cfg, o)))
}

func (a *app) meshOperator(f *meshFlags) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "operator",
		Short:   "Run an operator in the cluster, which carries IstioOperator objects out",
		Example: "  meshproof mesh operator init --revision 1-20-1\n  kubectl apply -f istiooperator.yaml\n  kubectl get iop -A",
	})
	var revision, tag string
	start := &cobra.Command{
		Use: "init", Short: "Install the operator of a revision", Args: noArgs,
		Example: "  meshproof mesh operator init --revision 1-20-1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lab.CheckName(revision); err != nil {
				return usage("--revision: %w", err)
			}
			return a.onCluster(cmd.Context(), f, install.Options{Revision: revision, Tag: tag}, func(ctx context.Context, cfg *rest.Config, o install.Options) error {
				if err := a.loadMeshImages(ctx, cfg, o.Tag); err != nil {
					return err
				}
				return install.InitOperator(ctx, cfg, o)
			})
		},
	}
	start.Flags().StringVar(&tag, "tag", version.Version, "tag of the operator's image, and of what it installs where an object names none")
	revisionFlag(start, &revision)
	remove := &cobra.Command{
		Use: "remove", Short: "Remove the operator of a revision; what it installed stays", Args: noArgs,
		Example: "  meshproof mesh operator remove --revision 1-20-1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lab.CheckName(revision); err != nil {
				return usage("--revision: %w", err)
			}
			return a.onCluster(cmd.Context(), f, install.Options{Revision: revision, Tag: version.Version}, install.RemoveOperator)
		},
	}
	revisionFlag(remove, &revision)
	c.AddCommand(start, remove)
	return c
}

func (a *app) meshTag(f *meshFlags) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "tag",
		Short: "Give revisions names that namespaces can ask for",
		Long: `A namespace with the label istio.io/rev=TAG gets its sidecars from the revision that the tag leads
to. The tag "default" is for namespaces with istio-injection=enabled.`,
		Example: "  meshproof mesh tag set prod --revision 1-20-1\n  meshproof mesh tag list",
	})
	var (
		revision         string
		overwrite, force bool
	)
	set := &cobra.Command{
		Use: "set TAG", Short: "Make a tag lead to a revision", Args: exactArgs("TAG"),
		Example: "  meshproof mesh tag set prod --revision 1-23-2 --overwrite",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onCluster(cmd.Context(), f, install.Options{Revision: revision, Tag: version.Version}, func(ctx context.Context, cfg *rest.Config, o install.Options) error {
				if err := install.SetTag(ctx, cfg, o, args[0], overwrite); err != nil {
					return err
				}
				o.Progress("tag "+args[0], "leads to revision "+revision+"; label namespaces istio.io/rev="+args[0])
				return nil
			})
		},
	}
	set.Flags().StringVar(&revision, "revision", "", "revision that the tag leads to")
	set.Flags().BoolVar(&overwrite, "overwrite", false, "move a tag that leads to another revision")
	_ = set.MarkFlagRequired("revision")
	list := a.outputFlag(&cobra.Command{
		Use: "list", Short: "List the tags", Args: noArgs, Example: "  meshproof mesh tag list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.restConfig(cmd.Context(), f)
			if err != nil {
				return err
			}
			tags, err := install.Tags(cmd.Context(), cfg)
			if err != nil {
				return failed(err)
			}
			return a.print(tags, func(w io.Writer) error {
				var rows [][]string
				for _, t := range tags {
					rows = append(rows, []string{t.Name, t.Revision, strings.Join(t.Namespaces, ",")})
				}
				return columns(w, []string{"TAG", "REVISION", "NAMESPACES"}, rows)
			})
		},
	})
	remove := &cobra.Command{
		Use: "remove TAG", Short: "Remove a tag", Args: exactArgs("TAG"), Example: "  meshproof mesh tag remove prod",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onCluster(cmd.Context(), f, install.Options{}, func(ctx context.Context, cfg *rest.Config, o install.Options) error {
				if err := install.RemoveTag(ctx, cfg, args[0], force); err != nil {
					return err
				}
				o.Progress("tag "+args[0], "removed")
				return nil
			})
		},
	}
	remove.Flags().BoolVar(&force, "force", false, "although namespaces ask for it")
	c.AddCommand(set, list, remove)
	return c
}
