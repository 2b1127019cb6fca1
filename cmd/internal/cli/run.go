package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
	"github.com/meshproof/meshproof/scenarios/session"
	"github.com/meshproof/meshproof/scenarios/tree"
)

// envOptions is what a lab is brought up with.
func (a *app) envOptions(p clusters.Provider, l *lab.Lab, progress clusters.Progress) env.Options {
	return env.Options{
		Lab: l, Provider: p, Bin: filepath.Dir(a.Self), Cache: a.cache(), Version: version.Version, Progress: progress,
	}
}

func (a *app) runCommand() *cobra.Command {
	var (
		f             labFlags
		keep, control bool
		dir, filter   string
		seed          uint64
	)
	c := a.outputFlag(&cobra.Command{
		Use:   "run [SCENARIO...]",
		Short: "Run scenarios: bring a lab up, prove, report, and take it down again",
		Long: `Run brings up what is missing, carries the scenarios out under load, prints a verdict for each
claim and writes one report. Scenarios that share a lab run in it one after the other, each in
namespaces of its own; one lab is up at a time. A lab that was up before stays up; one that run
made is taken down again, unless --keep. With -f, all run in the lab of that file.

With --control each scenario leaves out what it is there to prove. All must fail then, and the exit
code says whether they did: 0 if every one failed, 1 if one passed, 3 if one could not be judged.

Scenarios are chosen by regular expressions that match a whole ID; a leading "!" leaves those
out that match. Without any, all run. Of these, --label-filter takes those whose labels match, in
ginkgo's language: && || ! ( ) /regexp/. Labels are the features, area:AREA and lab:LAB; list shows them.`,
		Example:           "  meshproof run canary\n  meshproof run canary --mesh none        # negative control: must fail\n  meshproof run '!canary' --profile nightly\n  meshproof run --label-filter 'ingress-gateway && !area:upgrade'\n  meshproof run -f lab.yaml --keep --report /tmp/report",
		ValidArgsFunction: completeScenarios,
		RunE: func(cmd *cobra.Command, args []string) error {
			scenarios, err := catalog.Select(catalog.All(), args)
			if err != nil {
				return usage("%s: %w\nnothing was created", cmd.CommandPath(), err)
			}
			if scenarios, err = tree.Select(scenarios, filter); err != nil {
				return usage("%s: --label-filter: %w\nnothing was created", cmd.CommandPath(), err)
			}
			groups, err := a.groups(cmd, f, scenarios)
			if err != nil {
				return err
			}
			provider, err := a.newProvider(groups[0].Lab.Provider)
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("seed") {
				seed = rand.Uint64N(1 << 32)
			}
			return a.run(cmd.Context(), session.Options{
				Groups: groups, Dir: a.reportDir(dir, scenarios), Seed: seed, Keep: keep, Control: control,
				Command: rerun(args, filter, f, a.provider, seed, control), Env: a.envOptions(provider, nil, nil),
			})
		},
	})
	f.add(c)
	c.Flags().StringVar(&f.profile, "profile", "", "quick, nightly or soak; the lab file's if not given")
	_ = c.RegisterFlagCompletionFunc("profile", words(lab.Profiles()...))
	c.Flags().StringVar(&filter, "label-filter", "", "only scenarios whose labels match this expression")
	c.Flags().BoolVar(&keep, "keep", false, "leave the lab up")
	c.Flags().BoolVar(&control, "control", false, "negative control: leave out what each scenario proves; exit 0 only if all fail")
	c.Flags().StringVar(&dir, "report", "", "folder for this run's report (default runs/TIME-SCENARIO, or in $ARTIFACTS)")
	c.Flags().Uint64Var(&seed, "seed", 0, "seed of whatever is random in a run; a new one if not given")
	_ = c.MarkFlagDirname("report")
	return c
}

// groups puts the scenarios into labs: the embedded ones that the catalog names, or the one of the file.
func (a *app) groups(cmd *cobra.Command, f labFlags, scenarios []catalog.Scenario) ([]session.Group, error) {
	groups, err := f.groups(a, scenarios)
	var coded *codedError
	if err != nil && !errors.As(err, &coded) {
		err = usage("%s: %w\nnothing was created", cmd.CommandPath(), err)
	}
	return groups, err
}

func (f *labFlags) groups(a *app, scenarios []catalog.Scenario) ([]session.Group, error) {
	if f.file != "" {
		l, err := f.read(a, "")
		if err != nil {
			return nil, err
		}
		return session.Together(l, scenarios)
	}
	several := false
	for _, s := range scenarios {
		several = several || s.Lab != scenarios[0].Lab
	}
	return session.Groups(scenarios, func(name string) (*lab.Lab, error) {
		l, err := f.read(a, name)
		if err == nil && f.name != "" && several {
			l.Name = joinLabName(l.Name, name)
		}
		return l, err
	})
}

// joinLabName names a lab of a run in several, all of which have a part of the name from --lab: NAME-one, NAME-prtn. The second
// part is short, since a provider bounds the length of names.
func joinLabName(name, embedded string) string {
	words := strings.Split(embedded, "-")
	if len(words) == 1 {
		return name + "-" + embedded
	}
	initials := ""
	for _, w := range words {
		initials += w[:1]
	}
	return name + "-" + initials
}

