package traffic

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/reports/verdict"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/expect"
	"github.com/meshproof/meshproof/scenarios/lab"
	"github.com/meshproof/meshproof/scenarios/record"
)

// world answers requests of a simulated run; a case breaks one thing of it.
type world struct {
	share  func(src source, s step) float64 // of the new version
	user   string                           // the version that the user gets
	class  func(i int) string
	acked  func(i int) bool
	meshed bool
	host   record.Host
}

func honest() world {
	return world{
		share:  func(_ source, s step) float64 { return s.share() },
		user:   "v2",
		class:  func(int) string { return expect.OK },
		acked:  func(int) bool { return true },
		meshed: true,
	}
}

// simulate makes the evidence of a run of the quick profile in a world.
func simulate(w world, seed uint64) canaryRun {
	run := canaryRun{plan: canaryPlan(lab.Quick), meshed: w.meshed, seen: drive.Seen{Host: w.host}}
	rng := rand.New(rand.NewPCG(seed, 1))
	now := time.Unix(1_800_000_000, 0)
	i := 0
	for n, s := range canarySteps() {
		c := change{step: s, Change: drive.Change{Name: s.String(), Applied: now, Acked: now.Add(40 * time.Millisecond)}}
		ack := verdict.ProxyAck{Proxy: "p.ns", Acked: w.acked(n), At: c.Acked}
		if !ack.Acked {
			ack.At, c.Err = time.Time{}, fmt.Errorf("0 of 1 proxies acked")
		}
		if w.meshed {
			c.Acks = []verdict.ProxyAck{ack}
		}
		length := leadIn
		if n > 0 {
			length = run.plan.window(s, samples)
		}
		c.window = expect.Window{From: c.Acked, To: c.Acked.Add(length)}
		for _, sp := range run.plan.splits {
			for _, src := range sp.streams {
				for at := c.window.From; at.Before(c.window.To); at = at.Add(time.Duration(float64(time.Second) / src.rate)) {
					version := sp.old
					switch {
					case src.user:
						version = w.user
					case rng.Float64() < w.share(src, s):
						version = sp.new
					}
					run.requests = append(run.requests, evidence.Request{
						Stream: src.name, Seq: uint64(i), Intended: at.UnixNano(), Sent: at.UnixNano(), Done: at.Add(time.Millisecond).UnixNano(),
						Code: 200, Class: w.class(i), App: sp.app, Version: version, Pod: "pod",
					})
					i++
				}
			}
		}
		run.changes = append(run.changes, c)
		now = c.window.To
	}
	return run
}

func outcomes(claims []verdict.Claim, outcome verdict.Outcome) string {
	var ids []string
	for _, c := range claims {
		if c.Outcome == outcome {
			ids = append(ids, c.ID)
		}
	}
	return strings.Join(ids, " ")
}

func TestJudgeCanaryPassesAnHonestMesh(t *testing.T) {
	for seed := range uint64(5) {
		claims := judgeCanary(simulate(honest(), seed))
		for _, c := range claims {
			if c.Outcome != verdict.Pass {
				t.Errorf("seed %d: %s is %s: %s: %s", seed, c.ID, c.Outcome, c.Observed, c.Reason)
			}
		}
	}
}

// Each case breaks the mesh in one way; exactly the claims about that must fail.
func TestJudgeCanaryCatches(t *testing.T) {
	for _, c := range []struct {
		name  string
		world func(*world)
		fails []string // parts of IDs, one of which each failing claim has; each must occur
	}{
		{
			"five points off at 10/90", func(w *world) {
				w.share = func(_ source, s step) float64 {
					if s.new == 90 {
						return 0.84
					}
					return s.share()
				}
			}, []string{"share/hello/10-90/v2", "share/reviews/10-90/v3"},
		},
		{
			"two proxies err in opposite directions", func(w *world) {
				w.share = func(src source, s step) float64 {
					switch {
					case s.new == 50 && src.name == helloGateway:
						return 0.36
					case s.new == 50 && src.name == helloMesh:
						return 0.60
					}
					return s.share()
				}
			}, []string{"50-50/v2/hello-gateway", "50-50/v2/hello-mesh"},
		},
		{
			"one old answer at 0/100", func(w *world) {
				w.share = func(src source, s step) float64 {
					if src.name == helloMesh && s.new == 100 {
						return 0.97
					}
					return s.share()
				}
			}, []string{"share/hello/0-100/v2", "live/0-100"},
		},
		{"the user's header is not read", func(w *world) { w.user = "v1" }, []string{"user/reviews/jason"}},
		{
			"one request lost", func(w *world) {
				w.class = func(i int) string {
					if i == 20_000 {
						return "reset"
					}
					return expect.OK
				}
			}, []string{"lost"},
		},
		{"one change not acknowledged", func(w *world) { w.acked = func(i int) bool { return i != 2 } }, []string{"live/50-50"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := honest()
			c.world(&w)
			claims := judgeCanary(simulate(w, 7))
			seen := map[string]bool{}
			for _, id := range strings.Fields(outcomes(claims, verdict.Fail)) {
				known := false
				for _, part := range c.fails {
					if strings.Contains(id, part) {
						known, seen[part] = true, true
					}
				}
				if !known {
					t.Errorf("%s failed too", id)
				}
			}
			for _, part := range c.fails {
				if !seen[part] && part != "live/0-100" {
					t.Errorf("nothing about %s failed; failed: %s", part, outcomes(claims, verdict.Fail))
				}
			}
		})
	}
}

