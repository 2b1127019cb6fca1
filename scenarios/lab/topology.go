package lab

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/meshproof/meshproof/clusters"
)

// networks decodes the names of the lab's networks.
func (d *decoder) networks(n *yaml.Node, at string) []string {
	out := []string{}
	d.list(n, at, func(n *yaml.Node, at string) {
		name := d.label(n, at)
		if name != "" && slices.Contains(out, name) {
			d.bad(n, at, "%q stands in the list already; keep one", name)
			return
		}
		out = append(out, name)
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.bad(n, at, "is empty; a lab has at least one network")
	}
	return out
}

func (d *decoder) clusters(n *yaml.Node, at string) []Cluster {
	var out []Cluster
	nodes := 0
	first := map[string]string{}
	d.list(n, at, func(n *yaml.Node, at string) {
		c := Cluster{Nodes: 1}
		seen := d.mapping(n, at, map[string]func(*yaml.Node, string){
			"name": func(n *yaml.Node, at string) {
				if c.Name = d.label(n, at); c.Name == "" {
					return
				}
				if other, taken := first[c.Name]; taken {
					d.bad(n, at, "%q is the name of %s too; names differ within a lab", c.Name, other)
				}
				first[c.Name] = strings.TrimSuffix(at, ".name")
			},
			"nodes": func(n *yaml.Node, at string) { c.Nodes = d.integer(n, at, 1, 9) },
			"network": func(n *yaml.Node, at string) {
				if c.Network = d.label(n, at); c.Network != "" {
					d.later = append(d.later, func(l *Lab) { d.checkNetwork(l, n, at) })
				}
			},
			"primary": func(n *yaml.Node, at string) {
				if c.Primary = d.label(n, at); c.Primary != "" {
					own := len(out) // its name may come after this field
					d.later = append(d.later, func(l *Lab) { d.checkPrimary(l, n, at, l.Clusters[own].Name) })
				}
			},
		})
		if n.Kind == yaml.MappingNode && !seen["name"] {
			d.bad(n, at+".name", "is missing; add a DNS label such as east")
		}
		out = append(out, c)
		if len(out) == clusters.MaxClusters+1 {
			d.bad(n, at, "is one too many; a lab has at most %d clusters", clusters.MaxClusters)
		}
		if nodes += c.Nodes; nodes > clusters.MaxNodes && nodes-c.Nodes <= clusters.MaxNodes {
			d.bad(n, at, "makes %d nodes; a lab has at most %d", nodes, clusters.MaxNodes)
		}
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.bad(n, at, "is empty; a lab has at least one cluster")
	}
	return out
}

// resolve puts clusters on their networks and checks the names that refer to something else in the file.
func (d *decoder) resolve(l *Lab) {
	for i := range l.Clusters {
		if l.Clusters[i].Network == "" && len(l.Networks) > 0 {
			l.Clusters[i].Network = l.Networks[0]
		}
	}
	for _, check := range d.later {
		check(l)
	}
}

func (d *decoder) checkNetwork(l *Lab, n *yaml.Node, at string) {
	if len(l.Networks) > 0 && !slices.Contains(l.Networks, n.Value) {
		d.bad(n, at, "%q is not a network of this lab (%s)%s", n.Value, strings.Join(named(l.Networks), ", "), didYouMean(n.Value, l.Networks))
	}
}

func (d *decoder) checkPrimary(l *Lab, n *yaml.Node, at, own string) {
	var names []string
	for _, c := range l.Clusters {
		if c.Name != own {
			names = append(names, c.Name)
		}
	}
	i := slices.IndexFunc(l.Clusters, func(c Cluster) bool { return c.Name == n.Value })
	switch {
	case n.Value == own:
		d.bad(n, at, "is the cluster itself; leave the field out where a cluster has a control plane of its own")
	case i < 0:
		d.bad(n, at, "%q is not a cluster of this lab (%s)%s", n.Value, strings.Join(named(names), ", "), didYouMean(n.Value, names))
	case l.Clusters[i].Primary != "":
		d.bad(n, at, "%q has no control plane of its own: its primary is %q; name that one", n.Value, l.Clusters[i].Primary)
	}
}

// named leaves out what could not be decoded.
func named(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "" })
}