func completeScenarios(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	for _, s := range catalog.All() {
		ids = append(ids, s.ID+"\t"+s.Title)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// reportDir is the folder of a run: as told, else one by time under ARTIFACTS or runs.
func (a *app) reportDir(dir string, scenarios []catalog.Scenario) string {
	if dir != "" {
		return dir
	}
	base := a.Env("ARTIFACTS")
	if base == "" {
		base = "runs"
	}
	name := scenarios[0].ID
	if len(scenarios) > 1 {
		name = fmt.Sprintf("%d-scenarios", len(scenarios))
	}
	return filepath.Join(base, time.Now().UTC().Format("2006-01-02T15-04-05")+"-"+name)
}

// rerun is the command line that repeats a run.
func rerun(patterns []string, filter string, f labFlags, provider string, seed uint64, control bool) string {
	words := []string{"meshproof", "run"}
	for _, p := range patterns {
		words = append(words, quote(p))
	}
	for _, o := range []struct{ flag, value string }{
		{"--label-filter", filter}, {"-f", f.file}, {"--lab", f.name}, {"--mesh", f.mesh}, {"--profile", f.profile}, {"--cluster", provider},
	} {
		if o.value != "" {
			words = append(words, o.flag, quote(o.value))
		}
	}
	if control {
		words = append(words, "--control")
	}
	return strings.Join(append(words, "--seed", fmt.Sprint(seed)), " ")
}

// hint adds to the error of a binary that is not beside this executable what makes it.
func (a *app) hint(err error) error {
	var missing *fs.PathError
	if errors.As(err, &missing) && errors.Is(missing, fs.ErrNotExist) && filepath.Dir(missing.Path) == filepath.Dir(a.Self) {
		return fmt.Errorf("%w; the images are made of the binaries beside %s: run make build", err, filepath.Base(a.Self))
	}
	return err
}

// quote makes a word safe for a shell.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (a *app) run(ctx context.Context, o session.Options) error {
	for i, g := range o.Groups {
		head := a.marks().bold("meshproof " + version.Version)
		if i > 0 {
			head = "then          "
		}
		fmt.Fprintf(a.Err, "%s  lab %s  mesh %s  profile %s  seed %d  %s\n", head, g.Lab.Name, g.Lab.Mesh.Driver, g.Lab.Profile, o.Seed, ids(g.Scenarios))
	}
	p := a.progress()
	defer p.close()
	o.Env.Progress = p.event
	o.Watch = func(s catalog.Scenario, rec *record.Recorder) func() { return a.watch(p, s, rec) }

	r, err := tree.Run(ctx, session.New(o))
	if errors.Is(err, tree.ErrRan) {
		return failed(err)
	}
	var folder *session.FolderError
	if errors.As(err, &folder) {
		return usage("%w\nnothing was created", folder)
	}
	err = a.hint(err)
	var setup *session.SetupError
	if errors.As(err, &setup) {
		p.fail()
	}
	p.close()
	if printErr := a.print(r, func(io.Writer) error { return a.printRun(o.Dir, r) }); err == nil {
		err = printErr
	}
	if ctx.Err() != nil {
		return &codedError{code: outcomeCode(r, setup != nil), err: errors.Join(errors.New("interrupted"), err)}
	}
	if err != nil {
		return &codedError{code: max(outcomeCode(r, setup != nil), codeFail), err: err}
	}
	return coded(outcomeCode(r, false), outcomeError(r))
}

func ids(scenarios []catalog.Scenario) string {
	var words []string
	for _, s := range scenarios {
		words = append(words, s.ID)
	}
	return strings.Join(words, " ")
}

func outcomeCode(r verdict.Report, setup bool) int {
	outcome := r.Outcome
	if r.Control {
		outcome, _ = controlOutcome(r)
	}
	switch {
	case outcome == verdict.Fail:
		return codeFail
	case setup:
		return codeSetup
	case outcome == verdict.Inconclusive:
		return codeInconclusive
	}
	return codeOK
}

// controlOutcome turns the outcome of a negative control round, in which every scenario must fail, and says so.
func controlOutcome(r verdict.Report) (verdict.Outcome, string) {
	var fine, open []string
	for _, s := range r.Scenarios {
		switch s.Outcome {
		case verdict.Fail:
		case verdict.Inconclusive:
			open = append(open, s.ID)
		default:
			fine = append(fine, s.ID)
		}
	}
	switch {
	case len(fine) > 0:
		return verdict.Fail, "did not fail without what it proves: " + strings.Join(fine, ", ")
	case len(open) > 0:
		return verdict.Inconclusive, "not judged: " + strings.Join(open, ", ")
	}
	return verdict.Pass, "every scenario failed, as it must"
}

// outcomeError is what makes an outcome other than pass an exit code; it prints nothing, since the verdicts said it all.
func outcomeError(r verdict.Report) error {
	if code := outcomeCode(r, false); code != codeOK {
		return &codedError{code: code}
	}
	return nil
}

// watch shows a scenario while it runs.
func (a *app) watch(p *progress, s catalog.Scenario, rec *record.Recorder) (done func()) {
	every := time.Second
	if !p.live {
		every = 5 * time.Second // lines stay
	}
	show := func(final bool) {
		now := time.Now()
		l := rec.Live(now)
		text := fmt.Sprintf("%-18s %s requests  lost %d", l.Step, verdict.Group(l.Requests), l.Lost)
		if !final && l.Rate > 0 {
			text = fmt.Sprintf("%-18s "+p.bar(l.Done)+"%4.0f req/s  p50 %s p99 %s  lost %d", l.Step, l.Rate, millis(l.P50), millis(l.P99), l.Lost)
		}
		if final {
			text = fmt.Sprintf("%s requests, lost %d", verdict.Group(l.Requests), l.Lost)
		}
		p.event(clusters.Event{Phase: s.ID, Detail: text, Done: final})
	}
	p.event(clusters.Event{Phase: s.ID, Detail: "starting"})
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				show(false)
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
		show(true)
	}
}

func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms >= 100 {
		return fmt.Sprintf("%.0fms", ms)
	}
	return fmt.Sprintf("%.1fms", ms)
}
