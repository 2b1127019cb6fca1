package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/meshproof/meshproof/scenarios/workload"
)

// clusterStatuses is the part of envoy.admin.v3.Clusters that the table of endpoints shows.
type clusterStatuses struct {
	Clusters []struct {
		Name  string
		Hosts []struct {
			Address dumpAddress
			Health  struct {
				EDS           string `json:"eds_health_status"`
				FailedOutlier bool   `json:"failed_outlier_check"`
			} `json:"health_status"`
		} `json:"host_statuses"`
	} `json:"cluster_statuses"`
}

// showEndpoints prints endpoints as the proxy sees them now, which its configuration does not say: who is ejected.
func (a *app) showEndpoints(ctx context.Context, c *workload.Client, namespace, pod string) error {
	data, err := c.Admin(ctx, namespace, pod, "/clusters?format=json")
	if err != nil {
		return failed(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return failed(fmt.Errorf("clusters of %s.%s: %w", pod, namespace, err))
	}
	var s clusterStatuses
	if err := json.Unmarshal(data, &s); err != nil {
		return failed(fmt.Errorf("clusters of %s.%s: %w", pod, namespace, err))
	}
	return a.print(v, func(w io.Writer) error {
		return columns(w, []string{"ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"}, endpointRows(s))
	})
}

func endpointRows(s clusterStatuses) [][]string {
	var rows [][]string
	for _, c := range s.Clusters {
		for _, h := range c.Hosts {
			check := "OK"
			if h.Health.FailedOutlier {
				check = "FAILED"
			}
			at := net.JoinHostPort(h.Address.Socket.Address, strconv.Itoa(h.Address.Socket.PortValue))
			rows = append(rows, []string{at, cmp.Or(h.Health.EDS, "HEALTHY"), check, c.Name})
		}
	}
	return sorted(rows)
}
