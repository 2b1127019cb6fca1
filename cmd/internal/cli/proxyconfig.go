package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/scenarios/workload"
)

// proxyTables are the kinds of configuration that proxy-config shows: the header, and rows made from a config dump.
func proxyTables() []proxyTable {
	return []proxyTable{
		{"clusters", "cluster", []string{"SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE"}, clusterRows},
		{"listeners", "listener", []string{"ADDRESS", "PORT", "MATCH", "DESTINATION"}, listenerRows},
		{"routes", "route", []string{"NAME", "VHOST", "DOMAINS", "MATCH", "DESTINATION"}, routeRows},
	}
}

type proxyTable struct {
	name, alias string
	header      []string
	rows        func(configDump) [][]string
}

func (a *app) proxyConfig(f *meshFlags) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "proxy-config",
		Aliases: []string{"pc"},
		Short:   "Show what a proxy was configured with, as it tells itself",
		Example: "  meshproof mesh proxy-config clusters productpage-v1-abc.bookinfo\n  meshproof mesh proxy-config routes loadagent-abc.load -o json",
	})
	add := func(name, alias string, show func(ctx context.Context, c *workload.Client, namespace, pod string) error) {
		c.AddCommand(a.outputFlag(&cobra.Command{
			Use:     name + " POD.NAMESPACE",
			Aliases: []string{alias, name[:1]},
			Short:   "Show the " + name + " of a proxy",
			Example: "  meshproof mesh proxy-config " + name + " productpage-v1-abc.bookinfo",
			Args:    exactArgs("POD.NAMESPACE"),
			RunE: func(cmd *cobra.Command, args []string) error {
				pod, namespace, ok := strings.Cut(args[0], ".")
				if !ok {
					namespace = "default"
				}
				client, err := a.holder(cmd.Context(), f, namespace, pod)
				if err != nil {
					return err
				}
				return show(cmd.Context(), client, namespace, pod)
			},
		}))
	}
	for _, t := range proxyTables() {
		add(t.name, t.alias, func(ctx context.Context, c *workload.Client, namespace, pod string) error {
			return a.showConfig(ctx, c, t, namespace, pod)
		})
	}
	add("endpoints", "endpoint", a.showEndpoints)
	return c
}

func (a *app) showConfig(ctx context.Context, c *workload.Client, t proxyTable, namespace, pod string) error {
	data, err := c.Admin(ctx, namespace, pod, "/config_dump")
	if err != nil {
		return failed(err)
	}
	var d configDump
	if err := json.Unmarshal(data, &d); err != nil {
		return failed(fmt.Errorf("config dump of %s.%s: %w", pod, namespace, err))
	}
	var v any
	for _, section := range d.Configs {
		if strings.Contains(strings.ToLower(section.Type), t.alias) {
			if err := json.Unmarshal(section.raw, &v); err != nil {
				return failed(err)
			}
		}
	}
	return a.print(v, func(w io.Writer) error { return columns(w, t.header, t.rows(d)) })
}

// configDump is the part of Envoy's config dump that tables show. Field names are those of the proto, as Envoy writes them.
type configDump struct {
	Configs []configSection `json:"configs"`
}

type configSection struct {
	Type            string                          `json:"@type"`
	StaticClusters  []struct{ Cluster dumpCluster } `json:"static_clusters"`
	ActiveClusters  []struct{ Cluster dumpCluster } `json:"dynamic_active_clusters"`
	DynamicListener []struct {
		ActiveState struct{ Listener dumpListener } `json:"active_state"`
	} `json:"dynamic_listeners"`
	StaticListeners []struct{ Listener dumpListener } `json:"static_listeners"`
	RouteConfigs    []struct {
		RouteConfig dumpRoutes `json:"route_config"`
	} `json:"dynamic_route_configs"`
	StaticRoutes []struct {
		RouteConfig dumpRoutes `json:"route_config"`
	} `json:"static_route_configs"`

	raw json.RawMessage
}

// UnmarshalJSON keeps the text beside the fields, for -o json.
func (s *configSection) UnmarshalJSON(data []byte) error {
	type plain configSection
	if err := json.Unmarshal(data, (*plain)(s)); err != nil {
		return err
	}
	s.raw = slices.Clone(data)
	return nil
}

type dumpCluster struct {
	Name string
	Type string
}

type dumpAddress struct {
	Socket struct {
		Address   string
		PortValue int `json:"port_value"`
	} `json:"socket_address"`
}

type dumpListener struct {
	Name         string
	Address      dumpAddress
	FilterChains []dumpChain `json:"filter_chains"`
	DefaultChain *dumpChain  `json:"default_filter_chain"`
}

type dumpChain struct {
	Match struct {
		ServerNames       []string `json:"server_names"`
		TransportProtocol string   `json:"transport_protocol"`
		Applications      []string `json:"application_protocols"`
		DestinationPort   int      `json:"destination_port"`
		PrefixRanges      []struct {
			Prefix string `json:"address_prefix"`
			Len    int    `json:"prefix_len"`
		} `json:"prefix_ranges"`
	} `json:"filter_chain_match"`
	Filters []struct {
		Name   string
		Config struct {
			Cluster string
			RDS     struct {
				RouteConfigName string `json:"route_config_name"`
			}
			RouteConfig *dumpRoutes `json:"route_config"`
		} `json:"typed_config"`
	}
}

