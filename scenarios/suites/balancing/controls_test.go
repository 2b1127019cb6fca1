package balancing

import (
	"testing"

	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// What comes of sticky without its policies. StickyLeftOut is where every Service has ROUND_ROBIN instead, StickyNoMesh where kube-proxy
// picks a pod for each connection: a client that keeps one stays where it is, so the source address is not among what fails.
var (
	StickyLeftOut = expect.Reason{
		Fails: map[string]string{
			"sticky/": "went from", "form/": "no cookie although the request had none", "ttl/": "no session was given a cookie", "drift/": "went from",
			"table/by-header": "owns it", "table/by-query": "owns it", "table/by-source": "owns it", "table/by-client": "owns it",
			"table/by-cookie": "nothing to hash by", "table/by-session": "nothing to hash by", "table/by-short": "nothing to hash by", "table/by-weight": "nothing to hash by",
			"joined/by-header": "moved without cause", "joined/by-query": "moved without cause", "left/by-header": "moved without cause", "left/by-query": "moved without cause",
			"kept/": "other sessions moved",
		},
		Holds: []string{"lost", "live/policies", "live/calm", "live/joined", "live/weights", "live/left", "share/by-weight/50-50", "share/by-weight/20-80"},
	}
	StickyNoMesh = expect.Reason{
		Fails: map[string]string{
			"sticky/by-cookie": "went from", "sticky/by-header": "went from", "sticky/by-query": "went from", "sticky/by-session": "went from",
			"sticky/by-short": "went from", "sticky/by-weight": "went from", "drift/": "went from",
			"form/": "no cookie although the request had none", "ttl/": "no session was given a cookie", "kept/": "other sessions moved",
		},
		Holds: []string{"lost"},
	}
)

// What comes of outlier, likewise. Without a mesh a client that keeps its connection may not meet the host that fails, so that what
// errors must lead to is not among what fails: only that nobody is ever taken out.
var (
	OutlierLeftOut = expect.Reason{
		Fails: map[string]string{
			"ejected/": "never took the host out", "in-a-row": "did not take the host out", "grown": "took the host out 0 times", "cost/": "are explained",
			"small/": "no ejections_overflow", "shown": "no failed_outlier_check",
			"all-bad/all-5xx": "never had all", "all-bad/with-panic": "never had all", "all-bad/half-at-most": "the cap was never tried",
			"half-out/": "never had exactly 2", "more-than-half-out/": "never had exactly 3",
			"refused/half-at-most": "refused 0, ", "refused/three-quarters": "refused 0, ", "refused/tenth-at-most": "refused 0, ",
		},
		Holds: []string{"proof/answers-503", "lost"},
	}
	OutlierNoMesh = expect.Reason{
		Fails: map[string]string{
			"ejected/": "never took the host out", "grown": "took the host out 0 times", "small/": "no ejections_overflow",
			"all-bad/all-5xx": "never had all", "all-bad/with-panic": "never had all", "all-bad/half-at-most": "the cap was never tried",
			"half-out/": "never had exactly 2", "more-than-half-out/": "never had exactly 3",
			"refused/half-at-most": "refused 0, ", "refused/tenth-at-most": "refused 0, ",
		},
		Holds: []string{"proof/all-answer-503", "lost"},
	}
)

// What the controls name comes about in a simulation, too.
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
		want   expect.Reason
	}{
		"sticky, left out": {judgeSticky(simulateSticky(stickyWorld{meshed: true, cookie: none, owner: turns}, 3)), StickyLeftOut},
		"sticky, no mesh": {judgeSticky(simulateSticky(stickyWorld{cookie: none, owner: func(s stickyService, owner string, hosts []string, n int) string {
			if s.by == bySource {
				return hosts[0]
			}
			return turns(s, owner, hosts, n)
		}}, 3)), StickyNoMesh},
		"outlier, left out": {judgeOutlier(off), OutlierLeftOut},
		"outlier, no mesh":  {judgeOutlier(meshless), OutlierNoMesh},
	} {
		t.Run(name, func(t *testing.T) {
			if wrong, unjudged := c.want.Check(c.claims); len(wrong)+len(unjudged) > 0 {
				t.Errorf("%q, not judged %q", wrong, unjudged)
			}
		})
	}
}
