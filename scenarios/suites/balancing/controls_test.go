package balancing

import (
	"slices"
	"strings"
	"testing"

	"github.com/meshproof/meshproof/reports/verdict"
)

// Claims of sticky that rest on its policies, with words of why each fails without them. StickyLeftOut is where every Service has
// ROUND_ROBIN instead, StickyNoMesh where kube-proxy picks a pod for each connection: a client that keeps one stays where it is, so the
// source address is not among them.
var (
	StickyLeftOut = map[string]string{
		"sticky/": "went from", "form/": "no cookie although the request had none", "ttl/": "no session was given a cookie", "drift/": "went from",
		"table/by-header": "owns it", "table/by-query": "owns it", "table/by-source": "owns it", "table/by-client": "owns it",
		"table/by-cookie": "nothing to hash by", "table/by-session": "nothing to hash by", "table/by-short": "nothing to hash by", "table/by-weight": "nothing to hash by",
		"joined/by-header": "moved without cause", "joined/by-query": "moved without cause", "left/by-header": "moved without cause", "left/by-query": "moved without cause",
		"kept/": "other sessions moved",
	}
	StickyNoMesh = map[string]string{
		"sticky/by-cookie": "went from", "sticky/by-header": "went from", "sticky/by-query": "went from", "sticky/by-session": "went from",
		"sticky/by-short": "went from", "sticky/by-weight": "went from", "drift/": "went from",
		"form/": "no cookie although the request had none", "ttl/": "no session was given a cookie", "kept/": "other sessions moved",
	}
)

// StickyHolds are claims that do not rest on the policies.
var StickyHolds = []string{
	"lost", "live/policies", "live/calm", "live/joined", "live/weights", "live/left", "share/by-weight/50-50", "share/by-weight/20-80",
}

// Claims of outlier that rest on its policies, likewise. Without a mesh a client that keeps its connection may not meet the host that
// fails, so that of ejected/ some fail, and of the rest what needs every host out.
var (
	OutlierLeftOut = map[string]string{
		"ejected/": "never took the host out", "in-a-row": "did not take the host out", "grown": "took the host out 0 times", "cost/": "are explained",
		"small/": "no ejections_overflow", "shown": "no failed_outlier_check",
		"all-bad/all-5xx": "never had all", "all-bad/with-panic": "never had all", "all-bad/half-at-most": "the cap was never tried",
		"half-out/": "never had exactly 2", "more-than-half-out/": "never had exactly 3",
		"refused/half-at-most": "refused 0, ", "refused/three-quarters": "refused 0, ", "refused/tenth-at-most": "refused 0, ",
	}
	OutlierNoMesh = map[string]string{
		"all-bad/all-5xx": "never had all", "all-bad/with-panic": "never had all", "all-bad/half-at-most": "the cap was never tried",
		"half-out/": "never had exactly 2", "more-than-half-out/": "never had exactly 3", "refused/half-at-most": "refused 0, ", "refused/tenth-at-most": "refused 0, ",
	}
)

// What the controls name fails in a simulation, too, each claim for its reason.
func TestControls(t *testing.T) {
	none := func(stickyService, string) string { return "" }
	turns := func(_ stickyService, _ string, hosts []string, n int) string { return hosts[n/3%len(hosts)] }
	off := simulateOutlier(outlierWorld{off: true})
	unseen := showing{missing: []string{"/clusters has no failed_outlier_check"}}
	off.shown = map[string]showing{atGateway: unseen, atAgent: unseen}
	meshless := off
	meshless.meshed = false
	for name, c := range map[string]struct {
		claims []verdict.Claim
		fails  map[string]string
		holds  []string
	}{
		"sticky, left out": {judgeSticky(simulateSticky(stickyWorld{meshed: true, cookie: none, owner: turns}, 3)), StickyLeftOut, StickyHolds},
		"sticky, no mesh": {judgeSticky(simulateSticky(stickyWorld{cookie: none, owner: func(s stickyService, owner string, hosts []string, n int) string {
			if s.by == bySource {
				return hosts[0]
			}
			return turns(s, owner, hosts, n)
		}}, 3)), StickyNoMesh, []string{"lost"}},
		"outlier, left out": {judgeOutlier(off), OutlierLeftOut, nil},
		"outlier, no mesh":  {judgeOutlier(meshless), OutlierNoMesh, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for id, words := range c.fails {
				of := func(got verdict.Claim) bool {
					return got.ID == id || strings.HasSuffix(id, "/") && strings.HasPrefix(got.ID, id)
				}
				if !slices.ContainsFunc(c.claims, of) {
					t.Errorf("no claim %s", id)
				}
				for _, got := range c.claims {
					if of(got) && (got.Outcome != verdict.Fail || !strings.Contains(got.Reason, words)) {
						t.Errorf("%s is %s: %s; %s", got.ID, got.Outcome, got.Observed, got.Reason)
					}
				}
			}
			for _, id := range c.holds {
				if got := outcomes(c.claims)[id]; got.Outcome != verdict.Pass {
					t.Errorf("%s is %s: %s; %s", id, got.Outcome, got.Observed, got.Reason)
				}
			}
		})
	}
}
