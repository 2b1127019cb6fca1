package upgrade

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/meshproof/meshproof/scenarios/env"
)

// series is a counter of requests as the proxy of the called pod tells, by what it knows of the caller.
type series struct {
	Pod         string // of the proxy that counts, pod.namespace
	Source      string // workload.namespace of the caller; unknown.unknown without TLS
	Principal   string // of the caller, from its certificate
	Destination string // principal that the caller was shown
	Security    string // mutual_tls | none

}

const requestsTotal = "istio_requests_total"

// inbound reads what the proxies of pods ("pod.namespace") have counted of requests to them.
func inbound(ctx context.Context, e *env.Env, pods []string) (map[series]float64, error) {
	pages := make([][]byte, len(pods))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, pod := range pods {
		g.Go(func() (err error) {
			name, namespace, _ := strings.Cut(pod, ".")
			pages[i], err = e.Client.Admin(gctx, namespace, name, "/stats/prometheus")
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := map[series]float64{}
	for i, pod := range pods {
		if err := parseInbound(pod, pages[i], out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseInbound adds the counters of one proxy, in Prometheus' text format, to out.
func parseInbound(pod string, page []byte, out map[series]float64) error {
	sc := bufio.NewScanner(bytes.NewReader(page))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), requestsTotal+"{")
		if !ok {
			continue
		}
		labels, value, err := sample(rest)
		if err != nil {
			return fmt.Errorf("metrics of %s: %w", pod, err)
		}
		if labels["reporter"] != "destination" {
			continue
		}
		out[series{
			Pod: pod, Source: labels["source_workload"] + "." + labels["source_workload_namespace"], Principal: labels["source_principal"],
			Destination: labels["destination_principal"], Security: labels["connection_security_policy"],
		}] += value
	}
	return sc.Err()
}

var errSample = errors.New("not a sample of Prometheus' text format")

// sample reads `name="value",...} 12` behind the opening brace.
func sample(s string) (labels map[string]string, value float64, err error) {
	labels = map[string]string{}
	for !strings.HasPrefix(s, "}") {
		name, rest, ok := strings.Cut(strings.TrimPrefix(s, ","), "=")
		if !ok {
			return nil, 0, errSample
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return nil, 0, errSample
		}
		if labels[name], err = strconv.Unquote(quoted); err != nil {
			return nil, 0, errSample
		}
		s = rest[len(quoted):]
	}
	text, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(s, "}")), " ")
	if value, err = strconv.ParseFloat(text, 64); err != nil {
		return nil, 0, errSample
	}
	return labels, value, nil
}

// grown is what was counted between two readings. A proxy that is new in the second starts from nothing.
func grown(before, after map[series]float64) map[series]float64 {
	out := map[series]float64{}
	for k, v := range after {
		if d := v - before[k]; d > 0 {
			out[k] = d
		}
	}
	return out
}
