// Package admin is the proxy's own HTTP port: what it was configured with, how its endpoints do, its counters, in the
// shapes of Envoy's admin interface.
package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/secrets"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// Source is what the port shows. Every field is required but Level.
type Source struct {
	// Dump renders config_dump; eds adds endpoints, resource picks one list.
	Dump    func(eds bool, resource string) ([]byte, error)
	View    func() *upstream.View
	Secrets *secrets.Store
	// State is LIVE, DRAINING or PRE_INITIALIZING.
	State      func() string
	Counters   func() map[string]int64
	Prometheus func(io.Writer)
	// Addrs are the sockets of a listener.
	Addrs   func(listener string) []net.Addr
	NodeID  string
	Version string
	Started time.Time
	Level   *slog.LevelVar
}

// Handler serves the port.
func Handler(s Source) http.Handler {
	mux := http.NewServeMux()
	get := func(path string, f func(http.ResponseWriter, *http.Request)) { mux.HandleFunc("GET "+path, f) }
	get("/config_dump", s.configDump)
	get("/clusters", s.clusters)
	get("/listeners", s.listeners)
	get("/stats", s.stats)
	get("/stats/prometheus", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		s.Prometheus(w)
	})
	get("/ready", s.ready)
	get("/server_info", s.serverInfo)
	get("/certs", s.certs)
	mux.HandleFunc("POST /logging", s.logging)
	get("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "certs\nclusters\nconfig_dump\nlisteners\nlogging (POST ?level=)\nready\nserver_info\nstats\nstats/prometheus\n")
	})
	return mux
}

func (s Source) ready(w http.ResponseWriter, _ *http.Request) {
	st := s.State()
	if st != "LIVE" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = io.WriteString(w, st+"\n")
}

