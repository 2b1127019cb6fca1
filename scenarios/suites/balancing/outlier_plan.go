package balancing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshproof/meshproof/fixtures/apps/service"
	"github.com/meshproof/meshproof/reports/evidence"
	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/lab"
)

// The Services of the scenario, all over the same pods; their policies differ.
const (
	all5xx        = "all-5xx"
	gatewayErrors = "gateway-errors"
	oldName       = "old-name"
	localErrors   = "local-errors"
	withPanic     = "with-panic"
	halfAtMost    = "half-at-most"
	tenthAtMost   = "tenth-at-most"
	threeQuarters = "three-quarters"
)

// The faults, in the order in which they are made; each but the last hits one pod, another one each time.
const (
	answers503 = "answers 503"
	halfBad    = "answers 503 half of the time"
	resets     = "resets"
	hangs      = "hangs"
	answers500 = "answers 500"
	refuses    = "refuses connections"
	allBad     = "all answer 503"
)

// errorKind is which errors in a row a policy counts.
type errorKind int

const (
	serverErrors  errorKind = iota // 5xx, and what is as bad
	gatewayOnly                    // 502, 503, 504, and what is as bad
	localFailures                  // of the connection alone
)

// watched is one Service with its policy, and where its requests come from.
type watched struct {
	name    string
	policy  string // the fields of outlierDetection, but for times and maxEjectionPercent
	percent int    // maxEjectionPercent; 0 leaves it unsaid
	health  int    // minHealthPercent; 0 leaves it unsaid
	streams []watchedStream
	kind    errorKind
	errors  int // in a row, that take a host out
	// under are the faults that must take a host out; a fault that is not named must not.
	under  []string
	second bool // of the pods' second address, which no sidecar guards
	// judged says that under is complete; the other Services are there for the first fault, and for the time when all are bad.
	judged bool
}

// counts says whether an answer is an error in the policy's eyes; one that is none ends the row.
func (s watched) counts(r evidence.Request) bool {
	switch {
	case !failed(r):
		return false
	case s.kind == localFailures:
		return r.Pod == "" // a pod that answers was reached
	case s.kind == gatewayOnly:
		return r.Code == 0 || r.Code >= 502 && r.Code <= 504
	}
	return true
}

// most is how many of so many hosts may be out at once. Source: Envoy's outlier_detection_impl.cc, ejectHost.
func (s watched) most(hosts int) int {
	return cmp.Or(s.percent, 10) * hosts / 100
}

type watchedStream struct {
	name   string
	source string
	rate   float64
}

func (s watchedStream) at() string {
	if s.source == drive.Runner {
		return atGateway
	}
	return atAgent
}

// faultStep is one fault and how long it lasts.
type faultStep struct {
	name  string
	fail  service.Fault
	lasts time.Duration
	pause time.Duration // after it has healed
	share float64       // of requests that fail; all if 0
	all   bool          // every pod
}

// outlierPlan is the load, the policies and the faults of the scenario.
type outlierPlan struct {
	services []watched
	faults   []faultStep
	pods     int
	base     time.Duration // baseEjectionTime
	interval time.Duration
	timeout  time.Duration // of a request at the proxy
	calm     time.Duration // before the first fault
	after    time.Duration // of load once all is well again
	repeat   int
}

