package balancing

import (
	"fmt"
	"strings"
	"time"

	"github.com/meshproof/meshproof/fixtures/apps/service"
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
)

// The faults, in the order in which they are made; each but the last hits one pod, another one each time.
const (
	answers503 = "answers 503"
	resets     = "resets"
	hangs      = "hangs"
	answers500 = "answers 500"
	refuses    = "refuses connections"
	allBad     = "all answer 503"
)

// watched is one Service with its policy, and where its requests come from.
type watched struct {
	name    string
	policy  string // the fields of outlierDetection, but for times
	streams []watchedStream
	// after is how many errors take a host out under each fault; a fault that is not named must not.
	after  map[string]int
	second bool // of the pods' second address, which no sidecar guards
	// judged says that after is complete; the other Services are there for the time when all are bad.
	judged bool
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
		pods: 4, base: 2 * time.Second, interval: time.Second, timeout: time.Second, calm: 3 * time.Second, after: 3 * time.Second, repeat: 1,
		services: []watched{
			{
				name: all5xx, policy: "consecutive5xxErrors: 5, maxEjectionPercent: 100", judged: true,
				after:   map[string]int{answers503: 5, resets: 5, hangs: 5, answers500: 5, allBad: 5},
				streams: []watchedStream{{"outlier-5xx-gateway", drive.Runner, 50}, {"outlier-5xx-mesh", drive.Agent, 50}},
			},
			{
				name: gatewayErrors, policy: "consecutiveGatewayErrors: 3, consecutive5xxErrors: 0, maxEjectionPercent: 100", judged: true,
				after:   map[string]int{answers503: 3, resets: 3, hangs: 3, allBad: 3},
				streams: []watchedStream{{"outlier-gateway-errors-mesh", drive.Agent, 40}},
			},
			{
				// The name that rules of old versions have; it counts gateway errors alone.
				name: oldName, policy: "consecutiveErrors: 2, maxEjectionPercent: 100", judged: true,
				after:   map[string]int{answers503: 2, resets: 2, hangs: 2, allBad: 2},
				streams: []watchedStream{{"outlier-old-name-mesh", drive.Agent, 40}},
			},
			{
				// Connections to the second address end at the app itself: a sidecar would take them whatever the app does. Timeouts are
				// local too, but every connection that is made in between ends the row.
				name:   localErrors,
				policy: "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3, consecutive5xxErrors: 0, maxEjectionPercent: 100", judged: true,
				second:  true,
				after:   map[string]int{refuses: 3},
				streams: []watchedStream{{"outlier-local-errors-mesh", drive.Agent, 40}},
			},
			{
				name: withPanic, policy: "consecutive5xxErrors: 3, maxEjectionPercent: 100, minHealthPercent: 50",
				streams: []watchedStream{{"outlier-panic-mesh", drive.Agent, 40}},
			},
			{
				name: halfAtMost, policy: "consecutive5xxErrors: 3, maxEjectionPercent: 50",
				streams: []watchedStream{{"outlier-half-mesh", drive.Agent, 40}},
			},
		},
		faults: []faultStep{
			// Long enough for a second, longer ejection of the same host.
			{name: answers503, fail: service.Fault{Status: 503}, lasts: 6 * time.Second, pause: 500 * time.Millisecond},
			{name: resets, fail: service.Fault{Reset: true}, lasts: 2 * time.Second, pause: 500 * time.Millisecond},
			{name: hangs, fail: service.Fault{Hang: "30s"}, lasts: 3 * time.Second, pause: 1500 * time.Millisecond},
			{name: answers500, fail: service.Fault{Status: 500}, lasts: 2 * time.Second, pause: 500 * time.Millisecond},
			{name: refuses, fail: service.Fault{Refuse: true}, lasts: 2 * time.Second, pause: 500 * time.Millisecond},
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
		detection := fmt.Sprintf("    outlierDetection: {%s, interval: %s, baseEjectionTime: %s}\n", s.policy, pl.interval, pl.base)
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