func (s Source) configDump(w http.ResponseWriter, r *http.Request) {
	b, err := s.Dump(r.URL.Query().Has("include_eds"), r.URL.Query().Get("resource"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	_ = e.Encode(v) // the client is gone
}

type stat struct {
	Type  string `json:"type,omitempty"`
	Name  string `json:"name"`
	Value string `json:"value,omitempty"` // 64-bit numbers are strings in proto JSON
}

type socketAddress struct {
	Address string `json:"address"`
	Port    uint16 `json:"port_value"`
}

type address struct {
	Socket socketAddress `json:"socket_address"`
}

type hostStatus struct {
	Address  address `json:"address"`
	Stats    []stat  `json:"stats"`
	Health   health  `json:"health_status"`
	Weight   uint32  `json:"weight"`
	Hostname string  `json:"hostname,omitempty"`
	Priority uint32  `json:"priority,omitempty"`
	Locality struct {
		Region  string `json:"region,omitempty"`
		Zone    string `json:"zone,omitempty"`
		SubZone string `json:"sub_zone,omitempty"`
	} `json:"locality"`
}

type health struct {
	EDS string `json:"eds_health_status"`
}

type clusterStatus struct {
	Name  string       `json:"name"`
	Added bool         `json:"added_via_api"`
	Hosts []hostStatus `json:"host_statuses,omitempty"`
	EDS   string       `json:"eds_service_name,omitempty"`
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
		fmt.Fprintf(w, "%s::observability_name::%s\n%s::added_via_api::%v\n", c.Name, c.Name, c.Name, c.Added)
		for _, h := range c.Hosts {
			at := c.Name + "::" + net.JoinHostPort(h.Address.Socket.Address, strconv.Itoa(int(h.Address.Socket.Port)))
			for _, st := range h.Stats {
				fmt.Fprintf(w, "%s::%s::%s\n", at, st.Name, or(st.Value, "0"))
			}
			fmt.Fprintf(w, "%s::health_flags::%s\n%s::weight::%d\n%s::region::%s\n%s::zone::%s\n%s::priority::%d\n", at, flags(h.Health.EDS), at, h.Weight, at, h.Locality.Region, at, h.Locality.Zone, at, h.Priority)
		}
	}
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func flags(eds string) string {
	if eds == "HEALTHY" {
		return "healthy"
	}
	return "/failed_eds_health"
}

func describe(c *upstream.Cluster) clusterStatus {
	out := clusterStatus{Name: c.Conf.Name, Added: true}
	if c.Conf.Discovery == conf.EDS {
		out.EDS = c.Conf.ServiceName
	}
	i := 0
	if c.Conf.Endpoints == nil {
		return out
	}
	for li := range c.Conf.Endpoints.Localities {
		l := &c.Conf.Endpoints.Localities[li]
		for range l.Endpoints {
			m := c.Members[i]
			i++
			h := hostStatus{Weight: m.Endpoint.Weight, Priority: l.Priority, Health: health{"HEALTHY"}}
			if m.Endpoint.Unhealthy {
				h.Health.EDS = "UNHEALTHY"
			} else if m.Endpoint.Draining {
				h.Health.EDS = "DRAINING"
			}
			h.Locality.Region, h.Locality.Zone, h.Locality.SubZone = l.Region, l.Zone, l.SubZone
			if ap, err := netip.ParseAddrPort(m.Addr); err == nil {
				h.Address.Socket = socketAddress{ap.Addr().String(), ap.Port()}
			} else {
				h.Hostname = m.Endpoint.Host
				h.Address.Socket = socketAddress{m.Endpoint.Host, m.Endpoint.Port}
			}
			cx := m.Connections()
			for _, v := range []struct {
				typ, name string
				n         int64
			}{
				{"", "cx_connect_fail", cx.Failed.Load()}, {"", "cx_total", cx.Opened.Load()}, {"", "rq_error", m.Errors.Load()},
				{"", "rq_success", m.Success.Load()}, {"", "rq_timeout", 0}, {"", "rq_total", m.Requests.Load()},
				{"GAUGE", "cx_active", cx.Active.Load()}, {"GAUGE", "rq_active", m.Active.Load()},
			} {
				st := stat{Type: v.typ, Name: v.name}
				if v.n != 0 {
					st.Value = strconv.FormatInt(v.n, 10)
				}
				h.Stats = append(h.Stats, st)
			}
			out.Hosts = append(out.Hosts, h)
		}
	}
	return out
}

func (s Source) listeners(w http.ResponseWriter, r *http.Request) {
	type status struct {
		Name  string  `json:"name"`
		Local address `json:"local_address"`
	}
	var out []status
	cfg := s.View().Config
	for _, name := range slices.Sorted(maps.Keys(cfg.Listeners)) {
		l := cfg.Listeners[name]
		a := l.Addrs[0]
		if got := s.Addrs(name); len(got) > 0 {
			if t, ok := got[0].(*net.TCPAddr); ok {
				a = t.AddrPort()
			}
		}
		out = append(out, status{name, address{socketAddress{a.Addr().String(), a.Port()}}})
	}
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, map[string]any{"listener_statuses": out})
		return
	}
	for _, l := range out {
		fmt.Fprintf(w, "%s::%s\n", l.Name, net.JoinHostPort(l.Local.Socket.Address, strconv.Itoa(int(l.Local.Socket.Port))))
	}
}

