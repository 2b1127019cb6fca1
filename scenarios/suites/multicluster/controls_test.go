package multicluster

import (
	"maps"
	"slices"
	"testing"

	"github.com/meshproof/meshproof/scenarios/expect"
)

// What comes of the scenario without a mesh, where a Service ends where its cluster does, and without the policies, where calls go round
// over both clusters, whichever answers. Which of the two stores a connection for a cart leads to is chance then, and with it how many
// visits are whole and how many pages are lost.
var (
	NoMesh = expect.Reason{
		Fails: map[string]string{
			"visits": "no part of any page was made in cluster remote", "placed/": "requests went astray", "lost/calm": " connect, first at",
			"new-service": `connect 0 by "" of ""`, "fault/cut": "before the cut 0 of", "return": `of "control"`,
			"wire/tls": "no call from sidecar to sidecar crossed", "identity": "no call from control was let in",
		},
		Holds: []string{"failover/lost", "return/lost", "networks"},
	}
	NoMeshTwoNetworks = with(NoMesh, map[string]string{"wire/addresses": "no gateway was called"})

	LeftOut = expect.Reason{
		Fails: map[string]string{
			"placed/": "requests went astray", "failover/time": "the last that was wrong left", "return": "the last that was wrong left",
		},
		Holds: []string{"new-service", "fault/cut", "networks", "wire/tls", "identity"},
	}
	LeftOutTwoNetworks = with(LeftOut, nil, "wire/addresses")
)

// with is a reason for which more fails, or holds.
func with(r expect.Reason, fails map[string]string, holds ...string) expect.Reason {
	r.Fails = maps.Clone(r.Fails)
	maps.Copy(r.Fails, fails)
	r.Holds = slices.Concat(r.Holds, holds)
	return r
}

// What the controls name comes about in a simulation, too.
func TestControls(t *testing.T) {
	leftOut := healthy()
	leftOut.leftOut = true
	for name, c := range map[string]struct {
		world    world
		separate bool
		want     expect.Reason
	}{
		"no mesh":                {world{noMesh: true}, false, NoMesh},
		"no mesh, two networks":  {world{noMesh: true}, true, NoMeshTwoNetworks},
		"left out":               {leftOut, false, LeftOut},
		"left out, two networks": {leftOut, true, LeftOutTwoNetworks},
	} {
		t.Run(name, func(t *testing.T) {
			r := simulate(c.world)
			if !c.separate {
				r.join()
			}
			if wrong, unjudged := c.want.Check(judge(r)); len(wrong)+len(unjudged) > 0 {
				t.Errorf("%q, not judged %q", wrong, unjudged)
			}
		})
	}
}
