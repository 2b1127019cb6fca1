// Package specs makes ginkgo specs of the catalog, for the end-to-end tests of each area: what `meshproof run` runs, through the
// same session, with an expectation for each scenario. docs/decisions/0006 says why the runner itself does not go through ginkgo.
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
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/session"
)

// Control is a run in which every scenario of the area must fail, for a reason that is known.
type Control struct {
	Name    string            // "fails without a mesh"
	Mesh    string            // driver instead of the lab's; "" keeps it
	LeftOut bool              // session.Options.Control: what is to be proven is left out
	Reasons map[string]Reason // by the ID of the scenario; those that are not named do not run
}

// Reason is why a scenario fails in a Control: at least one claim whose ID begins with Claim fails, each of those says Says, and
// every claim of Holds is there and passes. Fails names the claims that must fail, all of them, each with words of its own reason: by
// ID, or by what IDs begin with, up to a slash.
type Reason struct {
	Claim, Says string
	Fails       map[string]string
	Holds       []string
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
	ginkgo.Describe("passes", ginkgo.Ordered, ginkgo.ContinueOnFailure, func() {
		r := carryOut(t, root, area, artifacts, Control{Name: "passes"}, all)
		for _, s := range all {
			ginkgo.It(s.ID, func() {
				got := result(r(), s.ID, busy)
				gomega.Expect(got.Outcome).To(gomega.Equal(verdict.Pass), describe(got))
			})
		}
	})
	for _, c := range controls {
		var list []catalog.Scenario
		for _, s := range all {
			if _, named := c.Reasons[s.ID]; named {
				list = append(list, s)
			}
		}
		ginkgo.Describe(c.Name, ginkgo.Ordered, ginkgo.ContinueOnFailure, func() {
			r := carryOut(t, root, area, artifacts, c, list)
			for _, s := range list {
				ginkgo.It(s.ID, func() { checkReason(result(r(), s.ID, busy), c.Reasons[s.ID]) })
			}
		})
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, area)
}

// checkReason wants a scenario to have failed for the reason.
func checkReason(got verdict.Scenario, want Reason) {
	gomega.Expect(got.Outcome).To(gomega.Equal(verdict.Fail), describe(got))
	gomega.Expect(unfailed(got.Claims, want.Fails)).To(gomega.BeEmpty())
	failed, outcomes := 0, map[string]verdict.Outcome{}
	for _, c := range got.Claims {
		outcomes[c.ID] = c.Outcome
		if c.Outcome != verdict.Fail {
			continue
		}
		if strings.HasPrefix(c.ID, want.Claim) {
			gomega.Expect(c.Reason).To(gomega.ContainSubstring(want.Says), c.ID)
			failed++
		}
	}
	for _, id := range want.Holds {
		gomega.Expect(outcomes).To(gomega.HaveKeyWithValue(id, verdict.Pass), describe(got))
	}
	gomega.Expect(failed).To(gomega.BeNumerically(">", 0), describe(got))
}

// carryOut runs a session before the first spec of the container and returns what gives its report.
func carryOut(t *testing.T, root, area, artifacts string, c Control, list []catalog.Scenario) func() verdict.Report {
	var r verdict.Report
	ginkgo.BeforeAll(func(ctx ginkgo.SpecContext) {
		state, err := os.MkdirTemp("", "mp") // short, since sockets lie in it
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		ginkgo.DeferCleanup(os.RemoveAll, state)
		cache, err := os.UserCacheDir()
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		cache = filepath.Join(cache, "meshproof")
		provider, err := local.New(local.Options{
			StateDir: state, CacheDir: cache, NodeSource: filepath.Join(root, "clusters", "local", "node"),
		})
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		version, err := builtVersion(ctx, root)
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		groups, err := session.Groups(list, func(name string) (*lab.Lab, error) {
			l, err := lab.Embedded(name)
			if err == nil && c.Mesh != "" {
				l.Mesh.Driver = c.Mesh
			}
			return l, err
		})
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		name := strings.ReplaceAll(area+"-"+c.Name, " ", "-")
		dir := filepath.Join(t.TempDir(), name)
		if artifacts != "" {
			dir = filepath.Join(artifacts, time.Now().UTC().Format("2006-01-02T15-04-05")+"-e2e-"+name) // a folder is of one run
		}
		r, err = session.Run(ctx, session.Options{
			Groups: groups, Dir: dir, Seed: 1, Command: "go test ./scenarios/suites/" + area, Control: c.LeftOut,
			Env: env.Options{
				Provider: provider, Bin: filepath.Join(root, "bin"), Cache: cache, Version: version,
				Progress: func(e clusters.Event) {
					if e.Done {
						ginkgo.GinkgoWriter.Printf("%-8s %s\n", e.Phase, e.Detail)
					}
				},
			},
		})
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		gomega.Expect(r.Error).To(gomega.BeEmpty())
		labs, err := provider.List(ctx)
		gomega.Expect(err).NotTo(gomega.HaveOccurred())
		gomega.Expect(labs).To(gomega.BeEmpty(), "a lab is still there")
		for _, name := range []string{"report.json", "report.html", "junit.xml", "summary.md"} {
			gomega.Expect(filepath.Join(dir, name)).To(gomega.BeARegularFile())
		}
	})
	return func() verdict.Report { return r }
}

// unjudged is what becomes of a spec whose scenario is inconclusive.
type unjudged struct {
	strict bool
	file   string // that it is noted in; "" for none
}

func (u unjudged) end(s verdict.Scenario) {
	why := "inconclusive, not failed: " + describe(s)
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

// result is one scenario of a report; one that a busy host did not let be judged ends the spec.
func result(r verdict.Report, id string, u unjudged) verdict.Scenario {
	for _, s := range r.Scenarios {
		if s.ID != id {
			continue
		}
		if s.Outcome == verdict.Inconclusive && s.Error == "" { // one that could not be carried out is no matter of a busy host
			u.end(s)
		}
		return s
	}
	ginkgo.Fail("the report has no scenario " + id)
	return verdict.Scenario{}
}

// describe says why a scenario did not come out as it should.
func describe(s verdict.Scenario) string {
	text := fmt.Sprintf("%s is %s %s\n", s.ID, s.Outcome, s.Error)
	for _, c := range s.Claims {
		if c.Outcome != verdict.Pass {
			text += fmt.Sprintf("  %s %s: %s: %s\n", c.Outcome, c.ID, c.Observed, c.Reason)
		}
	}
	return text
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
