// Package specs are the end-to-end tests of each area: the ginkgo tree that `meshproof run` runs too, with an expectation for each
// scenario.
package specs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/catalog"
	"github.com/meshproof/meshproof/scenarios/env"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/session"
	"github.com/meshproof/meshproof/scenarios/tree"
)

// Control is a run in which scenarios of the area must fail, for a reason that is known, or pass in another lab than their own.
type Control struct {
	Name    string                   // "fails without a mesh"
	Mesh    string                   // driver instead of the lab's; "" keeps it
	Lab     string                   // embedded lab instead of the scenario's; "" keeps it
	LeftOut bool                     // session.Options.Control: what is to be proven is left out
	Reasons map[string]expect.Reason // by the ID of the scenario; those that are not named do not run
}

// Main is the TestMain of an area: the embedded provider starts this binary again for its own work.
func Main(m *testing.M) {
	if local.Main() {
		return
	}
	m.Run()
}

// Run carries out every scenario of an area on the embedded cluster: in its own lab all claims must pass, and in each control it
// must fail. A host that cannot make labs skips the test, and one that was too busy to judge on skips that spec: that is neither
// green nor red.
//
// getenv tells variables of the environment. Reports go below the folder ARTIFACTS, or are removed with the test if that is empty.
// With MESHPROOF_E2E=required a host that cannot make labs fails; with MESHPROOF_E2E=judged one that was too busy to judge on does,
// too. What was not judged is added to the file MESHPROOF_UNJUDGED.
func Run(t *testing.T, area string, getenv func(string) string, controls ...Control) {
	artifacts, mode := getenv("ARTIFACTS"), getenv("MESHPROOF_E2E")
	busy := unjudged{strict: mode == "judged", file: getenv("MESHPROOF_UNJUDGED")}
	root, reason := repository()
	if testing.Short() {
		reason = "a cluster takes a minute; run without -short"
	}
	if reason != "" && mode != "" {
		t.Fatal("MESHPROOF_E2E=" + mode + ": " + reason)
	}
	if reason != "" {
		t.Skip(reason)
	}
	var all []catalog.Scenario
	for _, s := range catalog.All() {
		if s.Area == area {
			all = append(all, s)
		}
	}
	bench, err := newBench(t, root, area, artifacts)
	if err != nil {
		t.Fatal(err)
	}
	rounds := []round{bench.round(t, Control{Name: "passes"}, all, func(got verdict.Scenario) {
		busy.check(got)
		gomega.Expect(got.Outcome).To(gomega.Equal(verdict.Pass), describe(got))
	})}
	for _, c := range controls {
		var list []catalog.Scenario
		for _, s := range all {
			if _, named := c.Reasons[s.ID]; named {
				list = append(list, s)
			}
		}
		rounds = append(rounds, bench.round(t, c, list, func(got verdict.Scenario) {
			busy.checkReason(got, c.Reasons[got.ID])
		}))
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	var branches []tree.Branch
	for _, r := range rounds {
		branches = append(branches, r.Branch)
	}
	if err := tree.Test(t.Context(), t, area, branches...); err != nil {
		t.Fatal(err)
	}
	for _, r := range rounds {
		r.check(t)
	}
}

// checkReason wants a scenario to have failed for the reason, or passed where there is none.
func (u unjudged) checkReason(got verdict.Scenario, want expect.Reason) {
	u.check(got)
	if want.None() {
		gomega.Expect(got.Outcome).To(gomega.Equal(verdict.Pass), describe(got))
		return
	}
	gomega.Expect(got.Outcome).To(gomega.Equal(verdict.Fail), describe(got))
	wrong, open := want.Check(got.Claims)
	gomega.Expect(wrong).To(gomega.BeEmpty())
	if len(open) > 0 {
		u.skip("inconclusive whether it holds in the control: " + got.ID + "\n  " + strings.Join(open, "\n  ") + "\n")
	}
}

// bench is what the sessions of an area are carried out with.
type bench struct {
	root, area, artifacts, cache, version string
}

func newBench(t *testing.T, root, area, artifacts string) (bench, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return bench{}, err
	}
	version, err := builtVersion(t.Context(), root)
	return bench{root: root, area: area, artifacts: artifacts, cache: filepath.Join(cache, "meshproof"), version: version}, err
}

