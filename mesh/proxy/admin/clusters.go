package admin

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// The types below are envoy.admin.v3.Clusters as Envoy writes it in JSON. Fields that are zero are left out, as there.

type hostStatus struct {
	Address          address  `json:"address"`
	Stats            []stat   `json:"stats"`
	Health           health   `json:"health_status"`
	SuccessRate      *percent `json:"success_rate,omitempty"`
	LocalSuccessRate *percent `json:"local_origin_success_rate,omitempty"`
	Weight           uint32   `json:"weight"`
	Hostname         string   `json:"hostname,omitempty"`
	Priority         uint32   `json:"priority,omitempty"`
	Locality         locality `json:"locality"`
}

type percent struct {
	Value float64 `json:"value"`
}

type health struct {
	EDS           string `json:"eds_health_status"`
	FailedOutlier bool   `json:"failed_outlier_check,omitempty"`
}

type locality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	SubZone string `json:"sub_zone,omitempty"`
}

type thresholds struct {
	Priority    string `json:"priority"`
	Connections uint32 `json:"max_connections"`
	Pending     uint32 `json:"max_pending_requests"`
	Requests    uint32 `json:"max_requests"`
	Retries     uint32 `json:"max_retries"`
}

type clusterStatus struct {
	Name     string       `json:"name"`
	Added    bool         `json:"added_via_api"`
	Hosts    []hostStatus `json:"host_statuses,omitempty"`
	Breakers breakers     `json:"circuit_breakers"`
	EDS      string       `json:"eds_service_name,omitempty"`
}

type breakers struct {
	Thresholds []thresholds `json:"thresholds"`
}

func (s Source) clusters(w http.ResponseWriter, r *http.Request) {
	var out []clusterStatus
	view := s.View()
	for _, name := range slices.Sorted(maps.Keys(view.Clusters())) {
		out = append(out, describe(view.Cluster(name)))
	}
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, map[string]any{"cluster_statuses": out})
		return
	}
	for _, c := range out {
		fmt.Fprintf(w, "%s::observability_name::%s\n", c.Name, c.Name)
		for _, t := range c.Breakers.Thresholds {
			at := c.Name + "::" + strings.ToLower(t.Priority) + "_priority"
			fmt.Fprintf(w, "%s::max_connections::%d\n%s::max_pending_requests::%d\n%s::max_requests::%d\n%s::max_retries::%d\n", at, t.Connections, at, t.Pending, at, t.Requests, at, t.Retries)
		}
		fmt.Fprintf(w, "%s::added_via_api::%v\n", c.Name, c.Added)
		for _, h := range c.Hosts {
			at := c.Name + "::" + net.JoinHostPort(h.Address.Socket.Address, strconv.Itoa(int(h.Address.Socket.Port)))
			for _, st := range h.Stats {
				fmt.Fprintf(w, "%s::%s::%s\n", at, st.Name, or(st.Value, "0"))
			}
			fmt.Fprintf(w, "%s::hostname::%s\n%s::health_flags::%s\n%s::weight::%d\n%s::region::%s\n%s::zone::%s\n%s::sub_zone::%s\n%s::priority::%d\n%s::success_rate::%s\n%s::local_origin_success_rate::%s\n",
				at, h.Hostname, at, h.Health.flags(), at, h.Weight, at, h.Locality.Region, at, h.Locality.Zone, at, h.Locality.SubZone, at, h.Priority, at, h.SuccessRate, at, h.LocalSuccessRate)
		}
	}
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// String is what Envoy prints; -1 is a host with too few requests.
func (p *percent) String() string {
	if p == nil {
		return "-1"
	}
	return strconv.FormatFloat(p.Value, 'f', -1, 64)
}

func (h health) flags() string {
	s := ""
	if h.FailedOutlier {
		s += "/failed_outlier_check"
	}
	if h.EDS != "HEALTHY" {
		s += "/failed_eds_health"
	}
	return or(s, "healthy")
}

func describe(c *upstream.Cluster) clusterStatus {
	b := c.Conf.Breakers
	out := clusterStatus{Name: c.Conf.Name, Added: true, Breakers: breakers{[]thresholds{{"DEFAULT", b.Connections, b.Pending, b.Requests, b.Retries}}}}
	if c.Conf.Discovery == conf.EDS {
		out.EDS = c.Conf.ServiceName
	}
	if c.Conf.Endpoints == nil {
		return out
	}
	i := 0
	for li := range c.Conf.Endpoints.Localities {
		l := &c.Conf.Endpoints.Localities[li]
		for range l.Endpoints {
			h := describeHost(c.Members[i])
			h.Priority, h.Locality = l.Priority, locality{l.Region, l.Zone, l.SubZone}
			out.Hosts = append(out.Hosts, h)
			i++
		}
	}
	return out
}

func describeHost(m upstream.Member) hostStatus {
	h := hostStatus{Weight: m.Endpoint.Weight, Hostname: m.Endpoint.Hostname, Health: health{EDS: "HEALTHY", FailedOutlier: m.Outlier.Ejected()}}
	if m.Endpoint.Unhealthy {
		h.Health.EDS = "UNHEALTHY"
	} else if m.Endpoint.Draining {
		h.Health.EDS = "DRAINING"
	}
	if ap, err := netip.ParseAddrPort(m.Addr); err == nil {
		h.Address.Socket = socketAddress{ap.Addr().String(), ap.Port()}
	} else {
		h.Hostname = or(h.Hostname, m.Endpoint.Host)
		h.Address.Socket = socketAddress{m.Endpoint.Host, m.Endpoint.Port}
	}
	cx := m.Connections()
	counter := func(name string, n int64) { h.Stats = append(h.Stats, newStat("", name, n)) }
	gauge := func(name string, n int64) { h.Stats = append(h.Stats, newStat("GAUGE", name, n)) }
	counter("cx_connect_fail", cx.Failed.Load())
	counter("cx_total", cx.Opened.Load())
	counter("rq_error", m.Errors.Load())
	counter("rq_success", m.Success.Load())
	counter("rq_timeout", m.Timeouts.Load())
	counter("rq_total", m.Requests.Load())
	gauge("cx_active", cx.Active.Load())
	gauge("rq_active", m.Active.Load())
	if m.Outlier.Watched() {
		// Envoy does not show these; in its own form they disturb no reader. Times are Unix milliseconds, 0 for never.
		st := m.Outlier.Status()
		counter("outlier_detection.num_ejections", int64(st.Ejections))
		gauge("outlier_detection.consecutive_5xx", int64(st.Consecutive5xx))
		gauge("outlier_detection.consecutive_gateway_failure", int64(st.ConsecutiveGateway))
		gauge("outlier_detection.consecutive_local_origin_failure", int64(st.ConsecutiveLocal))
		gauge("outlier_detection.last_ejection_ms", millis(st.EjectedAt))
		gauge("outlier_detection.last_unejection_ms", millis(st.ReturnedAt))
		h.SuccessRate, h.LocalSuccessRate = rate(st.SuccessRate), rate(st.LocalSuccessRate)
	}
	return h
}

// newStat leaves a value of 0 out, as proto JSON does.
func newStat(kind, name string, n int64) stat {
	st := stat{Type: kind, Name: name}
	if n != 0 {
		st.Value = strconv.FormatInt(n, 10)
	}
	return st
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func rate(v float64) *percent {
	if v < 0 {
		return nil
	}
	return &percent{v}
}