// Stats gathers the counters under Envoy's names.
func (s Source) counters() map[string]int64 {
	out := s.Counters()
	for name, c := range s.View().Clusters() {
		p := "cluster." + name + "."
		st := c.Stats
		out[p+"upstream_rq_total"] = st.Requests.Load()
		out[p+"upstream_rq_active"] = st.ActiveRequests.Load()
		out[p+"upstream_rq_timeout"] = st.Timeouts.Load()
		out[p+"upstream_rq_per_try_timeout"] = st.PerTryTimeouts.Load()
		out[p+"upstream_rq_retry"] = st.Retries.Load()
		out[p+"upstream_rq_retry_success"] = st.RetrySuccess.Load()
		out[p+"upstream_rq_retry_limit_exceeded"] = st.RetryExhausted.Load()
		out[p+"upstream_rq_rx_reset"] = st.Resets.Load()
		out[p+"upstream_cx_connect_fail"] = st.ConnectFail.Load()
		out[p+"upstream_cx_none_healthy"] = st.NoHealthy.Load()
		out[p+"membership_total"] = int64(len(c.Members))
		for i := 1; i < len(st.Class); i++ {
			if n := st.Class[i].Load(); n > 0 {
				out[fmt.Sprintf("%supstream_rq_%dxx", p, i)] = n
			}
		}
		healthy := int64(0)
		for _, m := range c.Members {
			if !m.Endpoint.Unhealthy && !m.Endpoint.Draining {
				healthy++
			}
		}
		out[p+"membership_healthy"] = healthy
	}
	return out
}

func (s Source) stats(w http.ResponseWriter, r *http.Request) {
	all := s.counters()
	filter := r.URL.Query().Get("filter")
	var list []stat
	for _, n := range slices.Sorted(maps.Keys(all)) {
		if filter == "" || strings.Contains(n, filter) {
			list = append(list, stat{Name: n, Value: strconv.FormatInt(all[n], 10)})
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

func (s Source) serverInfo(w http.ResponseWriter, _ *http.Request) {
	up := fmt.Sprintf("%ds", int(time.Since(s.Started).Seconds()))
	writeJSON(w, map[string]any{
		"version": "meshproxy/" + s.Version, "state": s.State(), "uptime_current_epoch": up, "uptime_all_epochs": up,
		"command_line_options": map[string]any{"service_node": s.NodeID}, "node": map[string]any{"id": s.NodeID},
	})
}

func (s Source) certs(w http.ResponseWriter, _ *http.Request) {
	i := s.Secrets.Info()
	if i == nil {
		writeJSON(w, map[string]any{"certificates": []any{}})
		return
	}
	writeJSON(w, map[string]any{"certificates": []any{map[string]any{"cert_chain": []any{map[string]any{
		"serial_number": i.Serial, "subject_alt_names": []any{map[string]string{"uri": i.URI}},
		"valid_from": i.NotBefore.UTC().Format(time.RFC3339), "expiration_time": i.NotAfter.UTC().Format(time.RFC3339),
	}}}}})
}

func (s Source) logging(w http.ResponseWriter, r *http.Request) {
	if s.Level == nil {
		http.Error(w, "the log level cannot be changed", http.StatusNotImplemented)
		return
	}
	if v := r.URL.Query().Get("level"); v != "" {
		var l slog.Level
		if err := l.UnmarshalText([]byte(v)); err != nil {
			http.Error(w, "level: want debug, info, warn or error", http.StatusBadRequest)
			return
		}
		s.Level.Set(l)
	}
	fmt.Fprintf(w, "active loggers:\n  meshproxy: %s\n", strings.ToLower(s.Level.Level().String()))
}

// WriteClusterMetrics writes cluster counters in Prometheus' format.
func (s Source) WriteClusterMetrics(w io.Writer) {
	byName := map[string][]string{}
	for n, v := range s.counters() {
		rest, ok := strings.CutPrefix(n, "cluster.")
		if !ok {
			byName["envoy_"+strings.ReplaceAll(n, ".", "_")] = []string{fmt.Sprintf(" %d\n", v)}
			continue
		}
		i := strings.LastIndexByte(rest, '.')
		byName["envoy_cluster_"+rest[i+1:]] = append(byName["envoy_cluster_"+rest[i+1:]], fmt.Sprintf("{cluster_name=%q} %d\n", rest[:i], v))
	}
	for _, n := range slices.Sorted(maps.Keys(byName)) {
		fmt.Fprintf(w, "# TYPE %s untyped\n", n)
		slices.Sort(byName[n])
		for _, l := range byName[n] {
			_, _ = io.WriteString(w, n+l)
		}
	}
}