type dumpRoutes struct {
	Name         string
	VirtualHosts []struct {
		Name    string
		Domains []string
		Routes  []dumpRoute
	} `json:"virtual_hosts"`
}

type dumpRoute struct {
	Match struct {
		Prefix, Path        string
		PathSeparatedPrefix string                 `json:"path_separated_prefix"`
		SafeRegex           struct{ Regex string } `json:"safe_regex"`
		Headers             []struct{ Name string }
	}
	Route struct {
		Cluster  string
		Weighted struct {
			Clusters []struct {
				Name   string
				Weight int
			}
		} `json:"weighted_clusters"`
	}
	Redirect *struct{}             `json:"redirect"`
	Direct   *struct{ Status int } `json:"direct_response"`
}

func clusterRows(d configDump) [][]string {
	var rows [][]string
	for _, s := range d.Configs {
		for _, x := range append(s.StaticClusters, s.ActiveClusters...) {
			direction, port, subset, fqdn := "-", "-", "-", x.Cluster.Name
			if parts := strings.Split(x.Cluster.Name, "|"); len(parts) == 4 {
				direction, port, subset, fqdn = parts[0], parts[1], cmp.Or(parts[2], "-"), cmp.Or(parts[3], "-")
			}
			rows = append(rows, []string{fqdn, port, subset, direction, cmp.Or(x.Cluster.Type, "STATIC")})
		}
	}
	return sorted(rows)
}

func listenerRows(d configDump) [][]string {
	var rows [][]string
	add := func(l dumpListener) {
		chains := slices.Clone(l.FilterChains)
		if l.DefaultChain != nil {
			chains = append(chains, *l.DefaultChain)
		}
		for _, c := range chains {
			rows = append(rows, []string{l.Address.Socket.Address, strconv.Itoa(l.Address.Socket.PortValue), c.match(), c.destination()})
		}
	}
	for _, s := range d.Configs {
		for _, x := range s.StaticListeners {
			add(x.Listener)
		}
		for _, x := range s.DynamicListener {
			add(x.ActiveState.Listener)
		}
	}
	return rows
}

func (c dumpChain) match() string {
	var parts []string
	if c.Match.TransportProtocol != "" {
		parts = append(parts, "Trans: "+c.Match.TransportProtocol)
	}
	if len(c.Match.Applications) > 0 {
		parts = append(parts, "App: "+strings.Join(c.Match.Applications, ","))
	}
	for _, p := range c.Match.PrefixRanges {
		parts = append(parts, fmt.Sprintf("Addr: %s/%d", p.Prefix, p.Len))
	}
	if c.Match.DestinationPort != 0 {
		parts = append(parts, "Port: "+strconv.Itoa(c.Match.DestinationPort))
	}
	if len(c.Match.ServerNames) > 0 {
		parts = append(parts, "SNI: "+strings.Join(c.Match.ServerNames, ","))
	}
	return cmp.Or(strings.Join(parts, "; "), "ALL")
}

func (c dumpChain) destination() string {
	for _, f := range slices.Backward(c.Filters) {
		switch {
		case f.Config.RDS.RouteConfigName != "":
			return "Route: " + f.Config.RDS.RouteConfigName
		case f.Config.RouteConfig != nil:
			return "Inline Route: " + f.Config.RouteConfig.Name
		case f.Config.Cluster != "":
			return "Cluster: " + f.Config.Cluster
		}
	}
	return "-"
}

func routeRows(d configDump) [][]string {
	var rows [][]string
	add := func(rc dumpRoutes) {
		for _, vh := range rc.VirtualHosts {
			domains := strings.Join(vh.Domains[:min(2, len(vh.Domains))], ", ")
			if more := len(vh.Domains) - 2; more > 0 {
				domains += fmt.Sprintf(" + %d more...", more)
			}
			for _, r := range vh.Routes {
				rows = append(rows, []string{cmp.Or(rc.Name, "-"), vh.Name, domains, r.match(), r.destination()})
			}
		}
	}
	for _, s := range d.Configs {
		for _, x := range append(s.StaticRoutes, s.RouteConfigs...) {
			add(x.RouteConfig)
		}
	}
	return rows
}

func (r dumpRoute) match() string {
	m := r.Match
	text := cmp.Or(m.Path, m.PathSeparatedPrefix, m.SafeRegex.Regex)
	if text == "" {
		text = m.Prefix + "*"
	}
	for _, h := range m.Headers {
		text += " +" + h.Name
	}
	return text
}

func (r dumpRoute) destination() string {
	switch {
	case r.Redirect != nil:
		return "redirect"
	case r.Direct != nil:
		return "status " + strconv.Itoa(r.Direct.Status)
	case len(r.Route.Weighted.Clusters) > 0:
		var parts []string
		for _, c := range r.Route.Weighted.Clusters {
			parts = append(parts, fmt.Sprintf("%d%% %s", c.Weight, c.Name))
		}
		return strings.Join(parts, ", ")
	}
	return cmp.Or(r.Route.Cluster, "-")
}

func sorted(rows [][]string) [][]string {
	slices.SortFunc(rows, func(a, b []string) int { return slices.Compare(a, b) })
	return rows
}
