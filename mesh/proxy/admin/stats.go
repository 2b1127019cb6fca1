package admin

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// metric is one counter or gauge under Envoy's name. Cluster is "" for those of the whole proxy.
type metric struct {
	cluster, name string
	gauge         bool
	value         int64
}

// path is the name in /stats.
func (m *metric) path() string {
	if m.cluster == "" {
		return m.name
	}
	return "cluster." + m.cluster + "." + m.name
}

// metrics gathers everything, sorted by path.
func (s Source) metrics() []metric {
	var out []metric
	for n, v := range s.Counters() {
		gauge := strings.HasSuffix(n, "_active") || strings.HasSuffix(n, "_state") || n == "server.uptime"
		out = append(out, metric{name: n, gauge: gauge, value: v})
	}
	for name, c := range s.View().Clusters() {
		out = append(out, clusterMetrics(name, c)...)
	}
	slices.SortFunc(out, func(a, b metric) int { return cmp.Compare(a.path(), b.path()) })
	return out
}

func clusterMetrics(name string, c *upstream.Cluster) (out []metric) {
	add := func(n string, gauge bool, v int64) { out = append(out, metric{name, n, gauge, v}) }
	st, b := c.Stats, c.Breakers
	add("upstream_rq_total", false, st.Requests.Load())
	add("upstream_rq_active", true, st.ActiveRequests.Load())
	add("upstream_rq_timeout", false, st.Timeouts.Load())
	add("upstream_rq_per_try_timeout", false, st.PerTryTimeouts.Load())
	add("upstream_rq_retry", false, st.Retries.Load())
	add("upstream_rq_retry_success", false, st.RetrySuccess.Load())
	add("upstream_rq_retry_limit_exceeded", false, st.RetryExhausted.Load())
	add("upstream_rq_retry_overflow", false, b.Retries.Overflows())
	add("upstream_rq_rx_reset", false, st.Resets.Load())
	add("upstream_rq_pending_overflow", false, st.PendingOverflow.Load())
	add("upstream_rq_pending_active", true, b.Pending.Used())
	add("upstream_cx_active", true, b.Connections.Used())
	add("upstream_cx_overflow", false, b.Connections.Overflows())
	add("upstream_cx_connect_fail", false, st.ConnectFail.Load())
	add("upstream_cx_none_healthy", false, st.NoHealthy.Load())
	for i := 1; i < len(st.Class); i++ {
		if n := st.Class[i].Load(); n > 0 {
			add(fmt.Sprintf("upstream_rq_%dxx", i), false, n)
		}
	}
	healthy := int64(0)
	for _, m := range c.Members {
		if m.Healthy() {
			healthy++
		}
	}
	add("membership_healthy", true, healthy)
	add("membership_total", true, int64(len(c.Members)))
	const p = "circuit_breakers.default."
	for _, x := range []struct {
		open, remaining string
		is              bool
		left            int64
	}{
		{"cx_open", "remaining_cx", b.Connections.Open(), b.Connections.Remaining()}, {"rq_pending_open", "remaining_pending", b.Pending.Open(), b.Pending.Remaining()},
		{"rq_open", "remaining_rq", b.Requests.Open(), b.Requests.Remaining()}, {"rq_retry_open", "remaining_retries", b.Retries.Open(), b.Retries.Remaining()},
	} {
		open := int64(0)
		if x.is {
			open = 1
		}
		add(p+x.open, true, open)
		add(p+x.remaining, true, x.left)
	}
	if c.Outlier != nil {
		c.Outlier.Stats().Each(add)
	}
	return out
}

func (s Source) stats(w http.ResponseWriter, r *http.Request) {
	filter := r.URL.Query().Get("filter")
	list := []stat{}
	for _, m := range s.metrics() {
		if n := m.path(); filter == "" || strings.Contains(n, filter) {
			list = append(list, stat{Name: n, Value: strconv.FormatInt(m.value, 10)})
		}
	}
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, map[string]any{"stats": list})
		return
	}
	for _, st := range list {
		fmt.Fprintf(w, "%s: %s\n", st.Name, st.Value)
	}
}

// WriteClusterMetrics writes every counter of /stats in Prometheus' format, under the names that Envoy gives them there.
func (s Source) WriteClusterMetrics(w io.Writer) {
	list := s.metrics()
	family := func(m *metric) string {
		n := "envoy_" + strings.ReplaceAll(m.name, ".", "_")
		if m.cluster != "" {
			n = "envoy_cluster_" + strings.ReplaceAll(m.name, ".", "_")
		}
		return n
	}
	slices.SortStableFunc(list, func(a, b metric) int {
		return cmp.Or(cmp.Compare(family(&a), family(&b)), cmp.Compare(a.cluster, b.cluster))
	})
	last := ""
	for i := range list {
		m := &list[i]
		n := family(m)
		if n != last {
			last = n
			kind := "counter"
			if m.gauge {
				kind = "gauge"
			}
			fmt.Fprintf(w, "# TYPE %s %s\n", n, kind)
		}
		if m.cluster == "" {
			fmt.Fprintf(w, "%s %d\n", n, m.value)
			continue
		}
		fmt.Fprintf(w, "%s{cluster_name=%q} %d\n", n, m.cluster, m.value)
	}
}

func (s Source) outlierEvents(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	_ = s.Events.Write(w) // the client is gone
}