func newOutlierPlan(p lab.Profile) outlierPlan {
	pl := outlierPlan{
		pods: 4, base: 2500 * time.Millisecond, interval: time.Second, timeout: time.Second, calm: 3 * time.Second, after: 3 * time.Second, repeat: 1,
		services: []watched{
			{
				name: all5xx, policy: "consecutive5xxErrors: 5", percent: 100, errors: 5, judged: true,
				under:   []string{answers503, halfBad, resets, hangs, answers500, allBad},
				streams: []watchedStream{{"outlier-5xx-gateway", drive.Runner, 50}, {"outlier-5xx-mesh", drive.Agent, 50}},
			},
			{
				name: gatewayErrors, policy: "consecutiveGatewayErrors: 3, consecutive5xxErrors: 0", percent: 100, kind: gatewayOnly, errors: 3, judged: true,
				under:   []string{answers503, halfBad, resets, hangs, allBad},
				streams: []watchedStream{{"outlier-gateway-errors-mesh", drive.Agent, 40}},
			},
			{
				// The name that rules of old versions have; it counts gateway errors alone.
				name: oldName, policy: "consecutiveErrors: 2", percent: 100, kind: gatewayOnly, errors: 2, judged: true,
				under:   []string{answers503, halfBad, resets, hangs, allBad},
				streams: []watchedStream{{"outlier-old-name-mesh", drive.Agent, 40}},
			},
			{
				// Connections to the second address end at the app itself: a sidecar would take them whatever the app does. Timeouts are
				// local too, but every connection that is made in between ends the row.
				name:   localErrors,
				policy: "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3, consecutive5xxErrors: 0", percent: 100,
				kind: localFailures, errors: 3, judged: true, second: true,
				under:   []string{refuses},
				streams: []watchedStream{{"outlier-local-errors-mesh", drive.Agent, 40}},
			},
			{
				name: withPanic, policy: "consecutive5xxErrors: 3", percent: 100, health: 50, errors: 3,
				under:   []string{answers503, allBad},
				streams: []watchedStream{{"outlier-panic-mesh", drive.Agent, 40}},
			},
			{
				// With every host bad just half of them are out, which is no panic: that takes fewer than minHealthPercent.
				name: halfAtMost, policy: "consecutive5xxErrors: 3", percent: 50, health: 50, errors: 3,
				under:   []string{answers503, allBad},
				streams: []watchedStream{{"outlier-half-gateway", drive.Runner, 40}, {"outlier-half-mesh", drive.Agent, 40}},
			},
			{
				// And here one more is.
				name: threeQuarters, policy: "consecutive5xxErrors: 3", percent: 75, health: 50, errors: 3,
				under:   []string{answers503, allBad},
				streams: []watchedStream{{"outlier-quarters-mesh", drive.Agent, 40}},
			},
			{
				// Without maxEjectionPercent it is 10, which is less than one host of four: Envoy, since 1.28, takes none out.
				name: tenthAtMost, policy: "consecutive5xxErrors: 3", errors: 3, judged: true,
				streams: []watchedStream{{"outlier-tenth-gateway", drive.Runner, 40}, {"outlier-tenth-mesh", drive.Agent, 40}},
			},
		},
		faults: []faultStep{
			// Long enough for a second ejection of the same host, wherever the sweeps are. It ends before that does, as each other does
			// before the first: what a fault costs is then the errors up to the ejections.
			{name: answers503, fail: service.Fault{Status: 503}, lasts: 5500 * time.Millisecond, pause: 500 * time.Millisecond},
			{name: halfBad, fail: service.Fault{Status: 503}, share: 0.5, lasts: 2 * time.Second, pause: 500 * time.Millisecond},
			{name: resets, fail: service.Fault{Reset: true}, lasts: 1500 * time.Millisecond, pause: 500 * time.Millisecond},
			// The pause is for the last that hangs to time out.
			{name: hangs, fail: service.Fault{Hang: "30s"}, lasts: 2 * time.Second, pause: 1500 * time.Millisecond},
			{name: answers500, fail: service.Fault{Status: 500}, lasts: 1500 * time.Millisecond, pause: 500 * time.Millisecond},
			{name: refuses, fail: service.Fault{Refuse: true}, lasts: 1500 * time.Millisecond, pause: 500 * time.Millisecond},
			{name: allBad, fail: service.Fault{Status: 503}, lasts: 2 * time.Second, all: true},
		},
	}
	switch p {
	case lab.Nightly:
		pl.repeat = 5
	case lab.Soak:
		pl.repeat = 100
	}
	return pl
}

// roundLength is about how long the faults of one round take, with the hosts' return.
func (pl outlierPlan) roundLength() time.Duration {
	d := 8 * time.Second
	for _, f := range pl.faults {
		d += f.lasts + f.pause
	}
	return d + pl.after
}

func (pl outlierPlan) length() time.Duration {
	return pl.calm + time.Duration(pl.repeat)*pl.roundLength()
}

// service is the Service of that name.
func (pl outlierPlan) service(name string) watched {
	i := slices.IndexFunc(pl.services, func(s watched) bool { return s.name == name })
	return pl.services[i]
}

func (pl outlierPlan) streams() []string {
	var out []string
	for _, s := range pl.services {
		for _, st := range s.streams {
			out = append(out, st.name)
		}
	}
	return out
}

// slowest is how long a proxy may take until it has seen so many errors of one of the hosts, which have their turns: that many
// rounds at the stream's rate, a time out, and a second for the host's own pace.
func (pl outlierPlan) slowest(errors int, rate float64) time.Duration {
	return time.Duration(float64(errors*pl.pods)/rate*float64(time.Second)) + pl.timeout + time.Second
}

const outlierDomain = "outlier.example.com"

// outlierObjects are Services, routes without retries, and the policies; as a control, without outlier detection.
func outlierObjects(namespace string, pl outlierPlan, control bool) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: outlier
  namespace: %s
spec:
  selector:
    istio: ingressgateway
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*.%s"]
`, namespace, outlierDomain)
	for _, s := range pl.services {
		port, tls := "8080", ""
		if s.second {
			port, tls = "8082", "    tls: {mode: DISABLE}\n"
		}
		policy := s.policy
		if s.percent > 0 {
			policy += fmt.Sprintf(", maxEjectionPercent: %d", s.percent)
		}
		if s.health > 0 {
			policy += fmt.Sprintf(", minHealthPercent: %d", s.health)
		}
		detection := fmt.Sprintf("    outlierDetection: {%s, interval: %s, baseEjectionTime: %s}\n", policy, pl.interval, pl.base)
		if control {
			detection = ""
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  ports: [{port: 8080, targetPort: %[6]s, name: http}]
  selector: {app: svc-hello}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  host: %[1]s
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
%[5]s---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  hosts: [%[1]s, %[1]s.%[3]s]
  gateways: [mesh, outlier]
  http:
  - route: [{destination: {host: %[1]s}}]
    timeout: %[4]s
    retries: {attempts: 0}
`, s.name, namespace, outlierDomain, pl.timeout, tls+detection, port)
	}
	return []byte(b.String())
}