// Without a mesh connections are spread over pods: shares fail with what was observed, and what needs a control plane is
// skipped by name.
func TestJudgeCanaryWithoutMesh(t *testing.T) {
	w := honest()
	w.meshed, w.user = false, "v3"
	w.share = func(source, step) float64 { return 0.5 }
	claims := judgeCanary(simulate(w, 3))
	for _, c := range claims {
		switch {
		case strings.HasPrefix(c.ID, "share/") && !strings.Contains(c.ID, "/50-50/"), strings.HasPrefix(c.ID, "user/"):
			if c.Outcome != verdict.Fail || !strings.Contains(c.Reason, "no mesh in this lab") {
				t.Errorf("%s is %s: %s", c.ID, c.Outcome, c.Reason)
			}
		case strings.HasPrefix(c.ID, "live/"):
			if c.Outcome != verdict.Skip || c.Observed != "no control plane" {
				t.Errorf("%s is %s: %s", c.ID, c.Outcome, c.Observed)
			}
		}
	}
}

// A run that ended early proves nothing about what it did not reach.
func TestJudgeCanaryCutShort(t *testing.T) {
	run := simulate(honest(), 1)
	run.changes = run.changes[:3]
	for _, c := range judgeCanary(run) {
		if strings.Contains(c.ID, "/10-90/") && c.Outcome != verdict.Inconclusive {
			t.Errorf("%s is %s", c.ID, c.Outcome)
		}
	}
}

func guardOf(run canaryRun) verdict.Claim {
	claims := judgeCanary(run)
	return claims[len(claims)-1]
}

func TestJudgeGuard(t *testing.T) {
	run := simulate(honest(), 1)
	for i := range run.requests {
		if i%10 == 0 {
			run.requests[i].Sent += int64(2 * expect.LateBound)
		}
	}
	if c := guardOf(run); c.Outcome != verdict.Inconclusive || !strings.Contains(c.Reason, "late") {
		t.Errorf("10%% late: %s, %s", c.Outcome, c.Reason)
	}
	run = simulate(honest(), 1)
	run.calibration.CPUStall, run.seen.Host.CPUStall = 0.2, 0.95
	if c := guardOf(run); c.Outcome != verdict.Inconclusive {
		t.Errorf("pressure 0.95 after 0.2: %s", c.Outcome)
	}
	run.seen.Disturbed = []string{"hello/x (1 times)"}
	run.seen.Host.CPUStall = 0.3
	if c := guardOf(run); c.Outcome != verdict.Inconclusive || !strings.Contains(c.Reason, "hello/x") {
		t.Errorf("restart: %s, %s", c.Outcome, c.Reason)
	}
}

// A loss while the host stalled is not held against the mesh; the same loss a while later is.
func TestJudgeLostInAStall(t *testing.T) {
	for _, c := range []struct {
		after time.Duration // of the loss, after the stall
		want  verdict.Outcome
	}{{time.Second, verdict.Inconclusive}, {6 * time.Second, verdict.Fail}} {
		run := simulate(honest(), 1)
		stall := run.changes[2].window.From
		lost := false
		for i := range run.requests {
			r := &run.requests[i]
			since := time.Unix(0, r.Intended).Sub(stall)
			if since >= 0 && since < 600*time.Millisecond {
				r.Sent += int64(400 * time.Millisecond)
			}
			if !lost && since >= c.after && since < c.after+time.Second {
				r.Class, lost = "timeout", true
			}
		}
		if got := run.judgeLost(); got.Outcome != c.want {
			t.Errorf("%s after the stall: %s, want %s: %s", c.after, got.Outcome, c.want, got.Reason)
		}
	}
}
