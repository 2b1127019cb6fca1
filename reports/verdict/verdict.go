// Package verdict turns evidence into pass, fail, inconclusive or skip. Pure: no clock, no I/O.
package verdict

import (
	"time"

	"github.com/meshproof/meshproof/reports/evidence"
)

// Outcome of a claim, a scenario or a run.
type Outcome string

// The outcomes, and how they combine: fail beats inconclusive beats pass; skip alone stays skip.
const (
	Pass         Outcome = "pass"
	Fail         Outcome = "fail"
	Inconclusive Outcome = "inconclusive"
	Skip         Outcome = "skip"
)

// Claim is one judged statement, with everything that a reader needs to check it.
type Claim struct {
	ID         string   `json:"id"`        // stable: share/hello/90-10/v2
	Statement  string   `json:"statement"` // "share of v2 at 10/90 is 90%"
	Outcome    Outcome  `json:"outcome"`
	Observed   string   `json:"observed"` // "90.21% (n=2,742)"
	Bound      string   `json:"bound"`    // "86.96%..92.93%; a 5-point error would show: power 0.999, false alarm 1e-6"
	N          int      `json:"n,omitempty"`
	Statistic  string   `json:"statistic,omitempty"`  // "exact two-sided binomial"
	Reason     string   `json:"reason,omitempty"`     // why not pass: since, where, likely, see, by hand; lines
	Confounder string   `json:"confounder,omitempty"` // what else would explain a failure
	Evidence   []string `json:"evidence,omitempty"`   // paths relative to the run's folder; of what a scenario returns, to the folder of its Store

	Firm bool `json:"firm,omitempty"` // starvation of the host cannot explain a failure: it stands even if the guard tripped

	Window   *Window   `json:"window,omitempty"`   // the time that the claim speaks of
	Interval *Interval `json:"interval,omitempty"` // the figures, where they are numbers on one scale
}

// Window is a span of time, both ends included.
type Window struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Interval places an observed number beside what was expected and what would have been accepted. Low and High are the
// ends of the accepted values; Want is nil where the claim is only a bound.
type Interval struct {
	Unit     string   `json:"unit"` // "%" or "s"
	Observed float64  `json:"observed"`
	Want     *float64 `json:"want,omitempty"`
	Low      float64  `json:"low"`
	High     float64  `json:"high"`
}

// Scenario is the judged result of one scenario.
type Scenario struct {
	ID       string             `json:"id"`
	Title    string             `json:"title"`
	Outcome  Outcome            `json:"outcome"`
	Started  time.Time          `json:"started"`
	Finished time.Time          `json:"finished"`
	Claims   []Claim            `json:"claims"`
	Events   []evidence.Event   `json:"events"`
	Streams  []Stream           `json:"streams"`
	Topology Topology           `json:"topology"`
	Timings  map[string]float64 `json:"timings,omitempty"` // seconds by name
	Lab      string             `json:"lab,omitempty"`     // that it ran in
	Key      string             `json:"key,omitempty"`     // ID of the claim that tells most when the scenario passes
	Guard    string             `json:"guard,omitempty"`   // ID of the claim that says whether the host let the others be judged
	Error    string             `json:"error,omitempty"`   // the scenario could not be carried out
	Memory   *LoadMemory        `json:"memory,omitempty"`  // of its lab; nil where the provider cannot measure
}

// LoadMemory is what all processes of a lab took of the host around a scenario's load, as proportional set size in bytes; 0 where it
// was not read. It is never read while load runs: reading takes time of the host too.
type LoadMemory struct {
	Before uint64 `json:"before,omitempty"` // right before the load began, with the scenario's apps
	After  uint64 `json:"after,omitempty"`  // right after it ended
}

// LabCost is what a lab took of the host.
type LabCost struct {
	Lab     string     `json:"lab"`
	Seconds float64    `json:"seconds"`          // from nothing until its last scenario was judged and it was gone, if it was taken down
	Memory  *LabMemory `json:"memory,omitempty"` // nil where the provider cannot measure
}

