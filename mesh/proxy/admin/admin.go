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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/outlier"
	"github.com/meshproof/meshproof/mesh/proxy/secrets"
	"github.com/meshproof/meshproof/mesh/proxy/upstream"
)

// Source is what the port shows. Every field is required but Level.
type Source struct {
	// Dump renders config_dump; eds adds endpoints, resource picks one list.
	Dump    func(eds bool, resource string) ([]byte, error)
	View    func() *upstream.View
	Events  *outlier.Events
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
	get("/outlier_events", s.outlierEvents)
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
		_, _ = io.WriteString(w, "certs\nclusters\nconfig_dump\nlisteners\nlogging (POST ?level=)\noutlier_events\nready\nserver_info\nstats\nstats/prometheus\n")
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