// round is one session of an area.
type round struct {
	tree.Branch
	provider *local.Provider
	dir      string
}

// check wants that a round that was begun left its report, and no lab.
func (r round) check(t *testing.T) {
	if !r.Session.Begun() {
		return
	}
	labs, err := r.provider.List(t.Context())
	if err != nil || len(labs) > 0 {
		t.Errorf("%s: labs are still there: %+v, error %v", r.Name, labs, err)
	}
	for _, name := range []string{"report.json", "report.html", "junit.xml", "summary.md"} {
		if info, err := os.Stat(filepath.Join(r.dir, name)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: no file %s: %v", r.Name, name, err)
		}
	}
}

// round is the session in which scenarios run under a Control.
func (b bench) round(t *testing.T, c Control, list []catalog.Scenario, expect func(verdict.Scenario)) round {
	state, err := os.MkdirTemp("", "mp") // short, since sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	provider, err := local.New(local.Options{
		StateDir: state, CacheDir: b.cache, NodeSource: filepath.Join(b.root, "clusters", "local", "node"),
	})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := session.Groups(list, func(name string) (*lab.Lab, error) {
		if c.Lab != "" {
			name = c.Lab
		}
		l, err := lab.Embedded(name)
		if err == nil && c.Mesh != "" {
			l.Mesh.Driver = c.Mesh
		}
		return l, err
	})
	if err != nil {
		t.Fatal(err)
	}
	name := strings.ReplaceAll(b.area+"-"+c.Name, " ", "-")
	dir := filepath.Join(t.TempDir(), name)
	if b.artifacts != "" {
		dir = filepath.Join(b.artifacts, time.Now().UTC().Format("2006-01-02T15-04-05")+"-e2e-"+name) // a folder is of one run
	}
	s := session.New(session.Options{
		Groups: groups, Dir: dir, Seed: 1, Command: "go test ./scenarios/suites/" + b.area, Control: c.LeftOut,
		Env: env.Options{
			Provider: provider, Bin: filepath.Join(b.root, "bin"), Cache: b.cache, Version: b.version,
			Progress: func(e clusters.Event) {
				if e.Done {
					ginkgo.GinkgoWriter.Printf("%-8s %s\n", e.Phase, e.Detail)
				}
			},
		},
	})
	return round{Branch: tree.Branch{Name: c.Name, Session: s, Expect: expect}, provider: provider, dir: dir}
}

// unjudged is what becomes of a spec whose scenario is inconclusive.
type unjudged struct {
	strict bool
	file   string // that it is noted in; "" for none
}

// check ends the spec of a scenario that a busy host did not let be judged; one that could not be carried out is no matter of that.
func (u unjudged) check(s verdict.Scenario) {
	if s.Outcome != verdict.Inconclusive || s.Error != "" {
		return
	}
	u.skip("inconclusive, not failed: " + tree.Describe(s))
}

// skip ends the spec, and takes note of why.
func (u unjudged) skip(why string) {
	if u.file != "" {
		f, err := os.OpenFile(u.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		_, err = f.WriteString(why)
		gomega.Expect(errors.Join(err, f.Close())).NotTo(gomega.HaveOccurred())
	}
	if u.strict {
		ginkgo.Fail(why)
	}
	ginkgo.Skip(why)
}

// describe is tree.Describe as gomega takes it: of a string gomega would make a format.
func describe(s verdict.Scenario) func() string {
	return func() string { return tree.Describe(s) }
}

// builtVersion is the version of what lies in bin, which its proxies report.
func builtVersion(ctx context.Context, root string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(root, "bin", "meshproof"), "version").Output()
	if err != nil {
		return "", fmt.Errorf("bin/meshproof version: %w", err)
	}
	_, v, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	return v, nil
}

// repository is the root of the checkout, or why no lab can be made here.
func repository() (root, reason string) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		return "", err.Error()
	}
	switch {
	case runtime.GOOS != "linux":
		return "", "embedded clusters need Linux"
	case os.Geteuid() != 0:
		return "", "embedded clusters need root"
	}
	for _, tool := range []string{"runc", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", tool + " is not installed; run: make deps"
		}
	}
	for _, name := range append(env.Images("bundled"), "meshproof") {
		if _, err := os.Stat(filepath.Join(root, "bin", name)); err != nil {
			return "", "bin/" + name + " is not built; run: make build"
		}
	}
	return root, ""
}
