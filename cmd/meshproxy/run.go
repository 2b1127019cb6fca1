package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/cmd/internal/version"
	"github.com/meshproof/meshproof/mesh/proxy"
	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/listener"
	"github.com/meshproof/meshproof/mesh/xds/client"
)

// options are the flags; everything else comes from the environment that the injector sets.
type options struct {
	token, roots, podInfo string
	admin, status, merged string
	metrics               string
	level                 string
	plaintext, sotw       bool
	certTTL, drain        time.Duration
	grace, terminate      time.Duration
}

func runCommand(use, role, short string) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var level slog.LevelVar
			if err := level.UnmarshalText([]byte(o.level)); err != nil {
				return fmt.Errorf("--log-level: %w", err)
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: &level}))
			b, err := bootstrap(role, o, os.Getenv, os.Environ())
			if err != nil {
				return err
			}
			b.Level, b.Log = &level, log
			began := time.Now()
			b.Ready = func() { log.Info("ready", "after", time.Since(began).Round(time.Millisecond)) }
			return proxy.Run(cmd.Context(), b)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.token, "token", "/var/run/secrets/tokens/istio-token", "file with the service account token")
	f.StringVar(&o.roots, "roots", "/var/run/secrets/istio/root-cert.pem", "file with the control plane's trust anchors")
	f.StringVar(&o.podInfo, "pod-info", "/etc/istio/pod", "folder with the pod's labels and annotations")
	f.StringVar(&o.admin, "admin", "127.0.0.1:15000", "address of the admin port")
	f.StringVar(&o.status, "status", ":15021", "address of /healthz/ready")
	f.StringVar(&o.metrics, "metrics", ":15090", "address of /stats/prometheus")
	f.StringVar(&o.merged, "merged", ":15020", "address of the metrics of proxy and application together")
	f.StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.plaintext, "plaintext", false, "reach the control plane without TLS, token and certificate")
	f.BoolVar(&o.sotw, "state-of-the-world", false, "use the older xDS protocol instead of delta")
	f.DurationVar(&o.certTTL, "certificate-ttl", 24*time.Hour, "life to ask for in the workload certificate")
	f.DurationVar(&o.drain, "drain-time", 45*time.Second, "how long connections of removed filter chains may live")
	f.DurationVar(&o.grace, "termination-drain", 5*time.Second, "how long new connections are accepted after SIGTERM, so that everybody hears that this proxy goes")
	f.DurationVar(&o.terminate, "terminate-time", 20*time.Second, "how long exchanges under way may take after that")
	return cmd
}

// bootstrap makes the node and its surroundings from Istio's environment variables.
func bootstrap(role string, o options, env func(string) string, environ []string) (proxy.Bootstrap, error) {
	var b proxy.Bootstrap
	var missing []string
	need := func(name string) string {
		v := env(name)
		if v == "" {
			missing = append(missing, name)
		}
		return v
	}
	pod, ns, ip := need("POD_NAME"), need("POD_NAMESPACE"), need("INSTANCE_IP")
	if len(missing) > 0 {
		return b, fmt.Errorf("environment: %s must be set (the injector does)", strings.Join(missing, ", "))
	}
	var pc struct {
		DiscoveryAddress string `json:"discoveryAddress"`
		DrainDuration    string `json:"terminationDrainDuration"`
	}
	if s := env("PROXY_CONFIG"); s != "" {
		if err := json.Unmarshal([]byte(s), &pc); err != nil {
			return b, fmt.Errorf("environment: PROXY_CONFIG: %w", err)
		}
	}
	if pc.DiscoveryAddress == "" {
		pc.DiscoveryAddress = "istiod.istio-system.svc:15012"
	}
	stop, err := termination(o, pc.DrainDuration, env)
	if err != nil {
		return b, err
	}
	labels, err := readInfo(o.podInfo + "/labels")
	if err != nil {
		return b, err
	}
	annotations, err := readInfo(o.podInfo + "/annotations")
	if err != nil {
		return b, err
	}
	trust, sa := or(env("TRUST_DOMAIN"), "cluster.local"), or(env("SERVICE_ACCOUNT"), "default")
	md := map[string]any{
		"NAME": pod, "NAMESPACE": ns, "INSTANCE_IPS": ip, "SERVICE_ACCOUNT": sa, "LABELS": anyMap(labels), "ANNOTATIONS": anyMap(annotations),
		"ISTIO_VERSION": version.Version, "PROXY_CONFIG": map[string]any{"discoveryAddress": pc.DiscoveryAddress},
	}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "ISTIO_META_") {
			md[strings.TrimPrefix(k, "ISTIO_META_")] = v
		}
	}
	app, ver := canonical(labels, env("ISTIO_META_WORKLOAD_NAME"))
	b = proxy.Bootstrap{
		NodeID:   fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", role, ip, pod, ns, ns),
		Cluster:  app + "." + ns,
		Metadata: md,
		Workload: conf.Workload{
			Name: env("ISTIO_META_WORKLOAD_NAME"), Namespace: ns, Canonical: app, CanonicalRevision: ver, Cluster: or(env("ISTIO_META_CLUSTER_ID"), "Kubernetes"),
			App: or(labels["app"], app), Version: or(labels["version"], ver), Principal: "spiffe://" + trust + "/ns/" + ns + "/sa/" + sa,
		},
		Discovery: client.DialOptions{Address: pc.DiscoveryAddress, ClusterID: or(env("ISTIO_META_CLUSTER_ID"), "Kubernetes")},
		Sotw:      o.sotw, Admin: o.admin, Status: o.status, Metrics: o.metrics, Merged: o.merged,
		DrainTime: o.drain, Stop: stop, Version: version.Version,
	}
	if !o.plaintext {
		b.CertTTL = o.certTTL
		b.Discovery.RootFile, b.Discovery.TokenFile = o.roots, o.token
	}
	if b.AppTarget, err = appTarget(env("ISTIO_PROMETHEUS_ANNOTATIONS")); err != nil {
		return b, err
	}
	return b, nil
}

