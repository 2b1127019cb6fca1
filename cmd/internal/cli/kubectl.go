package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/clusters"
)

func (a *app) kubectlCommand() *cobra.Command {
	var labName, cluster string
	c := &cobra.Command{
		Use:   "kubectl [--lab LAB] [--in CLUSTER] ARGUMENT...",
		Short: "Run kubectl on a cluster of a lab",
		Long: `Kubectl runs the kubectl that was built with the lab's own Kubernetes on a cluster of the lab, and
ends with its exit code. This verb's own flags come first; from the first word that is none of them,
or from --, all is kubectl's. Without --in, each cluster of the lab is a context of its name, the first the current one.`,
		Example:            "  meshproof kubectl get pods -A\n  meshproof kubectl --in east -n bookinfo logs deploy/reviews-v1 -c reviews\n  meshproof kubectl get pods -A --context east",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			own, args := ownFlags(cmd, args)
			if err := cmd.Flags().Parse(own); err != nil {
				return cmd.FlagErrorFunc()(cmd, err)
			}
			if help, err := cmd.Flags().GetBool("help"); err == nil && help {
				return cmd.Help()
			}
			if len(args) == 0 {
				return usage("%s: give what kubectl is to do, as in: get pods -A", cmd.CommandPath())
			}
			provider, err := a.newProvider(a.provider)
			if err != nil {
				return err
			}
			l, err := a.open(cmd.Context(), labName)
			if err != nil {
				return err
			}
			path, err := a.kubectl(cmd.Context(), provider)
			if err != nil {
				return failed(err)
			}
			if cluster != "" {
				cl, err := pickCluster(l, cluster)
				if err != nil {
					return err
				}
				return a.execute(cmd.Context(), path, append([]string{"--kubeconfig", cl.Kubeconfig()}, args...))
			}
			var all []string
			for _, cl := range l.Clusters() {
				all = append(all, cl.Kubeconfig())
			}
			return a.execute(cmd.Context(), path, args, "KUBECONFIG="+strings.Join(all, string(filepath.ListSeparator)))
		},
	}
	c.Flags().StringVar(&labName, "lab", "", "lab to work on; the only one that is up if not given")
	c.Flags().StringVar(&cluster, "in", "", "cluster of the lab; its first if not given")
	_ = c.RegisterFlagCompletionFunc("lab", a.completeLabs)
	return c
}

// ownFlags cuts args where the flags of cmd end.
func ownFlags(cmd *cobra.Command, args []string) (own, rest []string) {
	for i := 0; i < len(args); i++ {
		word, isFlag := strings.CutPrefix(args[i], "--")
		name, _, whole := strings.Cut(word, "=")
		switch flag := cmd.Flags().Lookup(name); {
		case args[i] == "--": // as minikube has it
			return args[:i], args[i+1:]
		case args[i] == "-h":
		case !isFlag || flag == nil:
			return args[:i], args[i:]
		case !whole && flag.NoOptDefVal == "": // its value is the next word
			i++
		}
	}
	return args, nil
}

// kubectl is the path of the provider's own, which fits the API servers, else of the one on PATH.
func (a *app) kubectl(ctx context.Context, provider clusters.Provider) (string, error) {
	if b, ok := provider.(interface {
		Build(ctx context.Context, progress clusters.Progress) (dir string, err error)
	}); ok {
		p := a.progress()
		dir, err := b.Build(ctx, p.event)
		p.close()
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, "kubectl")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return "", errors.New("no kubectl beside the node binaries, and none on PATH")
	}
	return path, nil
}

// execute runs a program on our streams; its exit code becomes ours.
func (a *app) execute(ctx context.Context, path string, args []string, env ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &codedError{code: exit.ExitCode()} // it said why
	}
	if ctx.Err() != nil {
		return nil // interrupted, as port-forward is
	}
	return failed(err)
}
