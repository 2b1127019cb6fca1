package balancing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/scenarios/drive"
	"github.com/meshproof/meshproof/scenarios/env"
)

// view is what a proxy shows to people who look for ejections.
type view struct {
	clusters  []byte // GET /clusters
	stats     []byte // GET /stats
	endpoints []byte // GET /clusters?format=json, which `meshproof mesh proxy-config endpoints` reads
}

// showing is whether a proxy showed an ejection while it lasted.
type showing struct {
	missing []string // when it was asked last
	err     error    // why it could not be asked
}

func viewOf(ctx context.Context, e *env.Env, p proxy) (view, error) {
	var v view
	for _, page := range []struct {
		path string
		to   *[]byte
	}{{"/clusters", &v.clusters}, {"/stats", &v.stats}, {"/clusters?format=json", &v.endpoints}} {
		data, err := e.Client.Admin(ctx, p.namespace, p.pod, page.path)
		if err != nil {
			return v, err
		}
		*page.to = data
	}
	return v, nil
}

// look asks every proxy, while a host of all5xx should be out, whether it shows that to people, until all do or the time is over.
func (run *outlierRun) look(ctx context.Context, e *env.Env, proxies []proxy, host string, until time.Time) error {
	run.shown = map[string]showing{}
	for {
		missing := 0
		for _, p := range proxies {
			if s, asked := run.shown[p.name]; asked && s.err == nil && len(s.missing) == 0 {
				continue
			}
			v, err := viewOf(ctx, e, p)
			s := showing{err: err}
			if err == nil {
				s.missing, s.err = v.missing(clusterName(run.namespace, all5xx, ""), host)
			}
			if run.shown[p.name] = s; s.err != nil || len(s.missing) > 0 {
				missing++
			}
		}
		if missing == 0 || time.Now().After(until) {
			return nil
		}
		if err := drive.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// missing is what a view lacks of a host that is out.
func (v view) missing(cluster, host string) ([]string, error) {
	var out []string
	if !bytes.Contains(v.clusters, []byte(cluster+"::"+host+"::health_flags::/failed_outlier_check")) {
		out = append(out, "/clusters has no failed_outlier_check for "+host)
	}
	if statOf(v.stats, "cluster."+cluster+".outlier_detection.ejections_active") < 1 {
		out = append(out, "/stats has no ejections_active")
	}
	failed, err := failedCheck(v.endpoints)
	if err != nil {
		return out, err
	}
	if !failed[cluster][host] {
		out = append(out, "proxy-config endpoints says that "+host+" is well")
	}
	return out, nil
}

// showing is what a view shows of ejections from clusters of a namespace, for people.
func (v view) showing(at, namespace string) []string {
	ours := "." + namespace + ".svc.cluster.local"
	var out []string
	for line := range bytes.Lines(v.clusters) {
		if cluster, rest, _ := strings.Cut(string(line), "::"); strings.HasSuffix(cluster, ours) && strings.Contains(rest, "/failed_outlier_check") {
			out = append(out, fmt.Sprintf("/clusters of the %s: %s", at, bytes.TrimSpace(line)))
		}
	}
	for line := range bytes.Lines(v.stats) {
		name, n, _ := strings.Cut(strings.TrimSpace(string(line)), ": ")
		if strings.HasSuffix(name, ours+".outlier_detection.ejections_active") && n != "0" {
			out = append(out, fmt.Sprintf("/stats of the %s: %s: %s", at, name, n))
		}
	}
	failed, _ := failedCheck(v.endpoints)
	for cluster, hosts := range failed {
		for host := range hosts {
			if strings.HasSuffix(cluster, ours) {
				out = append(out, fmt.Sprintf("proxy-config endpoints of the %s: %s of %s", at, host, cluster))
			}
		}
	}
	return out
}

// failedCheck reads envoy.admin.v3.Clusters: the hosts that are out, by cluster.
func failedCheck(data []byte) (map[string]map[string]bool, error) {
	var c struct {
		Clusters []struct {
			Name  string
			Hosts []struct {
				Address struct {
					Socket struct {
						Address string
						Port    int `json:"port_value"`
					} `json:"socket_address"`
				}
				Health struct {
					FailedOutlier bool `json:"failed_outlier_check"`
				} `json:"health_status"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("/clusters?format=json: %w", err)
	}
	if len(c.Clusters) == 0 {
		return nil, errors.New("/clusters?format=json: no cluster_statuses")
	}
	out := map[string]map[string]bool{}
	for _, cl := range c.Clusters {
		for _, h := range cl.Hosts {
			if h.Health.FailedOutlier {
				if out[cl.Name] == nil {
					out[cl.Name] = map[string]bool{}
				}
				out[cl.Name][net.JoinHostPort(h.Address.Socket.Address, strconv.Itoa(h.Address.Socket.Port))] = true
			}
		}
	}
	return out, nil
}

// statOf finds a counter in the text of /stats, 0 if it is not there.
func statOf(stats []byte, name string) int {
	for line := range bytes.Lines(stats) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+": ")); ok {
			n := 0
			if _, err := fmt.Sscan(string(rest), &n); err == nil {
				return n
			}
		}
	}
	return 0
}