// appTarget is where the application's own metrics are, by the annotations that its pod had before injection: those that
// it has now name this proxy. For the same reason a target on the proxy's own ports is none.
func appTarget(annotations string) (string, error) {
	if annotations == "" {
		return "", nil
	}
	var a struct{ Scrape, Path, Port string }
	if err := json.Unmarshal([]byte(annotations), &a); err != nil {
		return "", fmt.Errorf("environment: ISTIO_PROMETHEUS_ANNOTATIONS: %w", err)
	}
	if a.Scrape != "true" {
		return "", nil
	}
	port, err := strconv.ParseUint(or(a.Port, "80"), 10, 16)
	if err != nil {
		return "", fmt.Errorf("environment: ISTIO_PROMETHEUS_ANNOTATIONS: port: %w", err)
	}
	if port == 15020 || port == 15090 {
		return "", nil
	}
	return fmt.Sprintf("http://127.0.0.1:%d/%s", port, strings.TrimPrefix(or(a.Path, "/metrics"), "/")), nil
}

// termination is how the proxy ends: by flags, by the mesh's terminationDrainDuration, by Istio's variables. With
// EXIT_ON_ZERO_ACTIVE_CONNECTIONS there is no limit but that of the pod.
func termination(o options, config string, env func(string) string) (listener.Drain, error) {
	d := listener.Drain{Grace: o.grace, Limit: o.terminate}
	read := func(name, value string) error {
		if value == "" {
			return nil
		}
		g, err := time.ParseDuration(value)
		if err != nil || g < 0 {
			return fmt.Errorf("environment: %s %q is no duration, such as 5s", name, value)
		}
		d.Grace = g
		return nil
	}
	if err := read("PROXY_CONFIG: terminationDrainDuration", config); err != nil {
		return d, err
	}
	if s := env("TERMINATION_DRAIN_DURATION_SECONDS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return d, fmt.Errorf("environment: TERMINATION_DRAIN_DURATION_SECONDS %q is no number of seconds", s)
		}
		d.Grace = time.Duration(n) * time.Second
	}
	if s := env("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"); s != "" {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return d, fmt.Errorf("environment: EXIT_ON_ZERO_ACTIVE_CONNECTIONS %q is neither true nor false", s)
		}
		if on {
			d.Grace, d.Limit = 5*time.Second, -1
			return d, read("MINIMUM_DRAIN_DURATION", env("MINIMUM_DRAIN_DURATION"))
		}
	}
	return d, nil
}

// canonical is Istio's name and revision of a workload by its labels.
func canonical(labels map[string]string, workload string) (name, revision string) {
	name = or(labels["service.istio.io/canonical-name"], labels["app.kubernetes.io/name"], labels["app"], workload)
	return name, or(labels["service.istio.io/canonical-revision"], labels["app.kubernetes.io/version"], labels["version"], "latest")
}

func or(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func anyMap(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// readInfo reads a file of the downward API: key="value" lines. No file is no entries.
func readInfo(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pod info: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	out := map[string]string{}
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		k, v, ok := strings.Cut(s.Text(), "=")
		if !ok {
			continue
		}
		value, err := strconv.Unquote(v)
		if err != nil {
			return nil, fmt.Errorf("pod info: %s:%d: value is not quoted: %w", path, n, err)
		}
		out[k] = value
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("pod info: %s: %w", path, err)
	}
	return out, nil
}
