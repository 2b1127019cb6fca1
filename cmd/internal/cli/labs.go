package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// labFlags are the flags that say which lab is meant and what differs from its file; profile is a flag of run alone.
type labFlags struct {
	file, name, mesh, profile string
}

func (f *labFlags) add(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "file", "f", "", "lab file; without one, a lab of one node with the bundled mesh")
	c.Flags().StringVar(&f.name, "lab", "", "name of the lab, instead of the file's")
	c.Flags().StringVar(&f.mesh, "mesh", "", "mesh driver: bundled or none; the lab file's if not given")
	_ = c.RegisterFlagCompletionFunc("mesh", words(lab.Drivers()...))
	_ = c.MarkFlagFilename("file", "yaml", "yml")
}

// read returns the lab that the flags describe, on top of the embedded one of that name where they name no file. Errors are about
// input: nothing was created.
func (f *labFlags) read(a *app, embedded string) (*lab.Lab, error) {
	l, err := lab.Embedded(embedded)
	if err != nil && f.file == "" {
		return nil, usage("%w\nnothing was created", err)
	}
	if f.file != "" {
		data, err := os.ReadFile(f.file)
		if err != nil {
			return nil, usage("%w\nnothing was created", err)
		}
		if l, err = lab.Parse(f.file, data); err != nil {
			return nil, usage("%w\nnothing was created", err)
		}
	}
	l = l.Clone()
	if f.name != "" {
		if err := lab.CheckName(f.name); err != nil {
			return nil, usage("--lab: %w\nnothing was created", err)
		}
		l.Name = f.name
	}
	for _, o := range []struct {
		flag, value string
		allowed     []string
		set         func(string)
	}{
		{"mesh", f.mesh, lab.Drivers(), func(v string) { l.Mesh.Driver = v }},
		{"profile", f.profile, lab.Profiles(), func(v string) { l.Profile = lab.Profile(v) }},
		{"cluster", a.provider, lab.Providers(), func(v string) { l.Provider = v }},
	} {
		if o.value == "" {
			continue
		}
		if err := oneOf(o.flag, o.value, o.allowed); err != nil {
			return nil, err
		}
		o.set(o.value)
	}
	return l, nil
}

func oneOf(flag, value string, allowed []string) error {
	for _, v := range allowed {
		if v == value {
			return nil
		}
	}
	near := ""
	if n := lab.Nearest(value, allowed); n != "" {
		near = fmt.Sprintf("; did you mean %q?", n)
	}
	return usage("--%s: %q is not one of %s%s\nnothing was created", flag, value, strings.Join(allowed, ", "), near)
}

func (a *app) upCommand() *cobra.Command {
	var f labFlags
	c := a.outputFlag(&cobra.Command{
		Use:   "up",
		Short: "Bring up a lab and leave it running",
		Long: `Up makes the lab that a file describes: clusters, mesh and apps. It returns when every node is
Ready, the mesh serves and every pod runs. Doing it twice is harmless.

Each TCP port of a Service of type LoadBalancer, as a gateway's, gets a port of 127.0.0.1, which
stays the same as long as the lab lives; "meshproof status" lists them too.`,
		Example: "  meshproof up\n  meshproof up -f lab.yaml --mesh none\n  meshproof kubectl get pods -A",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.read(a, lab.DefaultName)
			if err != nil {
				return err
			}
			provider, err := a.newProvider(l.Provider)
			if err != nil {
				return err
			}
			p := a.progress()
			defer p.close()
			e, err := env.Up(cmd.Context(), a.envOptions(provider, l, p.event))
			if err != nil {
				p.fail()
				p.close()
				return coded(codeSetup, undo(cmd.Context(), e, l.Name, a.hint(err)))
			}
			p.close()
			return a.printUp(cmd.Context(), provider, e.Lab)
		},
	})
	f.add(c)
	return c
}