// LabMemory is as LoadMemory.
type LabMemory struct {
	Rest    uint64 `json:"rest,omitempty"`    // after the bring-up, with what its file asks for and before any scenario
	Highest uint64 `json:"highest,omitempty"` // of all readings, those around the load of its scenarios too
}

// Stream is the load of one profile, summed up. Durations are seconds.
type Stream struct {
	Name       string         `json:"name"`
	Target     string         `json:"target"`
	Rate       float64        `json:"rate"` // intended, per second
	Requests   int            `json:"requests"`
	Failed     map[string]int `json:"failed"`     // by class
	MissedRate float64        `json:"missedRate"` // share of sends later than LateBound
	LateBound  float64        `json:"lateBound"`
	Latency    Quantiles      `json:"latency"` // from the intended start, failures included
	Service    Quantiles      `json:"service"` // from the actual send
	Seconds    []Second       `json:"seconds"` // the timeline, in bins
}

// Quantiles of a latency distribution in seconds.
type Quantiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Second is one bin of a stream's timeline, by intended start.
type Second struct {
	Start    time.Time      `json:"start"`
	Width    float64        `json:"width"` // seconds
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Versions map[string]int `json:"versions"` // answers by "app version"
	P50      float64        `json:"p50"`
	P90      float64        `json:"p90"`
	P99      float64        `json:"p99"`
	Max      float64        `json:"max"`
}

// Topology is what the scenario ran on: nodes of a graph and its edges.
type Topology struct {
	Nodes []TopologyNode `json:"nodes"`
	Edges []TopologyEdge `json:"edges"`
}

// TopologyNode is a workload, gateway or load source.
type TopologyNode struct {
	ID      string `json:"id"`
	Kind    string `json:"kind"` // load | gateway | service | workload
	Cluster string `json:"cluster,omitempty"`
	Pods    int    `json:"pods,omitempty"`
}

// TopologyEdge is traffic that was seen.
type TopologyEdge struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Requests int    `json:"requests"`
}

// Report is a whole run: what report.json holds.
type Report struct {
	Schema    string            `json:"schema"` // "meshproof.dev/report/v1"
	Version   string            `json:"version"`
	Run       string            `json:"run"` // the name of its folder
	Lab       string            `json:"lab"` // several have a comma and a space between
	Profile   string            `json:"profile"`
	Seed      uint64            `json:"seed"`
	Mesh      string            `json:"mesh"` // driver of each lab, as Lab has them; one word if they agree
	Cluster   string            `json:"cluster"`
	Command   string            `json:"command"` // how to run it again
	Host      map[string]string `json:"host"`
	Started   time.Time         `json:"started"`
	Finished  time.Time         `json:"finished"`
	Outcome   Outcome           `json:"outcome"`
	Setup     []Phase           `json:"setup"`
	Scenarios []Scenario        `json:"scenarios"`
	Control   bool              `json:"control,omitempty"`  // a negative control: what the scenarios prove was left out
	Previous  string            `json:"previous,omitempty"` // the run before, which Changes compares with
	Changes   []Change          `json:"changes,omitempty"`  // from Previous to this run
	Error     string            `json:"error,omitempty"`    // the lab could not be set up
	Costs     []LabCost         `json:"costs,omitempty"`    // a lab each, in the order in which they were up
}

// Change is one thing that differs from an earlier run, in words.
type Change struct {
	Scenario string `json:"scenario"`
	What     string `json:"what"`
	Before   string `json:"before"`
	After    string `json:"after"`
}

// Phase is a step of bringing a lab up or taking it down.
type Phase struct {
	Lab     string  `json:"lab,omitempty"`
	Name    string  `json:"name"`
	Detail  string  `json:"detail"`
	Seconds float64 `json:"seconds"`
}
