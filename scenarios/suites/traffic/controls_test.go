package traffic

import (
	"testing"

	"github.com/meshproof/meshproof/scenarios/expect"
)

// What comes of the canary where nobody obeys weights. CanaryNoMesh is where kube-proxy picks a pod for each connection: how many there
// are and where they lead is chance, so that one step or another may find its share. CanaryLeftOut is where all steps have the weights
// of the first; last/0-100 is not among its claims, since the step is over before the bound is.
var (
	CanaryNoMesh = expect.Reason{
		Some:  map[string]string{"share/hello/": "there is no mesh in this lab", "share/reviews/": "there is no mesh in this lab"},
		Holds: []string{"lost"},
	}
	CanaryLeftOut = expect.Reason{
		Fails: map[string]string{
			"share/hello/90-10/": "saw v1 100.0%", "share/hello/50-50/": "saw v1 100.0%", "share/hello/10-90/": "saw v1 100.0%",
			"share/hello/0-100/": "saw v1 100.0%", "share/reviews/90-10/": "saw v1 100.0%", "share/reviews/50-50/": "saw v1 100.0%",
			"share/reviews/10-90/": "saw v1 100.0%", "share/reviews/0-100/": "saw v1 100.0%", "first/90-10": "requests shows the change",
		},
		Holds: []string{"share/hello/100-0/v2", "share/reviews/100-0/v3", "user/reviews/jason", "lost", "stray", "live/"},
	}
)

// What the controls name comes about in a simulation, too.
func TestControls(t *testing.T) {
	noMesh := honest()
	noMesh.meshed, noMesh.user = false, "v3"
	noMesh.share = func(source, step) float64 { return 0.5 } // as many connections to each pod
	leftOut := honest()
	leftOut.share = func(source, step) float64 { return 0 }
	for name, c := range map[string]struct {
		world world
		want  expect.Reason
	}{"no mesh": {noMesh, CanaryNoMesh}, "left out": {leftOut, CanaryLeftOut}} {
		t.Run(name, func(t *testing.T) {
			if wrong, unjudged := c.want.Check(judgeCanary(simulate(c.world, 1))); len(wrong)+len(unjudged) > 0 {
				t.Errorf("%q, not judged %q", wrong, unjudged)
			}
		})
	}
}