// undo takes down what an up made that failed because of why, and returns that with what became of the lab.
func undo(ctx context.Context, e *env.Env, name string, why error) error {
	if e == nil { // the provider has removed what it made
		return why
	}
	if e.Found {
		return fmt.Errorf("%w\nlab %s was up before and stays; take it down with: meshproof down %s", why, name, name)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute) // also when the user interrupts
	defer cancel()
	if err := e.Down(ctx); err != nil {
		return fmt.Errorf("%w\ntake the lab down: %w", why, err)
	}
	return fmt.Errorf("%w\nlab %s was taken down again", why, name)
}

func (a *app) downCommand() *cobra.Command {
	var all bool
	c := a.outputFlag(&cobra.Command{
		Use:   "down [LAB...]",
		Short: "Take labs down and remove all they left",
		Long: `Down removes every process, namespace, mount and folder of a lab, also after a crash, and says so
if something is left. Without a name it takes the default lab. Doing it twice is harmless.`,
		Example:           "  meshproof down\n  meshproof down one two\n  meshproof down --all",
		ValidArgsFunction: a.completeLabs,
		RunE: func(cmd *cobra.Command, args []string) error {
			provider, err := a.newProvider(a.provider)
			if err != nil {
				return err
			}
			if all && len(args) > 0 {
				return usage("%s: give names or --all, not both", cmd.CommandPath())
			}
			for _, name := range args {
				if err := lab.CheckName(name); err != nil {
					return usage("lab %w", err)
				}
			}
			list, err := provider.List(cmd.Context())
			if err != nil {
				return failed(err)
			}
			var known []string
			for _, s := range list {
				known = append(known, s.Lab)
			}
			switch {
			case all:
				args = known
			case len(args) == 0:
				args = []string{lab.Default().Name}
			}
			rows := make([]downed, 0, len(args))
			var errs []error
			for _, name := range args {
				start := time.Now()
				err := provider.Down(cmd.Context(), name) // also of one that is not listed: part of it may be left
				r := downed{Lab: name, Found: slices.Contains(known, name)}
				if err != nil {
					errs, r.Left = append(errs, err), err.Error()
				} else {
					a.sayDown(r, known, time.Since(start))
				}
				rows = append(rows, r)
			}
			return errors.Join(a.print(rows, func(io.Writer) error { return nil }), failed(errors.Join(errs...)))
		},
	})
	c.Flags().BoolVar(&all, "all", false, "every lab of the provider")
	return c
}

// downed is a lab as down -o json and yaml show it.
type downed struct {
	Lab   string `json:"lab"`
	Found bool   `json:"found"`          // there was one of that name
	Left  string `json:"left,omitempty"` // what could not be removed, and why
}

func (a *app) sayDown(r downed, known []string, took time.Duration) {
	if r.Found {
		fmt.Fprintf(a.Err, " %s %-10s nothing is left of it  %s\n", a.marks().ok(), r.Lab, seconds(took))
		return
	}
	near := ""
	if n := lab.Nearest(r.Lab, known); n != "" {
		near = fmt.Sprintf("; did you mean %q?", n)
	}
	fmt.Fprintf(a.Err, " %s %-10s there was no lab of that name%s\n", a.marks().warn(), r.Lab, near)
}

func (a *app) completeLabs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	provider, err := a.newProvider(a.provider)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list, err := provider.List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Lab)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// open attaches to the lab that a verb works on: the named one, or the only one there is.
func (a *app) open(ctx context.Context, name string) (clusters.Lab, error) {
	provider, err := a.newProvider(a.provider)
	if err != nil {
		return nil, err
	}
	if name == "" {
		list, err := provider.List(ctx)
		if err != nil {
			return nil, failed(err)
		}
		switch len(list) {
		case 0:
			return nil, coded(codeSetup, errors.New("no lab is up; make one with: meshproof up"))
		case 1:
			name = list[0].Lab
		default:
			var names []string
			for _, s := range list {
				names = append(names, s.Lab)
			}
			return nil, usage("several labs are up (%s); choose one with --lab", strings.Join(names, ", "))
		}
	}
	l, err := provider.Open(ctx, name)
	if errors.Is(err, clusters.ErrNotFound) {
		return nil, coded(codeSetup, fmt.Errorf("lab %q is not up; make it with: meshproof up --lab %s", name, name))
	}
	return l, failed(err)
}

func trimRight(s string) string { return strings.TrimRight(s, " ") }
