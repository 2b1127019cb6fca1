package upgrade

import (
	"testing"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/scenarios/expect"
)

// What comes of the upgrade where nothing of the shop moves. NoMesh is over too soon for enough requests to say that none is lost.
// LeftOut is where namespaces keep asking for the old revision, which is in use to the end; the gateway asks for none, and moves.
var (
	NoMesh = expect.Reason{
		Fails: map[string]string{"moved/": "no proxy of it is connected to any control plane", "mixed": "no proxy that could tell"},
		Holds: []string{"steps"},
	}
	LeftOut = expect.Reason{
		Fails: map[string]string{
			"moved/details-v1": stayed, "moved/ratings-v1": stayed, "moved/reviews-v1": stayed, "moved/reviews-v2": stayed, "moved/reviews-v3": stayed,
			"moved/productpage-v1": stayed, "mixed": "no request went from 1-20-1 to 1-23-2", "orphans": "revision 1-20-1 is in use by",
		},
		Holds: []string{"lost", "steps", "moved/istio-ingressgateway", "refused"},
	}
)

const stayed = "was on revision 1-20-1 after, not on 1-23-2"

// What the controls name comes about in a simulation, too.
func TestControls(t *testing.T) {
	noMesh, leftOut := good(), good()
	noMesh.meshed, noMesh.refusal, noMesh.mixed, noMesh.removed = false, nil, nil, nil
	noMesh.moves, leftOut.moves = nil, nil
	for _, way := range [][2]string{{blue, green}, {green, blue}, {blue, green}} {
		from, to := way[0], way[1]
		noMesh.moves = append(noMesh.moves, move{Workload: gatewayName, From: from, To: to})
		leftOut.moves = append(leftOut.moves, move{
			Workload: gatewayName, From: from, To: to,
			Before: seatsOn(from, leftOut.tags[from], gatewayName+"-"+from), After: seatsOn(to, leftOut.tags[to], gatewayName+"-"+to),
		})
	}
	for _, round := range []struct {
		from, to string
		names    []string
	}{{blue, green, workloads()[:halfWay]}, {green, blue, workloads()[:halfWay]}, {blue, green, workloads()}} {
		for _, name := range round.names {
			noMesh.moves = append(noMesh.moves, move{Workload: name, From: round.from, To: round.to})
			leftOut.moves = append(leftOut.moves, move{
				Workload: name, From: round.from, To: round.to, Before: seatsOn(blue, blueTag, name+"-a-1"), After: seatsOn(blue, blueTag, name+"-b-1"),
			})
		}
	}
	leftOut.control = true
	leftOut.mixed.Revision["details-v1-b-1."+shop], leftOut.mixed.Revision["loadagent-c-1.upgrade-clients-green"] = blue, green
	leftOut.mixed.Counted[call("details-v1-b-1", "loadagent.upgrade-clients-green")] = 180
	leftOut.removed.Err = &install.InUseError{Revision: blue, Proxies: []install.User{{Proxy: "details-v1-b-1." + shop, Connected: true}}}

	for name, c := range map[string]struct {
		run  *run
		want expect.Reason
	}{"no mesh": {noMesh, NoMesh}, "left out": {leftOut, LeftOut}} {
		t.Run(name, func(t *testing.T) {
			if wrong, unjudged := c.want.Check(c.run.judge()); len(wrong)+len(unjudged) > 0 {
				t.Errorf("%q, not judged %q", wrong, unjudged)
			}
		})
	}
}
