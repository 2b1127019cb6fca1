package traffic_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

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

func TestMain(m *testing.M) {
	if local.Main() {
		return
	}
	os.Exit(m.Run())
}

// TestTraffic carries out every scenario of this area on the embedded cluster: with the bundled mesh all claims must pass,
// and without a mesh the scenario must fail, for the right reason.
func TestTraffic(t *testing.T) {
	root, reason := repository()
	if testing.Short() {
		reason = "a cluster takes a minute; run without -short"
	}
	if reason != "" {
		t.Skip(reason)
	}
	for _, s := range catalog.All() {
		if s.Area != "traffic" {
			continue
		}
		ginkgo.Describe(s.ID, func() {
			ginkgo.It("passes with the bundled mesh", func(ctx ginkgo.SpecContext) {
				r := run(ctx, t, root, s, "bundled")
				gomega.Expect(r.Error).To(gomega.BeEmpty())
				skipInconclusive(t, r)
				gomega.Expect(r.Outcome).To(gomega.Equal(verdict.Pass), describe(r))
			})
			ginkgo.It("fails without a mesh", func(ctx ginkgo.SpecContext) {
				r := run(ctx, t, root, s, "none")
				gomega.Expect(r.Error).To(gomega.BeEmpty())
				skipInconclusive(t, r)
				gomega.Expect(r.Outcome).To(gomega.Equal(verdict.Fail), describe(r))
				reasons := 0
				for _, c := range r.Scenarios[0].Claims {
					if c.Outcome == verdict.Fail && strings.HasPrefix(c.ID, "share/") {
						gomega.Expect(c.Reason).To(gomega.ContainSubstring("no mesh in this lab"))
						reasons++
					}
					gomega.Expect(c.ID == "lost" && c.Outcome == verdict.Fail).To(gomega.BeFalse(), c.Reason)
				}
				gomega.Expect(reasons).To(gomega.BeNumerically(">", 0), describe(r))
			})
		})
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "traffic")
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
	for _, name := range env.Images("bundled") {
		if _, err := os.Stat(filepath.Join(root, "bin", name)); err != nil {
			return "", "bin/" + name + " is not built; run: make build"
		}
	}
	return root, ""
}

func run(ctx ginkgo.SpecContext, t *testing.T, root string, s catalog.Scenario, mesh string) verdict.Report {
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
	l := lab.Default()
	l.Name, l.Mesh.Driver = "e2e-"+mesh, mesh
	dir := filepath.Join(t.TempDir(), mesh)
	if artifacts := os.Getenv("ARTIFACTS"); artifacts != "" {
		dir = filepath.Join(artifacts, "e2e-"+s.ID+"-"+mesh)
	}
	r, err := session.Run(ctx, session.Options{
		Scenarios: []catalog.Scenario{s}, Dir: dir, Seed: 1, Command: "go test ./scenarios/suites/traffic",
		Env: env.Options{
			Lab: l, Provider: provider, Bin: filepath.Join(root, "bin"), Cache: cache, Version: "0.1.0",
			Progress: func(e clusters.Event) {
				if e.Done {
					ginkgo.GinkgoWriter.Printf("%-8s %s\n", e.Phase, e.Detail)
				}
			},
		},
	})
	gomega.Expect(err).NotTo(gomega.HaveOccurred())
	labs, err := provider.List(ctx)
	gomega.Expect(err).NotTo(gomega.HaveOccurred())
	gomega.Expect(labs).To(gomega.BeEmpty(), "the lab is still there")
	for _, name := range []string{"report.json", "report.html", "junit.xml", "summary.md"} {
		gomega.Expect(filepath.Join(dir, name)).To(gomega.BeARegularFile())
	}
	return r
}

// skipInconclusive ends a spec on a host that was too busy to judge on: that is neither green nor red.
func skipInconclusive(t *testing.T, r verdict.Report) {
	if r.Outcome == verdict.Inconclusive {
		t.Log("inconclusive: " + describe(r))
		ginkgo.Skip("inconclusive: " + describe(r))
	}
}

// describe says why a run did not pass.
func describe(r verdict.Report) string {
	text := r.Error
	for _, s := range r.Scenarios {
		text += fmt.Sprintf("%s is %s %s\n", s.ID, s.Outcome, s.Error)
		for _, c := range s.Claims {
			if c.Outcome != verdict.Pass {
				text += fmt.Sprintf("  %s %s: %s: %s\n", c.Outcome, c.ID, c.Observed, c.Reason)
			}
		}
	}
	return text
}
