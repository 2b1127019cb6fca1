// Package cli is the command line of meshproof: the verbs, their flags and help, how results are printed, and the exit codes.
// Flags, environment variables and terminal handling live here and nowhere else.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/scenarios/lab"
)

// Streams is the world outside as the verbs see it.
type Streams struct {
	In       io.Reader
	Out      io.Writer           // what was asked for
	Err      io.Writer           // progress and errors
	Env      func(string) string // environment variables; "" if unset
	Terminal bool                // Err is a terminal: lines may be rewritten
	Width    int                 // columns of that terminal; 0 if unknown
	Self     string              // path of this executable; the binaries for images lie beside it
}

// Run runs one command line, without the program's name, and returns the exit code. ctx ends when the user interrupts; what
// was created is taken down before Run returns.
func Run(ctx context.Context, args []string, s Streams) int {
	a := &app{Streams: s}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return codeOK
	}
	var c *codedError
	if !errors.As(err, &c) {
		// Whatever cobra itself says is about the command line.
		c = &codedError{code: codeUsage, err: err}
	}
	if text := c.Error(); text != "" {
		fmt.Fprintln(s.Err, strings.TrimSuffix(text, "\n"))
	}
	return c.code
}

// The exit codes.
const (
	codeOK           = 0 // all claims pass
	codeFail         = 1 // a claim failed, or a verb could not do its work
	codeUsage        = 2 // usage or bad input; nothing was created
	codeInconclusive = 3 // no claim failed, but not all could be judged
	codeSetup        = 4 // the lab could not be set up
)

// codedError carries the exit code that an error means. An err of nil prints nothing.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

func coded(code int, err error) error {
	if err == nil {
		return nil
	}
	var c *codedError
	if errors.As(err, &c) {
		return err
	}
	return &codedError{code: code, err: err}
}

func usage(format string, args ...any) error {
	return &codedError{code: codeUsage, err: fmt.Errorf(format, args...)}
}

func failed(err error) error { return coded(codeFail, err) }

// app is one command line at work.
type app struct {
	Streams

	// Flags that every verb has.
	provider  string
	stateDir  string
	cacheDir  string
	nodeBin   string
	nodeBuild string
	output    string
}

const rootLong = `Meshproof proves what a service mesh does. One command brings up a real Kubernetes cluster,
installs a mesh, deploys apps, drives them under load while it changes things, and says
for each claim pass, fail or inconclusive, with the numbers behind it.

Exit codes: 0 all claims pass, 1 a claim failed, 2 usage or bad input, 3 inconclusive,
4 the lab could not be set up. A negative control (run --control) turns 0 and 1 round.

Environment:
  NO_COLOR                 no colours
  KUBECONFIG               cluster for the mesh verbs, when no lab is named
  ARTIFACTS                folder for reports; the default is runs
  CI                       plain lines even on a terminal
  MESHPROOF_NODE_BIN       folder of ready node binaries (as --node-bin)
  MESHPROOF_NODE_SOURCE    folder of the module they are built from (as --node-source)`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "meshproof",
		Short:         "Prove what a service mesh does",
		Long:          rootLong,
		Example:       "  meshproof run canary                 # a lab from nothing, the verdicts, and down again\n  meshproof up && meshproof status     # a lab to work with by hand\n  meshproof list                       # the scenarios there are",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%s: %w\nrun \"%s --help\" for its flags", cmd.CommandPath(), err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = false
	f := root.PersistentFlags()
	f.StringVar(&a.provider, "cluster", "", "cluster provider (local); the lab file's if not given")
	f.StringVar(&a.stateDir, "state", "", "folder of the labs' state (default $XDG_STATE_HOME/meshproof)")
	f.StringVar(&a.cacheDir, "cache", "", "folder of binaries and images (default $XDG_CACHE_HOME/meshproof)")
	f.StringVar(&a.nodeBin, "node-bin", a.Env("MESHPROOF_NODE_BIN"), "folder of ready node binaries; empty builds them from --node-source")
	f.StringVar(&a.nodeBuild, "node-source", a.Env("MESHPROOF_NODE_SOURCE"), "folder of the module that node binaries are built from (default clusters/local/node)")
	_ = root.RegisterFlagCompletionFunc("cluster", words(providerNames()...))

	root.AddCommand(
		a.runCommand(), a.upCommand(), a.downCommand(), a.statusCommand(), a.listCommand(), a.doctorCommand(),
		a.reportCommand(), a.kubectlCommand(), a.forwardCommand(), a.linkCommand(), a.meshCommand(), a.imagesCommand(), a.versionCommand(),
	)
	return root
}

func words(list ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
}

// group is a verb that only has verbs of its own.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownVerb(cmd, args[0])
		}
		return nil
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return c
}

func unknownVerb(cmd *cobra.Command, word string) error {
	msg := fmt.Sprintf("%s: %q is not a verb", cmd.CommandPath(), word)
	var verbs []string
	for _, c := range cmd.Commands() {
		verbs = append(verbs, c.Name())
	}
	if near := lab.Nearest(word, verbs); near != "" {
		msg += fmt.Sprintf("; did you mean %q?", near)
	}
	return usage("%s\nrun \"%s --help\" for the verbs there are", msg, cmd.CommandPath())
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%s takes no arguments, got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// atMostArg takes one argument of that name, or none.
func atMostArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usage("%s takes one %s or none, got %d arguments", cmd.CommandPath(), name, len(args))
		}
		return nil
	}
}

func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usage("%s takes %s, got %d arguments", cmd.CommandPath(), strings.Join(names, " and "), len(args))
		}
		return nil
	}
}
