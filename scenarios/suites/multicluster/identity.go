package multicluster

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// served is what the proxy of one workload counted of the requests that it let in.
type served struct {
	App, Pod, Cluster string
	Calls             []call
}

// call are the requests from one source, as the destination's proxy tells of them.
type call struct {
	From, To string // SPIFFE names of the two certificates; "unknown" without
	Cluster  string // of the source
	Policy   string // mutual_tls or none
	Count    float64
}

// parseCalls picks from a proxy's metrics what it let in.
func parseCalls(metrics []byte) ([]call, error) {
	var out []call
	lines := bufio.NewScanner(bytes.NewReader(metrics))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "istio_requests_total{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(rest, "} ")
		if !ok {
			return nil, fmt.Errorf("metrics: line %q has no value", lines.Text())
		}
		l, err := parseLabels(labels)
		if err != nil {
			return nil, err
		}
		if l["reporter"] != "destination" {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return nil, fmt.Errorf("metrics: line %q: %w", lines.Text(), err)
		}
		out = append(out, call{
			From: l["source_principal"], To: l["destination_principal"], Cluster: l["source_cluster"], Policy: l["connection_security_policy"], Count: n,
		})
	}
	return out, lines.Err()
}

// parseLabels reads name="value" pairs in Prometheus' text format.
func parseLabels(text string) (map[string]string, error) {
	out := map[string]string{}
	for rest := text; rest != ""; {
		name, after, ok := strings.Cut(rest, `="`)
		if !ok {
			return nil, fmt.Errorf("metrics: labels %q", text)
		}
		quoted, err := strconv.QuotedPrefix(`"` + after)
		if err != nil {
			return nil, fmt.Errorf("metrics: labels %q: %w", text, err)
		}
		if out[name], err = strconv.Unquote(quoted); err != nil {
			return nil, fmt.Errorf("metrics: labels %q: %w", text, err)
		}
		rest = strings.TrimPrefix(after[len(quoted)-1:], ",")
	}
	return out, nil
}
